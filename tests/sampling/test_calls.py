"""What the engine computes: every column of a table, every argument of a call."""

import copy
import math
import sys
from itertools import pairwise

import pytest
import torch
from engine_cases import SIGMAS, TABLE, gaussian, sampler

import ncsn_fast as nf
from ncsn_fast import noise as noise_source
from ncsn_fast.methods.tables import annealed_langevin, langevin
from ncsn_fast.table import Table


def chain_by_hand(x, seed, sample_ids, table=TABLE, score=gaussian):
    """Annealed Langevin dynamics as the official code writes it, with this engine's noise."""
    for row in range(len(table)):
        sigma, level = table.sigma[row], table.level[row]
        s = score(x, torch.full((len(x),), level))
        if row == len(table) - 1:
            return x + sigma**2 * s
        alpha = 2e-5 * (sigma / table.sigma[-1]) ** 2
        z = noise_source.normal(
            x.shape[1:], seed=seed, stream=noise_source.SAMPLER, sample_ids=sample_ids, step=row
        )
        x = x + alpha * s + math.sqrt(2 * alpha) * z
    raise AssertionError


def test_annealed_langevin_equals_the_official_loop_written_out():
    x = torch.rand(4, 3)
    result = sampler()(4, seed=7, initial=x)
    assert torch.allclose(result, chain_by_hand(x, 7, range(4)), atol=1e-5)


def test_samples_are_the_same_however_the_batch_is_cut(net):
    whole = nf.sample(net, 64, seed=3)
    by_ids = torch.cat(
        [nf.sample(net, 16, seed=3, sample_ids=range(i, i + 16)) for i in (0, 16, 32, 48)]
    )
    by_chunks = nf.sample(net, 64, seed=3, batch_size=16)
    assert whole.shape == (64, 1, 8, 8)
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1
    assert float((whole - by_ids).abs().max()) < 1e-5
    assert float((whole - by_chunks).abs().max()) < 1e-5
    assert float((whole[0] - whole[1]).abs().max()) > 0.1


