"""Chains on exact networks that are told nothing: their noise is held at the table's."""

import pytest
import torch
from graph_cases import network
from helpers.blind import SIGMAS, SPREAD, Blind, left_over, pictures

import ncsn_fast as nf
from ncsn_fast.guidance.classifier_free import guided
from ncsn_fast.guidance.noise_level import excess, held

pytest_plugins = ["helpers.recorded_capture"]

MEANS = pictures()
BLIND = Blind(MEANS)
METHODS = {
    "euler": {"method": "euler", "steps": 20},
    "heun": {"method": "heun", "steps": 19},
    "dpmpp_2m": {"method": "dpmpp_2m", "steps": 10},
    "dpmpp_2m, eta 1": {"method": "dpmpp_2m", "eta": 1.0, "steps": 10},
}
ODE = [method for method in METHODS if "eta" not in METHODS[method]]
N = 48


def sampler(method="dpmpp_2m", score=None, shape=MEANS.shape[1:], **settings):
    score = nf.Score(BLIND, "normalized", "none") if score is None else score
    settings = {**METHODS[method], "graph": False, **settings}
    return nf.Sampler(score, shape, SIGMAS, **settings)


def too_noisy(factor=1.3):
    """States with so many times the noise of the first level."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(N, MEANS.shape[1], generator=generator)
    return MEANS[torch.arange(N) % len(MEANS)] + factor * float(SIGMAS[0]) * z


@pytest.mark.parametrize("method", ODE)
def test_a_chain_ends_in_the_law_of_the_data(method):
    # Of a component N(m, s²I) the ODE ends at a distance of about s from m.
    end = left_over(sampler(method)(N, seed=0), MEANS)
    assert float(end.mean()) == pytest.approx(SPREAD, rel=0.25)
    assert float(end.max()) < 3 * SPREAD
    loose = left_over(sampler(method, hold_noise=False)(N, seed=0), MEANS)
    assert float(loose.max()) > 6 * SPREAD  # a start's length, off by 1/√(2D), is left at the end


@pytest.mark.parametrize("steps", [8, 10])
def test_a_chain_of_few_rows_with_fresh_noise_ends_in_the_law_of_the_data(steps):
    chain = {"method": "dpmpp_2m, eta 1", "steps": steps}
    end = left_over(sampler(**chain)(N, seed=0), MEANS)
    assert float(end.mean()) == pytest.approx(SPREAD, rel=0.1)
    assert float(end.max()) < 1.5 * SPREAD
    loose = left_over(sampler(**chain, hold_noise=False)(N, seed=0), MEANS)
    assert float(loose.max()) > 4 * SPREAD  # steps of second order magnify errors of the level


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_no_level_is_held_where_the_noise_is_scaled(temperature):
    chains = [
        sampler("dpmpp_2m, eta 1", hold_noise=hold)(4, seed=0, temperature=temperature)
        for hold in (True, False)
    ]
    assert torch.equal(*chains)


def test_ancestral_steps_are_held_where_that_is_said():
    score = nf.Score(BLIND, "normalized", "none")
    told = {"method": "ancestral", "steps": 20, "graph": False}
    loose, held = (
        nf.Sampler(score, MEANS.shape[1:], SIGMAS, hold_noise=hold, **told) for hold in (None, True)
    )
    assert not loose.hold_noise
    end = left_over(held(N, seed=0, initial=too_noisy()), MEANS)
    assert float(end.max()) < 1.5 * SPREAD
    end = left_over(loose(N, seed=0, initial=too_noisy()), MEANS)
    assert float(end.max()) > 4 * SPREAD


@pytest.mark.parametrize("method", ODE)
def test_what_a_start_has_too_much_is_not_left_at_the_end(method):
    end = left_over(sampler(method)(N, seed=0, initial=too_noisy()), MEANS)
    assert float(end.mean()) < 2 * SPREAD
    loose = sampler(method, hold_noise=False)(N, seed=0, initial=too_noisy())
    assert float(left_over(loose, MEANS).mean()) > 20 * SPREAD


@pytest.mark.parametrize("method", METHODS)
def test_a_noise_prediction_is_held_as_its_negative_is(method):
    epsilon = nf.Score(lambda x: -BLIND(x), "epsilon", "none")
    expected = sampler(method)(4, seed=0)
    assert torch.equal(sampler(method, epsilon)(4, seed=0), expected)


def test_an_official_network_is_held_where_that_is_said():
    ladder = {"steps": 20, "spacing": "ladder"}
    official = nf.Score(lambda x, labels: BLIND(x) / SIGMAS[labels, None], "score", "label", SIGMAS)
    assert not sampler(score=official, **ladder).hold_noise
    found = sampler(score=official, hold_noise=True, **ladder)(4, seed=0)
    torch.testing.assert_close(found, sampler(**ladder)(4, seed=0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_on_states_of_the_right_level_is_the_methods_own(method):
    # The correction is one of the state before the row, whose history sees it corrected too.
    table = sampler(method).table
    x = too_noisy()
    z = torch.randn(len(table), *x.shape, generator=torch.Generator().manual_seed(0))
    history = torch.zeros_like(x)
    for row, sigma in enumerate(table.sigma):
        n = BLIND(x)
        x = held(x, n, excess(x, n, sigma))
        new = table.a[row] * x + table.b[row] * n + table.c[row] * history + table.d[row] * z[row]
        history = table.e[row] * x + table.f[row] * n
        x = new
    found = sampler(method)(N, seed=0, initial=too_noisy(), noise=lambda row: z[row])
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_no_sample_depends_on_the_batch():
    one = sampler()
    whole = one(5, seed=0)
    assert torch.equal(one(5, seed=0, batch_size=2), whole)
    assert torch.equal(one(1, seed=0, sample_ids=[3]), whole[3:4])


def test_a_chain_is_taken_up_at_a_level_exactly():
    one = sampler("euler")
    states = {}
    expected = one(3, seed=0, callback=lambda row, x, n: states.update({row: x}))
    level, row = list(one.table.resumptions.items())[5]
    assert torch.equal(one(3, seed=0, initial=states[row], start_level=level), expected)


@pytest.mark.parametrize("method", ODE)
def test_a_known_region_is_exact_and_the_rest_fits_it(method):
    mask = torch.zeros(MEANS.shape[1], dtype=torch.bool)
    mask[::2] = True
    known = MEANS[torch.arange(N) % len(MEANS)]
    end = sampler(method)(N, seed=0, mask=mask, known=known, initial=too_noisy())
    assert torch.equal(end[:, mask], known[:, mask])
    rest = (end - known)[:, ~mask].square().mean(1).sqrt()
    assert float(rest.median()) < 2 * SPREAD  # a few complete the region by another picture
    loose = sampler(method, hold_noise=False)
    end = loose(N, seed=0, mask=mask, known=known, initial=too_noisy())
    assert float((end - known)[:, ~mask].square().mean(1).sqrt().median()) > 10 * SPREAD


def test_guidance_sees_states_of_the_level_it_is_told():
    seen = []

    def guidance(x, n, sigma, row):
        clean = MEANS[torch.arange(N) % len(MEANS)]
        seen.append(float((x - clean).square().mean().sqrt()) / sigma)
        return torch.zeros_like(x)

    call = {"seed": 0, "initial": too_noisy(0.8)}
    assert torch.equal(sampler()(N, guidance=guidance, **call), sampler()(N, **call))
    assert seen[0] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_guided_chains_end_in_their_class(scale):
    score = nf.Score(BLIND, "normalized", "none")
    classes = torch.arange(N) % len(MEANS)
    steered = guided(score, scale, unconditional={"labels": len(MEANS)})
    end = sampler(score=steered)(N, seed=0, extra={"labels": classes}) - MEANS[classes]
    assert float(end.square().mean(1).sqrt().max()) < 4 * SPREAD


def test_the_level_is_measured_by_the_score_before_it_is_clipped():
    plain = sampler()(N, seed=0, initial=too_noisy())
    assert torch.equal(sampler()(N, seed=0, initial=too_noisy(), clip=1e9), plain)
    heard = []
    short = sampler()
    short(N, seed=0, initial=too_noisy(), clip=0.1, callback=lambda row, x, n: heard.append((x, n)))
    sigma = short.table.sigma[0]
    assert float(heard[0][1].norm(dim=1).max()) <= 0.1 * sigma * 1.001
    # No step is longer than the clip allows, the correction's part of it included.
    moved = (heard[1][0] - heard[0][0]).norm(dim=1)
    assert float(moved.max()) <= 2 * 0.1 * sigma * sigma * 1.001


CALLS = {
    "plain": {},
    "mask": {"mask": torch.ones(1, 8, 4).repeat(1, 1, 2).tril(), "known": torch.zeros(1, 8, 8)},
    "clip": {"clip": 3.0},
    "guidance": {"guidance": lambda x, n, sigma, row: -0.01 * x},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_chain_holds_the_level_bit_for_bit(recorded, method, call):
    net = network("NCSNv2")
    settings = {**METHODS[method], "steps": 9, "precision": "fp32"}
    eager, captured = (nf.Sampler(net, graph=graph, **settings) for graph in (False, True))
    assert eager.hold_noise
    given = {"seed": 1, **CALLS[call]}
    assert torch.equal(captured(3, **given), eager(3, **given))
    assert recorded.captured[0].replays == len(eager.table)
    loose = nf.Sampler(net, graph=False, hold_noise=False, **settings)
    assert not torch.equal(loose(3, **given), eager(3, **given))


def test_states_keep_the_layout_that_kernels_read():
    net = nf.NCSNv2(channels=3, image_size=8, ngf=4, sigmas=SIGMAS).eval()
    fn = nf.Score(
        lambda x: net.normalized(x).contiguous(memory_format=torch.channels_last),
        "normalized",
        "none",
        SIGMAS,
    )
    expected = nf.Sampler(
        nf.Score(lambda x: net.normalized(x).contiguous(), "normalized", "none", SIGMAS),
        (3, 8, 8),
        method="dpmpp_2m",
        steps=5,
    )(2, seed=0)
    found = nf.Sampler(fn, (3, 8, 8), method="dpmpp_2m", steps=5)
    states = []
    end = found(2, seed=0, callback=lambda row, x, n: states.append(x))
    assert all(x.is_contiguous() for x in states)
    torch.testing.assert_close(end, expected)
