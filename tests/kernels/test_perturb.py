"""perturb: each implementation against the specification."""

import pytest
import torch
from cases.common import (
    FAST_MATH_LIMIT,
    GUARD,
    SEED,
    STEP,
    UNALIGNED,
    Buffers,
    Way,
    assert_close,
    every_triton_way,
    every_way,
    normal,
    on_every_way,
)
from cases.states import (
    CUT,
    LAYOUTS,
    MANY,
    NATIVE_LAYOUTS,
    PLACES,
    check_cut,
    each_place,
    layout_of,
    need_memory,
    step_on,
    which_noise,
)

from ncsn_fast import reference
from ncsn_fast.device import native
from ncsn_fast.noise import PERTURB


def cases(way):
    """The shapes; the layouts of networks are of no concern."""
    return dict.fromkeys(shape for shape, _ in (NATIVE_LAYOUTS if way.is_native else LAYOUTS))


@on_every_way(cases)
def test_perturb_is_its_specification(way, case):
    check(case, way)


@every_way
@each_place
def test_tensors_need_not_be_aligned(way, place):
    check(layout_of(place, way)[0], way, UNALIGNED)


@every_triton_way
@pytest.mark.parametrize(("shape", "last"), CUT, ids=PLACES)
def test_a_batch_may_take_several_launches(way, shape, last):
    inputs = inputs_of(shape)
    check_cut(lambda buffers: [run(*inputs, way, buffers)], shape, False, way)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "last"), MANY)
def test_there_may_be_more_samples_than_a_grid_has_rows(shape, last):
    check(shape, Way("triton", "cuda", fast_math=True))


@pytest.mark.alone
@pytest.mark.gpu
@pytest.mark.parametrize("elements", [(1 << 31) + 1024, (1 << 31) + 1023])
def test_one_sample_beyond_32_bits(elements):
    from cases.philox import normals_at

    from ncsn_fast.kernels.triton.perturb import perturb

    need_memory(40)
    x, sigma = torch.zeros(1, elements, device="cuda"), torch.ones(1, device="cuda")
    out, last_id = torch.empty_like(x), (1 << 48) - 1
    ids = torch.tensor([last_id], device="cuda")
    perturb(x, sigma, **step_on("cuda"), sample_ids=ids, out=out, fast_math=False)
    blocks = torch.cat([torch.arange(256), (1 << 29) + torch.arange(256)])
    z = normals_at(blocks, SEED, PERTURB, last_id, STEP)
    found = torch.cat([out[0, :1024], out[0, 1 << 31 :]]).cpu().double()
    assert (found - z.flatten()[: len(found)]).abs().max() < 5e-5


def inputs_of(shape):
    """(x, sigma), on the CPU."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)


def run(x, sigma, way, buffers):
    out = buffers.output(x.shape, torch.float32)
    given = buffers.input(x), buffers.input(sigma), *which_noise(len(x), buffers).values(), out
    if way.is_native:
        native.ops().perturb(*given)
        return out
    from ncsn_fast.kernels.triton.perturb import perturb

    perturb(*given, fast_math=way.fast_math)
    return out


def check(shape, way, guard=GUARD):
    (x, sigma), buffers = inputs_of(shape), Buffers(way.device, guard)
    found = run(x, sigma, way, buffers)
    buffers.check()
    exact = reference.perturb(
        x.double(), sigma.double(), normal(shape, PERTURB, STEP, torch.float64)
    )
    plain = reference.perturb(x, sigma, normal(shape, PERTURB, STEP, torch.float32))
    assert_close(found, exact, plain, FAST_MATH_LIMIT if way.fast_math else 0.0)