def test_the_noise_is_the_same_bit_for_bit_however_the_batch_is_cut():
    def still(x, labels):
        return torch.zeros_like(x)

    whole = sampler(still)(10, seed=3)
    parts = torch.cat([sampler(still)(5, seed=3, sample_ids=range(i, i + 5)) for i in (0, 5)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, sampler(still)(10, seed=3, batch_size=3))
    assert torch.equal(whole.flip(0), sampler(still)(10, seed=3, sample_ids=range(9, -1, -1)))


def test_numpys_integers_are_integers():
    import numpy as np

    one, four, seed = np.int64(1), np.int32(4), np.uint64(2**63 + 1)
    given = sampler()(four, seed=seed, sample_ids=np.arange(4), batch_size=one, every=four)
    plain = sampler()(4, seed=2**63 + 1, sample_ids=range(4), batch_size=1, every=4)
    assert torch.equal(given[0], plain[0])
    assert torch.equal(given[1], plain[1])


def heun(ladder):
    """The probability flow ODE dx = -n dσ by Heun's method, in rows of one evaluation each.

    Row 1 is the Euler step and remembers n; row 2, evaluated at its end, corrects: with the step
    h = σ_i - σ_{i+1} and x_euler = x + h·n, Heun's result is x_euler + h/2·(n' - n).
    """
    rows = []
    for high, low in pairwise(ladder):
        step = high - low
        rows.append(Table.of([high], b=step, f=1.0))
        rows.append(Table.of([low], b=step / 2, c=-step / 2))
    table = rows[0]
    for more in rows[1:]:
        table = table + more
    return table


def test_a_heun_table_with_its_history_equals_heuns_method():
    ladder = [5.0, 2.0, 0.8, 0.3, 0.1]

    def s(x, sigma):
        return -x / (1 + sigma**2)

    score = nf.Score(lambda x, sigma: s(x, sigma[:, None]), "score", "sigma")
    x = torch.linspace(-3, 3, 8).view(4, 2)
    result = nf.Sampler(score, (2,), method=heun(ladder))(4, seed=0, initial=x)
    for high, low in pairwise(ladder):
        n = high * s(x, high)
        euler = x + (high - low) * n
        x = x + (high - low) / 2 * (n + low * s(euler, low))
    assert torch.allclose(result, x, atol=1e-6)


def test_the_network_sees_the_scaled_state():
    seen = []

    def fn(x):
        seen.append(x)
        return torch.ones_like(x)

    table = Table.of([2.0, 1.0], b=0.5, c_in=[0.25, 0.5])
    nf.Sampler(nf.Score(fn, "normalized", "none"), (2,), method=table)(
        1, seed=0, initial=torch.ones(1, 2)
    )
    assert seen[0].tolist() == [[0.25, 0.25]]
    assert seen[1].tolist() == [[0.75, 0.75]]


@pytest.mark.parametrize("kind", ["score", "normalized", "epsilon", "denoiser"])
def test_every_parametrisation_gives_the_same_samples(kind):
    def fn(x, sigma):
        sigma = sigma[:, None]
        s = -x / (1 + sigma**2)
        answers = {
            "score": s,
            "normalized": sigma * s,
            "epsilon": -sigma * s,
            "denoiser": x + sigma**2 * s,
        }
        return answers[kind]

    table = annealed_langevin(SIGMAS, 2e-5, 3)
    one = nf.Sampler(nf.Score(fn, kind, "sigma"), (3,), method=table)
    x = torch.rand(5, 3)
    assert torch.allclose(one(5, seed=2, initial=x), sampler()(5, seed=2, initial=x), atol=1e-4)
    # Seen by a callback, the normalised score is the same too.
    seen = []
    one(5, seed=2, initial=x, callback=lambda row, x, n: seen.append(n) if row == 0 else None)
    assert torch.allclose(seen[0], -5 * x / 26, atol=1e-5)


def test_guidance_acts_like_a_term_added_to_the_score():
    pull = torch.tensor([1.0, -2.0, 0.5])

    def guidance(x, n, sigma, row):
        assert sigma == TABLE.sigma[row]
        return (pull - x) / 10

    def added(x, labels):
        return gaussian(x, labels) + (pull - x) / 10

    x = torch.rand(4, 3)
    guided = sampler()(4, seed=1, initial=x, guidance=guidance)
    assert torch.allclose(guided, sampler(added)(4, seed=1, initial=x), atol=1e-5)
    assert not torch.allclose(guided, sampler()(4, seed=1, initial=x), atol=1e-2)


def test_guidance_may_differentiate_through_the_network():
    def guidance(x, n, sigma, row):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(-(leaf**2).sum(), leaf)[0]

    assert torch.isfinite(sampler()(2, seed=1, guidance=guidance)).all()


def test_clipping_bounds_the_score_of_each_sample():
    norms = []

    def look(row, x, n):
        norms.append(n.norm(dim=1) / TABLE.sigma[row])

    big = torch.tensor([[1e-3, 0.0, 0.0], [100.0, 0.0, 0.0]])
    sampler()(2, seed=1, initial=big, clip=1.0, callback=look)
    first = norms[0]
    assert float(torch.stack(norms).max()) <= 1 + 1e-5
    assert float(first[0]) == pytest.approx(1e-3 / 26, rel=1e-4)


def test_temperature_zero_walks_without_noise():
    x = torch.rand(2, 3)
    cold = sampler()(2, seed=1, initial=x, temperature=0)
    assert torch.equal(cold, sampler()(2, seed=2, initial=x, temperature=0))


def test_given_noise_replaces_the_engines():
    torch.manual_seed(3)
    noises = torch.randn(len(TABLE), 4, 3)
    asked = []

    def noise(row):
        asked.append(row)
        return noises[row]

    def still(x, labels):
        return torch.zeros_like(x)

    x = torch.zeros(4, 3)
    result = sampler(still)(4, seed=0, initial=x, noise=noise)
    assert asked == list(range(len(TABLE) - 1))  # the denoising row has none
    expected = sum(d * z for d, z in zip(TABLE.d[:-1], noises, strict=False))
    assert torch.allclose(result, expected, atol=1e-5)
    assert torch.equal(result, sampler(still)(4, seed=0, initial=x, noise=noise, batch_size=3))


def test_every_kth_state_is_kept_with_the_first_and_the_last():
    x = torch.rand(5, 3)
    states = [x]
    sampler()(5, seed=1, initial=x, callback=lambda row, x, n: states.append(x))
    states = [*states[1:], sampler()(5, seed=1, initial=x)]
    for k in (1, 4, 31, 100):
        final, kept = sampler()(5, seed=1, initial=x, every=k, batch_size=2)
        wanted = [*range(0, 31, k), 31]
        assert kept.shape == (len(wanted), 5, 3)
        assert kept.device.type == "cpu"
        assert torch.allclose(kept, torch.stack([states[row] for row in wanted]), atol=1e-6)
        assert torch.equal(kept[-1], final)


def test_a_callback_sees_row_state_and_normalised_score():
    seen = []
    x = torch.rand(2, 3)
    result = sampler()(2, seed=1, initial=x, callback=lambda *args: seen.append(args))
    assert [row for row, _, _ in seen] == list(range(len(TABLE)))
    assert torch.equal(seen[0][1], x)
    assert torch.allclose(seen[0][2], -5 * x / 26, atol=1e-6)
    assert torch.allclose(result, sampler()(2, seed=1, initial=x), atol=1e-6)


def test_the_known_region_is_held_and_exact_at_the_end():
    known = torch.tensor([3.0, 0.0, 0.0])
    mask = torch.tensor([1, 0, 0])
    states = []
    result = sampler()(
        500, seed=1, mask=mask, known=known, callback=lambda row, x, n: states.append(x)
    )
    assert torch.equal(result[:, 0], torch.full((500,), 3.0))
    assert float(result[:, 1].abs().max()) > 0.1
    for row in (0, 15, len(TABLE) - 1):
        held = states[row][:, 0]
        assert float(held.mean()) == pytest.approx(3.0, abs=0.2 * TABLE.sigma[row] + 1e-3)
        assert float(held.std()) == pytest.approx(TABLE.sigma[row], rel=0.15)


def test_the_known_region_is_the_same_however_the_batch_is_cut():
    known = torch.arange(15.0).view(5, 3)
    mask = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]])

    def run(**keywords):
        return sampler()(5, seed=1, mask=mask, known=known, **keywords)

    assert torch.allclose(run(batch_size=2), run(), atol=1e-6)
    held = mask.bool()
    assert torch.equal(run(batch_size=2)[held], known[held])


