"""What the engine refuses, and what a chain that fails or is stopped says and keeps."""

import copy
import inspect
import logging
import pickle

import pytest
import torch
from engine_cases import SIGMAS, TABLE, gaussian, sampler

import ncsn_fast as nf
from ncsn_fast.device import memory
from ncsn_fast.sampling import chunks, inputs
from ncsn_fast.table import Table


@pytest.mark.parametrize(
    ("call", "told"),
    [
        # 31 rows and the end of 100 samples of 3 values, and the samples: 12 bytes a state.
        ({"n": 100, "every": 1}, "keeps 32 states .* give every = 4 or more, or n = 30 or fewer"),
        ({"n": 400, "every": 40}, "keeps 2 states .* give n = 333 or fewer of the sample_ids"),
        ({"n": 1000, "every": 1}, "are free: give n = 30 or fewer of the sample_ids"),
        ({"n": 1001}, "n = 1001 samples takes .* draw some sample_ids at a time"),
    ],
)
def test_what_a_call_keeps_is_known_before_it_begins(monkeypatch, call, told):
    """Refused before the network is called, with what fits, which is then tried."""
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 12 * 1000)
    calls = []

    def fn(x, labels):
        calls.append(len(x))
        return gaussian(x, labels)

    with pytest.raises(ValueError, match=told):
        sampler(fn)(seed=1, **call)
    assert calls == []
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with pytest.raises(ValueError, match=told):
        sampler(fn)(**call)
    assert torch.equal(torch.rand(1), expected)  # nothing was drawn from torch's generator


@pytest.mark.parametrize("call", [{"n": 100, "every": 4}, {"n": 30, "every": 1}])
def test_what_a_refused_call_advises_is_the_most_that_fits(monkeypatch, call):
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 12 * 1000)
    x, states = sampler()(seed=1, **call)
    assert 4 * (x.numel() + states.numel()) <= 12 * 1000
    more = {"every": call["every"] - 1} if call["every"] > 1 else {"n": call["n"] + 1}
    with pytest.raises(ValueError, match="give every"):
        sampler()(seed=1, **{**call, **more})


def test_an_edited_trajectory_that_does_not_fit_is_refused_before_it_begins(monkeypatch):
    one = sampler()
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 12 * 1000)
    with pytest.raises(ValueError, match="every = 1 keeps 26 states of each of 100 samples"):
        nf.edit(one, torch.rand(100, 3), start_level=2, seed=1, every=1)


def test_a_network_that_writes_into_its_input_is_refused():
    def fn(x, labels):
        return x.mul_(-1.0)

    with pytest.raises(ValueError, match="the network writes into its input"):
        sampler(fn)(2, seed=1)


@pytest.mark.parametrize("target", [0, 1])
def test_guidance_that_writes_into_its_input_is_refused(target):
    with pytest.raises(ValueError, match=r"guidance\(\) writes into its input"):
        sampler()(2, seed=1, guidance=lambda *arguments: arguments[target].mul_(0.5))


def test_a_callback_that_writes_into_the_state_is_refused():
    with pytest.raises(ValueError, match=r"callback\(\) writes into its input"):
        sampler()(2, seed=1, callback=lambda row, x, n: x.zero_())


@pytest.mark.parametrize("answer", [None, (torch.zeros(2, 3),)])
def test_a_network_that_returns_no_tensor_is_refused(answer):
    with pytest.raises(ValueError, match=f"the network returned {type(answer).__name__}"):
        sampler(lambda x, labels: answer)(2, seed=1)


def test_a_sampler_does_not_outlive_the_noise_levels_of_its_network(net):
    other = copy.deepcopy(net)
    old = nf.Sampler(other)
    other.sigmas.mul_(2)
    with pytest.raises(ValueError, match="noise levels have changed since this sampler was made"):
        old(1, seed=0)


