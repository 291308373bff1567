"""The methods by name: settings, methods of one's own, and each of them on the engine."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import network
from method_cases import NOISELESS, SIGMAS, curved, run, start, table_of

import ncsn_fast as nf
from ncsn_fast import noise as noise_source
from ncsn_fast.methods import tables as samplers
from ncsn_fast.methods.by_name import METHODS, make_table
from ncsn_fast.table import Table

pytest_plugins = ["helpers.recorded_capture"]

# --- Settings.


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("euler", {"steps": 0}, "steps = 0: give a whole number"),
        ("euler", {"steps": 13}, "13 noise levels wanted, but .* ladder has 12: take fewer steps"),
        ("euler", {"spacing": "even"}, "spacing = 'even' is unknown; choose one of"),
        ("euler", {"rho": 0.0}, "rho = 0.0"),
        ("euler", {"snr": 0.1}, "'euler' takes no snr; its settings are steps, spacing, rho"),
        ("heun", {"step_size": 1e-5}, "'heun' takes no step_size; its settings are steps"),
        ("annealed_langevin", {"steps": 9}, "takes no steps; .* Methods that do: .*euler, "),
        ("predictor_corrector", {"steps": 1}, "one noise level takes 2 network evaluations"),
        ("predictor_corrector", {"snr": 1.0}, "0 < r < 1"),
        ("predictor_corrector", {"step_size": 1e-5}, "takes one of both"),
        ("predictor_corrector", {"predictor": "euler"}, "predictor = 'euler'"),
        ("predictor_corrector", {"corrector_steps": 0}, "corrector_steps = 0"),
        ("consistent_annealed", {"steps_per_level": 0}, "steps_per_level = 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        table_of(method, **settings)


# Values that no setting takes, of each type that a caller may have by mistake.
WRONG = ["7", None, True, float("nan"), [1.0], {}, np.ones(2), torch.ones(2), 1j, object(), len, -1]


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_the_wrong_kind_are_refused_by_name(method):
    tried = 0
    for name in inspect.signature(METHODS[method].table).parameters:
        if name == "sigmas":
            continue
        for wrong in WRONG:
            flag = name in ("denoise", "noise_first")
            if wrong is None or (wrong is True and flag):
                continue  # as if it were not given
            settings = {"spacing": "karras"} if name == "rho" else {}
            if name == "step_size" and method == "predictor_corrector":
                settings = {"snr": None}
            with pytest.raises(ValueError, match=rf"{name} = ") as refused:
                table_of(method, **{**settings, name: wrong})
            assert len(str(refused.value)) < 500
            tried += 1
    assert tried > 10


@pytest.mark.parametrize("wrong", ["dpm++", 3, [], {}, None, b"euler", np.array(["euler"])])
def test_a_method_that_is_none_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=r"method = .* is unknown; choose one of \['annealed"):
        make_table(wrong, SIGMAS, {}, {})


def test_settings_of_a_checkpoint_that_its_method_does_not_take_are_refused(net):
    for strange in ("stepsize", "snr", "steps"):
        net.sampling = {**CHECKPOINT, strange: 0.1}
        with pytest.raises(ValueError, match=rf"\(net.sampling\) have {strange}, which their"):
            nf.Sampler(net)
    net.sampling = {**CHECKPOINT, "method": "langevin"}
    with pytest.raises(ValueError, match="method = 'langevin' is unknown"):
        nf.Sampler(net, method="euler")


# Settings of some method -> a value that it takes.
VALUES = {
    "step_size": 9e-5,
    "steps_per_level": 3,
    "denoise": False,
    "noise_first": True,
    "spacing": "geometric",
    "steps": 5,
    "rho": 5.0,
    "snr": 0.1,
    "corrector_steps": 2,
    "predictor": "ancestral",
    "eta": 0.5,
    "solver_type": "heun",
}


# What another setting has to be for one to be in its range, or to have an effect.
BESIDE = {
    "rho": {"spacing": "karras"},
    "spacing": {"steps": 6},
    ("consistent_annealed", "spacing"): {"step_size": 1.0001e-4},
    ("consistent_annealed", "step_size"): {},
    ("predictor_corrector", "step_size"): {"snr": None},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_has_an_effect_or_is_refused_by_name(method):
    takes = set(inspect.signature(METHODS[method].table).parameters) - {"sigmas"}
    for name, value in VALUES.items():
        if name not in takes:
            with pytest.raises(ValueError, match=f"takes no {name}; its settings are"):
                table_of(method, **{name: value})
            continue
        if (method, name) == ("consistent_annealed", "spacing"):
            value = "linear"
        beside = BESIDE.get((method, name), BESIDE.get(name, {}))
        plain = {**beside, "snr": 0.16} if "snr" in beside else beside
        assert table_of(method, **{**beside, name: value}) != table_of(method, **plain)


CHECKPOINT = {
    "method": "annealed_langevin",
    "step_size": 2e-5,
    "steps_per_level": 3,
    "denoise": False,
}


@pytest.fixture
def net():
    net = network(sigmas=SIGMAS, channels=1, ngf=4).eval()
    net.sampling = dict(CHECKPOINT)
    return net


def test_a_checkpoints_settings_stay_with_its_method(net):
    assert nf.Sampler(net).table == samplers.annealed_langevin(SIGMAS, 2e-5, 3, denoise=False)
    assert nf.Sampler(net, method="heun").table == samplers.heun(SIGMAS)
    message = (
        "step_size not given for 'consistent_annealed', .* settings of 'annealed_langevin' only"
    )
    with pytest.raises(ValueError, match=message):
        nf.Sampler(net, method="consistent_annealed")
    consistent = nf.Sampler(net, method="consistent_annealed", step_size=8e-5).table
    assert consistent == samplers.consistent_annealed(SIGMAS, 8e-5)  # T and denoise are not its own


def test_predictor_corrector_takes_the_step_size_of_annealed_langevin(net):
    borrowed = nf.Sampler(net, method="predictor_corrector").table
    assert borrowed == samplers.predictor_corrector(SIGMAS, step_size=2e-5)
    given = nf.Sampler(net, method="predictor_corrector", snr=0.2).table
    assert given == samplers.predictor_corrector(SIGMAS, snr=0.2)


def test_a_checkpoint_of_another_method_samples_by_it(net):
    net.sampling = {"method": "consistent_annealed", "step_size": 8e-5, "steps_per_level": 2}
    assert nf.Sampler(net).table == samplers.consistent_annealed(SIGMAS, 8e-5, 2)
    with pytest.raises(ValueError, match="step_size and steps_per_level not given"):
        nf.Sampler(net, method="annealed_langevin")
    net.sampling = {"method": "euler", "steps": 5}
    assert len(nf.Sampler(net).table) == 5
    assert nf.sample(net, 2, seed=0).shape == (2, 1, 8, 8)


def test_an_official_consistent_checkpoint_samples(net):
    from ncsn_fast.checkpoints.official_yaml import sampling_settings

    section = {"step_lr": 8e-5, "nsigma": 2, "consistent": True, "denoise": True}
    net.sampling = sampling_settings({"sampling": section})
    assert len(nf.Sampler(net).table) == 2 * 11 + 1
    assert torch.isfinite(nf.sample(net, 2, seed=0)).all()


def test_settings_of_methods_go_through_sample(net):
    images = nf.sample(net, 2, method="euler", steps=4, spacing="karras", rho=5.0, seed=1)
    table = samplers.euler(SIGMAS, 4, "karras", 5.0)
    assert torch.equal(images, nf.sample(net, 2, method=table, seed=1))
    with pytest.raises(ValueError, match="'euler' takes no snr"):
        nf.sample(net, 2, method="euler", snr=0.1)


def test_a_network_that_knows_only_its_ladder_stays_on_it():
    torch.manual_seed(0)
    net = nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=SIGMAS).eval()
    assert nf.sample(net, 2, method="heun", steps=7, seed=0).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"asks for σ = .*, but this network knows only its 12"):
        nf.Sampler(net, method="heun", steps=7, spacing="karras")


# --- A method of one's own.


def test_a_new_method_is_a_table_function(net):
    def restart(sigmas, steps=4, churn=0.5):
        """Euler steps, before each of which the noise is raised a little."""
        sigma = np.geomspace(sigmas[0], sigmas[-1], steps)
        raised = np.append(sigma[1:] * (1 + churn), 0.0)
        fresh = np.append(sigma[1:] * np.sqrt((1 + churn) ** 2 - 1), 0.0)
        return Table.of(sigma, b=sigma - np.append(sigma[1:], 0.0), d=0.1 * fresh * (raised > 0))

    one = nf.Sampler(net, method=restart, steps=6, churn=0.2, precision="fp32")
    assert one.table == restart(SIGMAS, 6, 0.2)
    whole = one(5, seed=3)
    parts = torch.cat([one(2, seed=3), one(3, seed=3, sample_ids=[2, 3, 4], batch_size=2)])
    assert torch.allclose(whole, parts, atol=1e-5)
    assert float((whole[0] - whole[1]).abs().max()) > 0.01
    images = nf.sample(net, 5, method=restart, steps=6, churn=0.2, precision="fp32", seed=3)
    assert torch.equal(images, whole.clamp(0, 1))


def test_a_method_of_ones_own_is_refused_clearly(net):
    def odd(sigmas, needed, other=1):
        return sigmas

    with pytest.raises(ValueError, match="'odd' takes no steps; its settings are needed, other"):
        nf.Sampler(net, method=odd, steps=3)
    with pytest.raises(ValueError, match="needed not given for 'odd'"):
        nf.Sampler(net, method=odd)
    with pytest.raises(ValueError, match="'odd' returned Tensor; needed is a Table"):
        nf.Sampler(net, method=odd, needed=1)
    with pytest.raises(TypeError, match=r"unknown settings \['wrong'\]"):
        nf.sample(net, 1, method=odd, needed=1, wrong=2)


# --- Every method on the engine.


@pytest.fixture(scope="module")
def digits():
    return nf.load_checkpoint("digits")


def settings_for_digits(method):
    if method == "annealed_langevin":
        return {"steps_per_level": 1}
    return {"step_size": 6e-5} if method == "consistent_annealed" else {"steps": 8}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_draws_digits_whatever_the_batch(digits, method):
    keywords = {"method": method, "seed": 4, "precision": "fp32", **settings_for_digits(method)}
    whole = nf.sample(digits, 5, **keywords)
    assert whole.shape == (5, 1, 8, 8)
    parts = [nf.sample(digits, 2, sample_ids=ids, **keywords) for ids in ([0, 1], [2, 3])]
    assert torch.allclose(whole[:4], torch.cat(parts), atol=1e-5)
    assert float((whole[0] - whole[1]).abs().max()) > 0.1


def pulled(x, sigma):
    return curved(x.double(), sigma.double()[:, None]).float() / sigma[:, None]


def on_engine(method, score=pulled, **settings):
    wrapped = nf.Score(score, "score", "sigma")
    graph = settings.pop("graph", False)
    return nf.Sampler(wrapped, (4,), method=table_of(method, **settings), graph=graph)


@pytest.mark.parametrize("method", METHODS)
def test_captured_or_not_the_samples_are_the_same(method, recorded):
    # Guidance makes it another graph, in which the normalised score itself enters.
    def guidance(x, n, sigma, row):
        return 0.1 * (1 - x)

    calls = [{}, {"guidance": guidance}]
    captured, eager = on_engine(method, graph=True), on_engine(method)
    for call in calls:
        assert torch.equal(captured(3, seed=2, **call), eager(3, seed=2, **call))
    assert len(recorded.captured) == len(calls)


@pytest.mark.parametrize("method", METHODS)
def test_the_engine_runs_a_table_as_the_specification_does(method):
    one = on_engine(method)
    x = start().float()
    z = torch.stack(
        [
            noise_source.normal(
                (4,), seed=9, stream=noise_source.SAMPLER, sample_ids=range(4), step=row
            )
            for row in range(len(one.table))
        ]
    )
    expected = run(one.table, x.double(), z=z.double())
    assert torch.allclose(one(4, seed=9, initial=x).double(), expected, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_guidance_acts_like_a_term_added_to_the_score_in_every_method(method):
    def drift(x):
        return 0.3 * (2 - x)

    x = start().float()
    guided = on_engine(method)(4, seed=1, initial=x, guidance=lambda x, n, sigma, row: drift(x))
    added = on_engine(method, lambda x, sigma: pulled(x, sigma) + drift(x))(4, seed=1, initial=x)
    assert torch.allclose(guided, added, atol=1e-4)
    assert not torch.allclose(guided, on_engine(method)(4, seed=1, initial=x), atol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_holds_the_known_region_at_the_noise_of_its_row(method):
    states = []
    one = on_engine(method)
    mask = torch.tensor([1, 0, 0, 0])
    result = one(
        400,
        seed=1,
        mask=mask,
        known=torch.full((4,), 3.0),
        callback=lambda row, x, n: states.append(x),
    )
    assert torch.equal(result[:, 0], torch.full((400,), 3.0))
    for sigma, x in zip(one.table.sigma, states, strict=True):
        assert float(x[:, 0].std()) == pytest.approx(sigma, rel=0.2)
    assert float(result[:, 1].std()) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_kept_sigmas_end_at_zero(method):
    one = on_engine(method)
    _, states = one(2, seed=0, every=3)
    sigmas = one.kept_sigmas(3)
    assert len(sigmas) == len(states)
    assert sigmas == [*one.table.sigma[::3], 0.0]


def test_a_temperature_needs_noise():
    for method in METHODS:
        table = table_of(method)
        if method in NOISELESS:
            with pytest.raises(ValueError, match="this method adds no noise"):
                table.with_temperature(0.5)
            assert table.with_temperature(1) == table
        else:
            assert table.with_temperature(0.25).d == pytest.approx([d / 2 for d in table.d])


@pytest.mark.parametrize("method", ["predictor_corrector", "heun", "euler", "ancestral"])
def test_a_later_start_runs_the_rest_of_the_table(method):
    one, x = on_engine(method), start().float()
    first = {"predictor_corrector": 10, "heun": 10}.get(method, 5)
    assert one.table.resumptions[5] == first
    rest = nf.Sampler(one.score, (4,), method=one.table[first:])
    z = torch.zeros(4, 4)
    kept = {"initial": x, "noise": lambda row: z}
    assert torch.equal(one(4, start_level=5, **kept), rest(4, **kept))


@pytest.mark.parametrize("settings", [{}, {"eta": 1.0, "solver_type": "heun"}])
def test_a_later_start_of_a_multistep_method_is_that_on_the_levels_that_are_left(settings):
    one, x = on_engine("dpmpp_2m", **settings), start().float()
    rest = make_table("dpmpp_2m", SIGMAS[5:], settings, {})
    row, begun = one.table.begun(5)
    found = begun[row:].rows("cpu", torch.float64)
    torch.testing.assert_close(found, rest.rows("cpu", torch.float64), rtol=1e-12, atol=1e-12)
    z = torch.zeros(4, 4)
    kept = {"initial": x, "noise": lambda row: z}
    other = nf.Sampler(one.score, (4,), SIGMAS[5:], "dpmpp_2m", **settings)
    assert torch.equal(one(4, start_level=5, **kept), other(4, **kept))
    assert one.table.begun(0) == (0, one.table)
    assert 5 not in one.table.resumptions  # a chain that was interrupted has a history there


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("euler", {"steps": 4}, "can begin at the levels 0, 4, 7, 11. Elsewhere"),
        ("euler", {"spacing": "karras"}, "can begin at the levels 0, 11. Elsewhere"),
    ],
)
def test_a_start_where_no_chain_can_begin_is_refused(method, settings, message):
    with pytest.raises(ValueError, match=f"start_level = 5: this method {message}"):
        on_engine(method, **settings)(2, seed=0, start_level=5)


def test_the_documentation_names_every_method_and_setting():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    for method, known in METHODS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{method}` |"))
        settings = set(list(inspect.signature(known.table).parameters)[1:])
        if method == "predictor_corrector":
            settings -= {"steps", "spacing", "rho"}  # "and those three"
        assert all(f"`{name}`" in line for name in settings)


def test_a_network_blind_to_sigma_begins_at_noise_of_the_length_it_removes():
    net = nf.load_checkpoint("digits")
    ids = torch.arange(64)
    plain = noise_source.normal(
        (1, 8, 8), seed=3, stream=noise_source.INITIAL, sample_ids=ids, step=1
    )
    chain = nf.Sampler(net, method="ancestral")
    ode, held = (nf.Sampler(net, method="dpmpp_2m", hold_noise=hold) for hold in (False, True))
    assert torch.equal(chain.first_noise(3, ids), plain)
    z = ode.first_noise(3, ids)
    torch.testing.assert_close(z.flatten(1).norm(dim=1), torch.full((64,), 8.0))
    torch.testing.assert_close(
        z / z.abs().amax((1, 2, 3), True), plain / plain.abs().amax((1, 2, 3), True)
    )
    # Images end in [0, 1] nearly; with plain noise they are far outside, if it is not held.
    kept, rest = (ode(64, seed=3, initial=0.5 + net.sigmas[0] * noise) for noise in (z, plain))
    mended = held(64, seed=3, initial=0.5 + net.sigmas[0] * plain)
    outside = [float((x - x.clamp(0, 1)).square().mean()) for x in (kept, rest, mended)]
    assert outside[0] < outside[1] / 4
    assert outside[2] < outside[1] / 4