def test_callbacks_and_guidance_may_be_empty_containers():
    class Recorder(list):
        def __call__(self, row, x, n):
            self.append(n)

    class Push(list):
        def __call__(self, x, n, sigma, row):
            return torch.ones_like(x)

    recorder, x = Recorder(), torch.rand(2, 3)
    sampler()(2, seed=1, initial=x, callback=recorder)
    assert torch.allclose(recorder[0], -5 * x / 26, atol=1e-6)
    pushed = sampler()(2, seed=1, initial=x, guidance=Push())
    assert not torch.allclose(pushed, sampler()(2, seed=1, initial=x), atol=0.1)


def test_guidance_in_double_precision_leaves_the_state_single():
    dtypes = set()

    def fn(x, labels):
        dtypes.add(x.dtype)
        return gaussian(x, labels)

    sampler(fn)(2, seed=1, guidance=lambda x, n, sigma, row: x.double())
    assert dtypes == {torch.float32}


def test_sampling_works_inside_inference_mode(net):
    from ncsn_fast.compat.ncsnv2 import anneal_Langevin_dynamics

    x = torch.rand(2, 3)
    expected = nf.sample(net, 2, seed=1), nf.langevin(lambda x: -x, x, 0.1, 3, seed=1)
    with torch.inference_mode():
        assert torch.equal(nf.sample(net, 2, seed=1), expected[0])
        assert torch.equal(nf.langevin(lambda x: -x, x, 0.1, 3, seed=1), expected[1])
        states = anneal_Langevin_dynamics(x, gaussian, SIGMAS.numpy(), 1, seed=1)
    assert len(states) == 11


def test_results_are_single_precision_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        x, states = sampler()(2, seed=1, every=10)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (x.dtype, states.dtype) == (torch.float32, torch.float32)
    assert torch.equal(x, sampler()(2, seed=1))


def test_new_weights_are_followed(net):
    other = copy.deepcopy(net)
    one = nf.Sampler(other)
    before = one(1, seed=0)
    with torch.no_grad():
        other.end_conv.bias += 1
    assert not torch.allclose(one(1, seed=0), before, atol=0.1)
    assert torch.equal(one(1, seed=0), nf.Sampler(other)(1, seed=0))


def test_noise_made_ahead_is_the_noise_of_each_row(monkeypatch):
    from ncsn_fast.sampling import step

    x = torch.rand(3, 3)
    ahead = sampler()(3, seed=1, initial=x)
    monkeypatch.setattr(step, "_MOST_AHEAD", 7)
    assert torch.equal(sampler()(3, seed=1, initial=x), ahead)
    monkeypatch.setattr(step, "_MOST_AHEAD", 1)
    assert torch.equal(sampler()(3, seed=1, initial=x), ahead)