def test_errors_keep_finished_samples_and_survive_pickling():
    def fn(x, labels):
        return torch.full_like(x, torch.nan) if len(x) == 1 else gaussian(x, labels)

    with pytest.raises(nf.SamplingError) as error:
        sampler(fn)(5, seed=1, batch_size=2)
    assert error.value.sample_ids == [0, 1, 2, 3]
    assert torch.allclose(error.value.samples, sampler()(4, seed=1), atol=1e-6)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)
    assert torch.equal(again.state, error.value.state)
    stop = pickle.loads(pickle.dumps(nf.SamplingInterrupted(torch.zeros(1), [3], 7)))
    assert (stop.sample_ids, stop.seed) == ([3], 7)


def test_a_failure_that_does_not_repeat_is_reported_as_such():
    calls = []

    def fn(x, labels):
        calls.append(1)
        return torch.full_like(x, torch.nan) if len(calls) == 9 else gaussian(x, labels)

    with pytest.raises(nf.SamplingError, match="a second run went well") as error:
        sampler(fn)(2, seed=1)
    assert torch.isfinite(error.value.state).all()


def test_only_networks_of_ours_are_sampled_in_one_line():
    with pytest.raises(ValueError, match=r"sample\(\) takes a network of ncsn_fast, got function"):
        nf.sample(gaussian, 2)


def test_ctrl_c_keeps_what_is_done():
    def impatient(row, x, n):
        if row == 5 and len(x) == 1:
            raise KeyboardInterrupt

    with pytest.raises(nf.SamplingInterrupted, match="interrupted after 4 samples") as stop:
        sampler()(5, seed=1, sample_ids=range(10, 15), batch_size=2, callback=impatient)
    assert stop.value.sample_ids == [10, 11, 12, 13]
    done = sampler()(4, seed=1, sample_ids=range(10, 14))
    assert torch.allclose(stop.value.samples, done, atol=1e-6)
    assert isinstance(stop.value, KeyboardInterrupt)


@pytest.mark.parametrize("broken_level", [0, 5, 9])
def test_a_network_that_returns_nan_is_found_with_the_last_good_state(broken_level):
    def fn(x, labels):
        s = gaussian(x, labels)
        s[1] = torch.where(labels[1] == broken_level, torch.nan, s[1])
        return s

    row = 3 * broken_level  # the first of the level's three
    x = torch.rand(3, 3)
    with pytest.raises(
        nf.SamplingError, match=rf"after row {row} of 31 .*in sample \[6\]"
    ) as error:
        sampler(fn)(3, seed=1, initial=x, sample_ids=[5, 6, 7])
    assert f"noise level {broken_level}, σ = {TABLE.sigma[row]:g}" in str(error.value)
    assert (error.value.row, error.value.sigma) == (row, TABLE.sigma[row])
    assert error.value.state_ids == [5, 6, 7]
    assert error.value.sample_ids == []
    _, states = sampler()(3, seed=1, initial=x, sample_ids=[5, 6, 7], every=1)
    assert torch.equal(error.value.state, states[row])


def test_a_guidance_that_returns_nan_may_be_what_broke():
    with pytest.raises(nf.SamplingError, match="the network or the guidance returned NaN"):
        sampler()(2, seed=0, guidance=lambda x, n, sigma, row: x * torch.nan)


def test_a_chain_that_overflows_is_found():
    table = Table.of([1.0] * 40, a=1e3)
    with pytest.raises(nf.SamplingError, match=r"after row 12 of 40 .*the chain diverged"):
        sampler(table=table, score=nf.Score(torch.zeros_like, "score", "none"))(
            2, seed=0, initial=torch.ones(2, 3)
        )


def test_a_chunk_that_does_not_fit_is_halved_and_said_once(caplog):
    def small(x, labels):
        if len(x) > 2:
            raise torch.OutOfMemoryError("does not fit")
        return gaussian(x, labels)

    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        result = sampler(small)(8, seed=1, batch_size=8)
    assert torch.allclose(result, sampler()(8, seed=1), atol=1e-6)
    assert [r.message for r in caplog.records] == [
        "8 samples at once do not fit in memory: going on with 4, or fewer if need be "
        "(batch_size= avoids this)"
    ]


