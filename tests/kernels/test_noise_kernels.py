"""Noise in the kernels: Philox's words and the normals made of them, against noise.py."""

import itertools

import pytest
import torch
from cases.common import (
    FAST_MATH_LIMIT,
    SEED,
    STEP,
    Buffers,
    every_native_way,
    every_triton_way,
    normal,
)
from cases.states import KNOWN_ANSWERS, which_noise

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.device import native
from ncsn_fast.noise import PERTURB


def keys(count):
    """Seed, step and sample ids, where the kernels of the CPU read them."""
    return which_noise(count, Buffers("cpu")).values()


@every_triton_way
def test_words_are_those_of_philox(way):
    from cases.philox import check_words

    check_words(way.device)


@every_triton_way
def test_normals_are_accurate(way):
    from cases.philox import normals_error

    limit = FAST_MATH_LIMIT if way.fast_math else 2e-6
    assert normals_error(way.device, way.fast_math) < limit


@pytest.mark.gpu
def test_the_error_of_fast_mathematics_stays_below_its_limit(record_property):
    """2²⁶ draws, 2²² at a time; the figure is in the property ``fast_math_error``."""
    from ncsn_fast.kernels.triton.perturb import perturb

    count = 1 << 22
    x, one = torch.zeros(1, count, device="cuda"), torch.ones(1, device="cuda")
    out, ids = torch.empty_like(x), torch.tensor([7], device="cuda")
    seed, largest = torch.tensor(SEED - (1 << 64), device="cuda"), 0.0
    for step in range(16):
        perturb(x, one, seed, torch.tensor(step, device="cuda"), ids, out, fast_math=True)
        which = {"seed": SEED, "stream": PERTURB, "sample_ids": ids, "step": step}
        exact = noise.normal((count,), **which, dtype=torch.float64)
        largest = max(largest, float((out - exact).abs().max()))
    record_property("fast_math_error", largest)
    print(f"fast mathematics: largest error of 2^26 normals {largest:.3g}")
    assert largest < FAST_MATH_LIMIT


@every_native_way
@pytest.mark.parametrize("count", [1, 64, 130])
def test_words_of_the_cpu_are_those_of_philox(way, count):
    generator = torch.Generator().manual_seed(3)
    counters = torch.randint(0, 1 << 32, (count, 4), generator=generator)
    key = (SEED & 0xFFFFFFFF, SEED >> 32)
    expected = torch.stack(noise.philox4x32(key, tuple(counters.T)), 1)
    assert torch.equal(native.ops().words(SEED - (1 << 64), counters), expected)


@every_native_way
def test_words_of_the_cpu_are_the_published_ones(way):
    for (k0, k1, *counter), answer in KNOWN_ANSWERS:
        seed = noise.seed_tensor(k0 | k1 << 32, torch.device("cpu"))
        words = native.ops().words(int(seed), torch.tensor([counter]))[0].tolist()
        assert " ".join(f"{word:08x}" for word in words) == answer


@every_native_way
def test_normals_of_the_cpu_are_accurate(way):
    seed, step, ids = keys(2)
    sizes = (2, 1 << 20)
    found = native.ops().normal(ids, sizes, int(seed), [int(step)], noise.SAMPLER).double()
    exact = normal((2, 1 << 20), noise.SAMPLER, STEP, torch.float64)
    assert (found - exact).abs().max() < 2e-6


@every_native_way
@pytest.mark.parametrize("shape", [(3, 1), (130, 3), (2, 5, 7), (1, 4099), (70, 260)])
def test_normals_are_those_of_their_samples(way, shape):
    seed, step, ids = keys(shape[0])
    which = int(seed), [int(step)], noise.KNOWN
    found = native.ops().normal(ids, shape, *which)
    exact = normal(shape, noise.KNOWN, STEP, torch.float64)
    assert (found.double() - exact).abs().max() < 2e-6
    for i in (0, shape[0] - 1):
        alone = native.ops().normal(ids[i : i + 1], (1, *shape[1:]), *which)
        assert torch.equal(alone[0], found[i])


@every_native_way
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (4,), (5,), (2, 5, 7), (4099,)])
@pytest.mark.parametrize("step", [STEP, torch.tensor([3, 0, STEP]), torch.tensor([[7], [8]])])
def test_kernels_draw_what_is_specified(way, shape, step):
    """Uniforms to the bit, normals closely, for one step and for several."""
    wide = torch.arange(2 * 67).mul_(1 << 41).remainder_(1 << 48)
    which = {"seed": SEED, "stream": noise.PERTURB, "sample_ids": wide[::2], "step": step}
    u, z = noise.uniform(shape, **which), noise.normal(shape, **which)
    with nf.use_backend("torch"):
        assert torch.equal(u, noise.uniform(shape, **which))
        torch.testing.assert_close(z, noise.normal(shape, **which), atol=5e-5, rtol=0)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(noise.uniform(shape, **which, dtype=dtype), u.to(dtype))
        assert torch.equal(noise.normal(shape, **which, dtype=dtype), z.to(dtype))


@every_native_way
def test_the_largest_words_give_uniforms_below_one(way):
    which = {"seed": 5, "stream": noise.PERTURB, "sample_ids": [975_662]}
    u = noise.uniform((4,), **which)
    assert noise.integers(1 << 31, (4,), **which)[0, 1] > (1 << 31) - 10
    assert u[0, 1] == 1 - 2.0**-24


@pytest.mark.native
def test_sizes_that_are_not_of_the_samples_and_steps_are_refused():
    ids = torch.arange(3)
    for sizes, steps in (((2, 5), [0]), ((2, 3, 5), []), ((3, 5), [0, 1])):
        with pytest.raises(ValueError, match="is not one for each of"):
            native.ops().normal(ids, sizes, 0, steps, 1)


@every_native_way
def test_noise_is_drawn_by_the_kernels_where_they_are_built(way, monkeypatch):
    which = {"seed": SEED, "stream": noise.SAMPLER, "sample_ids": (7, 1 << 40), "step": STEP}
    seed, step, _ = keys(2)
    ids = noise.as_sample_ids(which["sample_ids"])
    expected = native.ops().normal(ids, [2, 3, 5, 5], int(seed), [int(step)], noise.SAMPLER)
    assert torch.equal(noise.normal((3, 5, 5), **which), expected)
    with nf.use_backend("torch"):
        specified = noise.normal((3, 5, 5), **which)
    assert not torch.equal(specified, expected)
    torch.testing.assert_close(expected, specified, atol=5e-5, rtol=0)
    monkeypatch.setattr(native, "ready", lambda: None)
    monkeypatch.setattr(native, "build", lambda: pytest.fail("built"))
    assert torch.equal(noise.normal((3, 5, 5), **which), specified)


@every_native_way
def test_noise_of_many_steps_is_that_of_each(way):
    which = {"seed": torch.tensor(-5), "stream": noise.KNOWN, "sample_ids": torch.arange(9)[::2]}
    steps = torch.tensor([[3, 9, 3], [0, 1, 2]])
    z = noise.normal((50, 7), **which, step=steps, dtype=torch.bfloat16)
    assert z.shape == (2, 3, 5, 50, 7)
    for i, j in itertools.product(range(2), range(3)):
        one = noise.normal((50, 7), **which, step=int(steps[i, j])).bfloat16()
        assert torch.equal(z[i, j], one)
    assert noise.normal((2,), **which, step=steps[:0]).shape == (0, 3, 5, 2)