def test_sample_converts_the_trajectory_and_what_an_interruption_leaves():
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS, rescaled=True)
    settings = {"step_size": 2e-5, "steps_per_level": 1, "seed": 0, "batch_size": 1}
    x, states = nf.sample(net, 3, every=5, **settings)
    assert torch.equal(states[-1], x)
    assert float(states.min()) >= 0
    assert float(states.max()) <= 1

    counted = []

    def impatient(row, x, n):
        counted.append(row)
        if len(counted) > 25:
            raise KeyboardInterrupt

    with pytest.raises(nf.SamplingInterrupted) as stop:
        nf.sample(net, 3, callback=impatient, **settings)
    assert torch.allclose(stop.value.samples, x[:2], atol=1e-5)
    assert stop.value.seed == 0


def test_kept_sigmas_belong_to_the_kept_states(net):
    one = nf.Sampler(net)
    _, states = one(1, seed=0, every=7)
    sigmas = one.kept_sigmas(7)
    assert len(sigmas) == len(states)
    assert sigmas == [*TABLE.sigma[::7], 0.0]
    assert nf.Sampler(net, denoise=False).kept_sigmas(50)[-1] == TABLE.sigma[-1]


def test_the_automatic_chunk_shrinks_with_the_size_of_a_sample():
    def chunk(shape):
        return sampler(shape=shape).chunk_size(10**6)

    assert chunk((2,)) > 10 * chunk((3, 32, 32)) > 100
    assert chunk((3, 1024, 1024)) == 1


def test_extra_inputs_reach_the_network_chunked_with_the_batch():
    seen = []

    def fn(x, labels, classes, scale):
        assert classes.shape == x.shape[:1]
        seen.append((classes.tolist(), scale))
        return torch.zeros_like(x)

    one = nf.Sampler(fn, (2,), [1.0, 0.5], step_size=0.1, steps_per_level=1, denoise=False)
    shared = torch.tensor([7.0])
    one(3, seed=0, batch_size=2, extra={"classes": torch.arange(3), "scale": shared})
    assert seen == [([0, 1], shared)] * 2 + [([2], shared)] * 2


def test_progress_counts_rows_and_samples():
    counts = []
    sampler()(4, seed=0, batch_size=2, progress=lambda done, total: counts.append((done, total)))
    total = 4 * len(TABLE)
    assert counts[-1] == (total, total)
    assert [done for done, _ in counts] == list(range(2, total + 1, 2))


def test_a_progress_bar_is_drawn_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sampler()(2, seed=0, progress=True)
    captured = capsys.readouterr()
    assert "step" in captured.err
    assert captured.out == ""


def test_the_network_samples_in_evaluation_mode_and_is_put_back():
    class Moody(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Dropout(0.5)
            self.inner.eval()
            self.modes = set()

        def forward(self, x, labels):
            self.modes.add((self.training, self.inner.training))
            return gaussian(x, labels)

    net = Moody()
    assert (net.training, net.inner.training) == (True, False)
    nf.Sampler(net, (3,), SIGMAS, method=TABLE)(2, seed=0)
    assert net.modes == {(False, False)}
    assert (net.training, net.inner.training) == (True, False)


def test_no_gradient_is_recorded(net):
    assert not nf.sample(net, 1, seed=0).requires_grad


def test_langevin_reaches_the_law_of_its_score():
    x = torch.zeros(4000, 2)
    result = nf.langevin(lambda x: -(x - 3) / 0.25, x, 0.01, 400, seed=1)
    assert result.mean(0).tolist() == pytest.approx([3, 3], abs=0.04)
    # The discretised chain has the variance 0.25 / (1 - α/(2·0.25)).
    assert result.var(0).tolist() == pytest.approx([0.255, 0.255], rel=0.06)


def test_plain_tables_run_on_the_engine_unchanged():
    table = langevin(0.05, 50)
    one = nf.Sampler(nf.Score(lambda x: -x, "score", "none"), (2,), method=table)
    x = torch.rand(3, 2)
    expected = nf.langevin(lambda x: -x, x, 0.05, 50, seed=6)
    assert torch.equal(one(3, seed=6, initial=x), expected)
