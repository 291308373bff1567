"""Langevin steps whose size goes by norms: against a plain loop, and of a Gaussian's samples."""

import math
from itertools import pairwise

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.guidance import NormAdaptive
from ncsn_fast.methods.tables import annealed_langevin, dpmpp_2m, predictor_corrector

pytest_plugins = ["helpers.recorded_capture"]

SIGMAS, SNR, SHAPE = nf.geometric_sigmas(5, 0.05, 12), 0.16, (2, 4, 4)
MEAN, VARIANCE = 0.5, 0.25


def score(x, sigma):
    """Of N(MEAN, VARIANCE)."""
    return (MEAN - x) / (VARIANCE + sigma.view(-1, *(1,) * (x.ndim - 1)) ** 2)


def made(shape=SHAPE, correctors=2, sigmas=SIGMAS, **settings):
    given = {"corrector_steps": correctors, "predictor": "ancestral", "snr": SNR, **settings}
    known = nf.Score(score, "score", "sigma")
    return nf.Sampler(known, shape, sigmas, "predictor_corrector", **given)


def by_hand(x, z, correctors, temperature, clip=math.inf):
    """Algorithms 1 and 4 of Song et al. 2021, one sample (D,) in float64; scores are clipped."""
    for sigma, following in pairwise([*SIGMAS.double().tolist(), 0.0]):
        for _ in range(correctors):
            s, noise = (MEAN - x) / (VARIANCE + sigma**2), next(z)
            step = 2 * (SNR * float(noise.norm() / s.norm())) ** 2
            s = s * min(1.0, clip / float(s.norm()))
            x = x + step * s + math.sqrt(2 * step * temperature) * noise
        s, noise = (MEAN - x) / (VARIANCE + sigma**2), next(z)
        s = s * min(1.0, clip / float(s.norm()))
        up = math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)
        x = x + (sigma**2 - following**2) * s + math.sqrt(temperature) * up * noise
    return x


@pytest.mark.parametrize(("temperature", "clip"), [(1.0, None), (0.5, None), (1.0, 2.0)])
@pytest.mark.parametrize("correctors", [1, 3])
@pytest.mark.parametrize("given", [True, False])
def test_a_chain_is_the_published_one_with_the_norms_of_each_sample(
    given, correctors, temperature, clip
):
    sampler, n = made(correctors=correctors), 3
    rows = range(len(sampler.table))
    random = torch.Generator().manual_seed(0)
    if given:
        z = torch.stack([torch.randn(n, *SHAPE, generator=random) for _ in rows])
    else:
        z = nf.noise.normal(
            SHAPE, seed=5, stream=nf.noise.SAMPLER, sample_ids=range(n), step=torch.tensor([*rows])
        )
    x = 5 * torch.randn(n, *SHAPE, generator=random)
    found = sampler(
        n,
        seed=5,
        initial=x,
        noise=(lambda row: z[row]) if given else None,
        guidance=NormAdaptive(sampler.table),
        temperature=temperature,
        clip=clip,
    )
    for i in range(n):
        noises = iter(z[:, i].flatten(1).double())
        start = x[i].flatten().double()
        expected = by_hand(start, noises, correctors, temperature, clip or math.inf)
        torch.testing.assert_close(found[i].flatten().double(), expected, atol=1e-5, rtol=1e-5)
    fixed = sampler(n, seed=5, initial=x, noise=(lambda row: z[row]), temperature=temperature)
    assert (fixed - found).abs().max() > 1e-3


def test_a_sample_is_the_same_in_every_batch():
    sampler = made()
    guidance = NormAdaptive(sampler.table)
    whole = sampler(5, seed=1, guidance=guidance)
    parts = sampler(5, seed=1, guidance=guidance, batch_size=2)
    alone = sampler(1, seed=1, sample_ids=[3], guidance=guidance)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(alone, whole[3:4])
    # Not so with norms that are means, which are for a whole batch.
    means = sampler(5, seed=1, guidance=NormAdaptive(sampler.table, together=5))
    few = sampler(3, seed=1, guidance=NormAdaptive(sampler.table, together=3))
    assert (few - means[:3]).abs().max() > 1e-3
    one = NormAdaptive(sampler.table, together=1)
    assert torch.equal(sampler(1, seed=1, sample_ids=[3], guidance=one), alone)
    with pytest.raises(RuntimeError, match="means over 5 samples, of which 2"):
        sampler(5, seed=1, guidance=NormAdaptive(sampler.table, together=5), batch_size=2)


def test_samples_have_the_law_of_the_data():
    """Within what the ancestral predictor of 30 levels leaves; of 192 values, whose norms vary
    little. Steps of fixed size are too short at the levels below the spread of the data."""
    shape = (3, 8, 8)
    sampler = made(shape, correctors=1, sigmas=nf.geometric_sigmas(10, 0.02, 30))
    x = sampler(500, seed=0, guidance=NormAdaptive(sampler.table)).double()
    error = math.sqrt(VARIANCE / x.numel())
    assert float(x.mean()) == pytest.approx(MEAN, abs=5 * error)
    assert float(x.var()) == pytest.approx(VARIANCE, rel=0.04)
    pixels = x.flatten(1).T.cov()
    between = pixels[~torch.eye(len(pixels), dtype=torch.bool)]
    assert float(between.square().mean().sqrt()) < 1.1 * VARIANCE / math.sqrt(500)
    assert float(sampler(500, seed=0).var()) < 0.9 * VARIANCE


def test_only_langevin_steps_adapt():
    assert NormAdaptive(predictor_corrector(SIGMAS, 0.1)).rows == (True, False) * 12
    assert NormAdaptive(annealed_langevin(SIGMAS, 1e-3, 2)).rows == (True,) * 24 + (False,)
    assert NormAdaptive(nf.Table.of([2.0, 1.0], b=[1.0, 0.5], d=[2.0, 1.1])).rows == (True, False)


