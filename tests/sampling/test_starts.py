"""Where chains begin: the default states, later levels, the seed, a checkpoint's settings."""

import math

import pytest
import torch
from engine_cases import SIGMAS, TABLE, gaussian, sampler

import ncsn_fast as nf
from ncsn_fast import noise as noise_source
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.table import Table


def test_annealed_langevin_starts_uniform_as_published():
    states = []
    named = nf.Sampler(gaussian, (3,), SIGMAS, step_size=2e-5, steps_per_level=3)
    named(100, seed=1, callback=lambda row, x, n: states.append(x))
    expected = noise_source.uniform(
        (3,), seed=1, stream=noise_source.INITIAL, sample_ids=range(100)
    )
    assert torch.equal(states[0], expected)


def test_a_network_of_rescaled_images_starts_from_rescaled_noise():
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS, rescaled=True)
    states = []
    sampler = nf.Sampler(net, step_size=2e-5, steps_per_level=3)
    sampler(4, seed=1, callback=lambda row, x, n: states.append(x))
    u = noise_source.uniform((1, 8, 8), seed=1, stream=noise_source.INITIAL, sample_ids=range(4))
    assert torch.allclose(states[0], 2 * u - 1)


def test_without_a_seed_torch_governs_and_the_seed_is_reported():
    first = sampler()
    torch.manual_seed(1)
    a, b = first(4), first(4)
    assert not torch.equal(a, b)
    torch.manual_seed(1)
    assert torch.equal(first(4), a)
    reported = first.seed
    assert torch.equal(first(4, seed=reported), a)


def test_settings_come_from_the_checkpoint_unless_given(net):
    assert nf.Sampler(net).table == TABLE
    assert nf.Sampler(net, denoise=False).table == TABLE[:-1]
    assert nf.Sampler(net, steps_per_level=2).table == annealed_langevin(SIGMAS, 2e-5, 2)


def test_a_sampler_says_where_the_samples_of_a_seed_begin():
    states = []
    table = Table.of([2.0, 1.0], level=[0, 1], b=0.0)
    chains = nf.Sampler(nf.Score(lambda x: x, "score", "none"), (3,), method=table)
    chains(5, seed=1, start_level=1, callback=lambda row, x, n: states.append(x))
    ids = torch.arange(5)
    u = noise_source.uniform((3,), seed=1, stream=noise_source.INITIAL, sample_ids=ids)
    assert torch.equal(chains.first_states(1, ids, row=1), states[0])
    assert torch.equal(chains.first_states(1, ids), u + 2 * chains.first_noise(1, ids))


def test_other_tables_start_from_the_noise_of_their_first_level():
    states = []
    table = Table.of([2.0], b=0.0)
    nf.Sampler(nf.Score(lambda x: x, "score", "none"), (3,), method=table)(
        2000, seed=1, callback=lambda row, x, n: states.append(x)
    )
    assert float(states[0].mean()) == pytest.approx(0.5, abs=0.1)
    assert float(states[0].var()) == pytest.approx(4 + 1 / 12, rel=0.05)


def test_a_chain_may_start_at_a_later_level_with_the_same_noise():
    late = []
    x = torch.rand(2, 3)
    result = sampler()(
        2, seed=1, initial=x, start_level=4, callback=lambda row, x, n: late.append(row)
    )
    assert late == list(range(12, 31))
    # The rest of a whole chain, continued from its state at that level, is the same.
    _, states = sampler()(2, seed=1, initial=x, every=12)
    again = sampler()(2, seed=1, initial=states[1], start_level=4)
    assert torch.equal(again, sampler()(2, seed=1, initial=x))
    assert not torch.equal(result, again)


@pytest.mark.parametrize("first", [0, 12])
def test_the_known_region_is_noised_by_its_own_stream_and_step(first):
    states = {}
    sampler()(
        3,
        seed=1,
        initial=torch.zeros(3, 3),
        start_level=first // 3,
        mask=torch.ones(3),
        known=torch.full((3,), 2.0),
        callback=lambda row, x, n: states.update({row: x}),
    )
    for row in (first, first + 1, 30):
        z = noise_source.normal(
            (3,), seed=1, stream=noise_source.KNOWN, sample_ids=range(3), step=row
        )
        assert torch.allclose(states[row], 2 + TABLE.sigma[row] * z, atol=1e-6)


def test_a_later_start_scales_and_noises_by_its_own_row():
    table = Table.of([5.0, 0.1], b=0.0, c_in=[0.2, 0.5], level=[0, 1])
    seen, states = [], []

    def fn(x):
        seen.append(x)
        return torch.zeros_like(x)

    nf.Sampler(nf.Score(fn, "score", "none"), (3,), method=table)(
        1000, seed=1, start_level=1, callback=lambda row, x, n: states.append(x)
    )
    assert torch.equal(seen[0], 0.5 * states[0])
    assert float(states[0].std()) == pytest.approx(math.sqrt(1 / 12 + 0.01), rel=0.1)


def test_off_ladder_rows_are_no_level_to_start_at():
    table = Table.of([1.0, 0.5], level=[0, -1])
    with pytest.raises(
        ValueError, match="start_level = -1: this method can begin at the levels 0 to 0"
    ):
        nf.Sampler(nf.Score(torch.zeros_like, "score", "none"), (3,), method=table)(
            1, seed=0, start_level=-1
        )


def test_a_refused_call_leaves_torchs_generator_alone():
    one = sampler()
    torch.manual_seed(1)
    expected = one(2)
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="n = 0"):
        one(0)
    assert torch.equal(one(2), expected)


def test_langevin_continues_where_it_stopped():
    x = torch.rand(5, 2)

    def score(x):
        return -x

    whole = nf.langevin(score, x, 0.1, 10, seed=4)
    half = nf.langevin(score, x, 0.1, 4, seed=4)
    assert torch.equal(nf.langevin(score, half, 0.1, 6, seed=4, first_step=4), whole)