def test_what_fits_is_found_once_by_each_sampler_and_changes_no_sample(caplog):
    """Two processes with half of the samples each, in calls of eight: one halves its chunks, once,
    the other never; the score is computed value by value, so that samples are equal bit for bit."""
    seen = []

    def small(x, labels):
        seen.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("does not fit")
        return gaussian(x, labels)

    whole = sampler()(32, seed=1)
    narrow, wide = sampler(small), sampler()
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        for first in (0, 16):
            ids = range(first, first + 8)
            assert torch.equal(narrow(8, seed=1, sample_ids=ids), whole[first : first + 8])
            ids = range(first + 8, first + 16)
            assert torch.equal(wide(8, seed=1, sample_ids=ids), whole[first + 8 : first + 16])
    assert len(caplog.records) == 1
    assert [size for size in seen if size > 3] == [8, 4]
    narrow.release()
    narrow(8, seed=1)
    assert [size for size in seen if size > 3] == [8, 4, 8, 4]


def test_samples_that_belong_together_are_never_cut(monkeypatch):
    """As nodes of molecules, whose network sees all of them."""
    together, seen = torch.arange(8) % 3, []

    def centred(x, sigma, together, room=8):
        seen.append(len(x))
        if len(x) > room:
            raise torch.OutOfMemoryError("does not fit")
        mean = torch.zeros(3, 3).index_add(0, together, x) / together.bincount()[:, None]
        return (mean[together] - x) / (1 + sigma[:, None] ** 2)

    def drawn(**call):
        made = nf.Sampler(nf.Score(centred, "score", "sigma"), (3,), SIGMAS, TABLE)
        return made(8, seed=1, **{"extra": {"together": together}, **call})

    whole = drawn(batch_size="all")
    monkeypatch.setattr(chunks, "_AUTO_ELEMENTS", {"cpu": 4 * 3, "cuda": 4 * 3})
    assert (drawn() - whole).abs().max() > 0.1  # cut, which this network must not be
    seen.clear()
    assert torch.equal(drawn(batch_size="all"), whole)
    assert set(seen) == {8}
    seen.clear()
    with pytest.raises(RuntimeError, match="8 samples at once do not fit in memory: give fewer"):
        drawn(batch_size="all", shared={"room": 4})
    assert seen == [8]