def test_clip_lengthens_no_step():
    """Of noise z and -z the mean step is the score's part, which clip shortens or leaves."""
    sampler, before = made(), None
    x = 5 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    z = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    for clip in (None, 100.0, 1.0, 0.1):
        ends = []
        for sign in (1, -1):
            seen = []
            sampler(
                4,
                initial=x,
                noise=lambda row, sign=sign: sign * z,
                guidance=NormAdaptive(sampler.table),
                clip=clip,
                callback=lambda row, x, n, seen=seen: seen.append(x.clone()),
            )
            ends.append(seen[1])
        drift = ((ends[0] + ends[1]) / 2 - x).flatten(1).norm(dim=1)
        noise = (ends[0] - ends[1]).flatten(1).norm(dim=1)
        if before is not None:
            assert (drift <= before[0] * 1.0001).all()
            torch.testing.assert_close(noise, before[1])
        before = drift, noise
    assert (before[0] > 0).all()


def test_a_chain_may_begin_on_the_way():
    sampler = made()
    guidance = NormAdaptive(sampler.table)
    begun = sampler(2, seed=0, guidance=guidance, start_level=5)
    assert begun.isfinite().all()
    # A table whose end is the same adapts in the same rows, wherever those are counted from.
    x = 5 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    short = nf.Sampler(sampler.score, SHAPE, method=sampler.table[1:])
    of_its_own = short(2, seed=0, initial=x, guidance=NormAdaptive(short.table))
    assert torch.equal(short(2, seed=0, initial=x, guidance=guidance), of_its_own)
    level = 5
    row = sampler.table.start_row(level)
    last = NormAdaptive(sampler.table[row:])
    assert torch.equal(sampler(2, seed=0, guidance=last, start_level=level), begun)


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_a_score_that_is_nothing_leaves_the_steps_of_the_table(scale):
    net = nf.Score(lambda x, sigma: scale * x, "score", "sigma")
    sampler = nf.Sampler(net, SHAPE, method=made().table)
    x = sampler(3, seed=1, guidance=NormAdaptive(sampler.table))
    assert torch.equal(x, sampler(3, seed=1))


@pytest.mark.parametrize("level", [0, 5])
def test_replay_equals_eager_bit_for_bit(level, recorded):
    """Also of a table that is the sampler's from some row on."""
    found = []
    for graph in (False, True):
        sampler = made(graph=graph)
        guidance = NormAdaptive(sampler.table[sampler.table.start_row(level) :])
        with nf.use_backend("torch"):  # its noise is made of operations that a capture sees
            found.append(sampler(3, seed=2, guidance=guidance, start_level=level))
    assert torch.equal(*found)
    assert len(recorded.captured) == 1


@pytest.mark.gpu
def test_a_replay_on_a_gpu_equals_eager():
    found = []
    for graph in (False, True):
        sampler = made(graph=graph, device="cuda")
        found.append(sampler(3, seed=2, guidance=NormAdaptive(sampler.table)))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormAdaptive("table"), "table is a str: give that of the sampler"),
        (lambda: NormAdaptive(dpmpp_2m(SIGMAS)), "0 of 12 rows adapt.*has to be a Langevin step"),
        (lambda: NormAdaptive(annealed_langevin(SIGMAS, 1e-3, 1), [True]), "1 of 1 rows adapt"),
        (lambda: NormAdaptive(annealed_langevin(SIGMAS, 1e-3, 1), 5), "rows = 5: give a list"),
        (lambda: NormAdaptive(annealed_langevin(SIGMAS, 1e-3, 1), ["no"]), "rows = .'no'."),
        (lambda: NormAdaptive(annealed_langevin(SIGMAS, 1e-3, 1), together=0), "together = 0"),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_another_chain_is_refused_before_any_work():
    def never(x, sigma):
        raise AssertionError

    sampler = nf.Sampler(nf.Score(never, "score", "sigma"), (3,), SIGMAS, "ancestral")
    with pytest.raises(ValueError, match="NormAdaptive is made for another table"):
        sampler(2, guidance=NormAdaptive(made().table))
    corrected = NormAdaptive(made((3,)).table, together=4)
    sampler = nf.Sampler(nf.Score(never, "score", "sigma"), (3,), method=corrected.table)
    with pytest.raises(ValueError, match="means over 4 samples, and n = 2"):
        sampler(2, guidance=corrected)


def test_it_is_for_the_sampler_itself():
    x = torch.ones(2, 3)
    with pytest.raises(TypeError, match="give it to the sampler itself"):
        NormAdaptive(annealed_langevin(SIGMAS, 1e-3, 1))(x, x, 0.5, 0)


def test_a_chain_that_begins_at_a_row_with_a_history_goes_by_the_same_norms():
    """That row is another one then, of its own history, and so of the first order."""
    multistep = dpmpp_2m(SIGMAS)
    table = multistep + annealed_langevin([0.05], 1e-4, 2, denoise=False)
    known = nf.Score(score, "score", "sigma")
    whole, rest = (nf.Sampler(known, SHAPE, method=one) for one in (table, table.begun(4)[1][4:]))
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    z = torch.randn(len(table), 3, *SHAPE, generator=torch.Generator().manual_seed(1))
    given = {"initial": x, "seed": 0}
    late = whole(3, start_level=4, guidance=NormAdaptive(table), noise=lambda k: z[k], **given)
    same = rest(3, guidance=NormAdaptive(rest.table), noise=lambda k: z[k + 4], **given)
    assert torch.equal(late, same)
    with pytest.raises(ValueError, match="made for another table"):
        whole(3, start_level=4, guidance=NormAdaptive(made().table), **given)