@pytest.mark.parametrize(
    ("x", "keywords", "message"),
    [
        (torch.zeros(3), {}, r"x has shape \(3,\): give \(N, \*shape\)"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, "floating-point"),
        (torch.full((3, 2), torch.nan), {}, "not finite"),
        (torch.zeros(3, 2), {"first_step": -1}, "first_step = -1"),
        (torch.zeros(3, 2), {"seed": -1}, "seed = -1"),
    ],
)
def test_langevin_refuses_what_makes_no_sense(x, keywords, message):
    with pytest.raises(ValueError, match=message):
        nf.langevin(lambda x: -x, x, 0.1, 3, **keywords)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s(0), "n = 0: give a whole number of at least 1"),
        (lambda s: s(2.0), "n = 2.0"),
        (lambda s: s(2, seed=-1), "seed = -1"),
        (lambda s: s(2, sample_ids=[1]), "1 sample_ids for n = 2"),
        (lambda s: s(2, sample_ids=[1, 1]), "sample_ids repeat"),
        (lambda s: s(2, sample_ids=[-1, 1]), "sample ids from -1 to 1"),
        (
            lambda s: s(2, initial=torch.rand(2, 4)),
            r"initial has shape \(2, 4\); needed is \(2, 3\)",
        ),
        (lambda s: s(2, initial=torch.zeros(2, 3, dtype=torch.int64)), "floating-point"),
        (lambda s: s(2, initial=torch.full((2, 3), torch.nan)), "not finite"),
        (
            lambda s: s(2, initial=torch.rand(2, 3, device="meta")),
            "initial is on meta, the sampler on cpu",
        ),
        (lambda s: s(2, start_level=10), "can begin at the levels 0 to 9"),
        (lambda s: s(2, start_level=-1), "start_level = -1"),
        (lambda s: s(2, mask=torch.ones(3)), "mask and known belong together"),
        (lambda s: s(2, mask=torch.full((3,), 0.5), known=torch.zeros(3)), "other than 0 and 1"),
        (lambda s: s(2, mask=torch.ones(4), known=torch.zeros(3)), "mask has shape .* broadcast"),
        (lambda s: s(2, mask=torch.ones(3), known=torch.zeros(5)), "known has shape .* broadcast"),
        (
            lambda s: s(2, mask=torch.ones(3, device="meta"), known=torch.zeros(3)),
            "mask is on meta",
        ),
        (lambda s: s(2, clip=0.0), "clip = 0.0"),
        (lambda s: s(2, temperature=-1.0), "temperature = -1"),
        (lambda s: s(2, every=0), "every = 0"),
        (lambda s: s(2, batch_size=0), "batch_size = 0"),
        (lambda s: s(2, batch_size="big"), r"batch_size = 'big': give a number.*\('auto', 'all'\)"),
        (lambda s: s(2, noise=lambda row: torch.zeros(3)), r"noise\(\) returned \(3,\)"),
        (lambda s: s(2, guidance=lambda *a: torch.zeros(3)), r"guidance\(\) returned \(3,\)"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(sampler())


def test_input_is_refused_before_the_network_is_run():
    def never(x, labels):
        raise AssertionError("the network was run")

    with pytest.raises(ValueError, match="clip"):
        sampler(never)(2, clip=-1.0)


KEYS = {"step_size": 1e-5, "steps_per_level": 2}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": "magic", **KEYS}, "method = 'magic' is unknown; choose one of"),
        ({"step_size": 2e-4, "steps_per_level": 2}, "every chain diverges"),
        ({"step_size": -1.0, "steps_per_level": 2}, "step_size = -1"),
        ({"steps_per_level": 2}, r"step_size not given for .*nf.auto_schedule\(data\)"),
        ({}, "step_size and steps_per_level not given"),
        ({**KEYS, "shape": None}, "shape is not known"),
        ({**KEYS, "shape": (3, 0)}, "shape = 0"),
        ({**KEYS, "sigmas": None}, "sigmas are not known"),
        ({**KEYS, "sigmas": [1.0, 2.0]}, "noise levels descend"),
        ({"method": TABLE, "step_size": 1e-5}, "given beside a table"),
        ({**KEYS, "precision": "fp8"}, "precision = 'fp8' is unknown; choose one of"),
        ({**KEYS, "graph": True}, "graph=True: graphs are captured on CUDA devices"),
        ({**KEYS, "graph": "yes"}, "graph = 'yes': "),
    ],
)
def test_a_sampler_that_makes_no_sense_is_refused(keywords, message):
    settings = {"shape": (3,), "sigmas": SIGMAS, **keywords}
    with pytest.raises(ValueError, match=message):
        nf.Sampler(gaussian, **settings)


def test_an_unknown_setting_of_sample_is_refused(net):
    with pytest.raises(TypeError, match=r"unknown settings \['step_sise'\]; known: .*'step_size'"):
        nf.sample(net, 2, step_sise=1e-5)


def test_sample_spells_out_every_keyword_of_a_sampler_and_its_call():
    def keywords(function):
        given = inspect.signature(function).parameters.values()
        return {one.name: one for one in given if one.name not in ("self", "score", "net", "n")}

    made, called, both = map(keywords, (nf.Sampler.__init__, nf.Sampler.__call__, nf.sample))
    assert made.keys() | called.keys() == both.keys()
    for name, one in both.items():
        own = made.get(name, called.get(name))
        assert (one.default, one.annotation) == (own.default, own.annotation), name
    assert inputs.Call.__annotations__.keys() == called.keys() - {"every"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:, :2], r"returned \(2, 2\) on cpu; needed is \(2, 3\)"),
        (lambda x: x.to("meta"), "on meta; needed is .* on cpu"),
    ],
)
def test_a_network_of_another_shape_or_device_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        sampler(lambda x, labels: answer(x))(2, seed=0)
