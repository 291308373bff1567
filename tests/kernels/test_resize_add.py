"""resize_add: each implementation against the specification, and the public operation."""

import itertools
from fractions import Fraction

import pytest
import torch
from cases.common import (
    DTYPES,
    GUARD,
    NATIVE_DTYPES,
    UNALIGNED,
    Buffers,
    assert_close,
    check_operator,
    draw,
    every_backend,
    every_triton_way,
    on_every_way,
)
from cases.images import (
    HALF,
    LAST,
    SHAPE,
    Images,
    both_formats,
    check_backend,
    check_no_second_derivative,
    leaves,
    refusals,
)

from ncsn_fast import ops, reference
from ncsn_fast.device.memory_format import is_channels_last

# Sizes of x and of what it is resized to: up, down, one of each, from and to a single pixel.
SIZES = (((4, 5), (8, 9)), ((9, 7), (5, 3)), ((3, 6), (7, 2)), ((1, 1), (4, 3)), ((5, 3), (1, 1)))
NATIVE_SIZES = (((4, 4), (8, 8)), ((3, 5), (7, 9)), ((1, 1), (4, 3)))  # and back


def cases(way):
    if way.is_native:
        back = tuple((large, small) for small, large in NATIVE_SIZES)
        for (size, to), channels, last, dtype in itertools.product(
            (*NATIVE_SIZES, *back), (3, 32, 71), (False, True), NATIVE_DTYPES
        ):
            yield Images((2, channels, *to), last, dtype, size=size)
        return
    turns = itertools.cycle(DTYPES)
    planes = ((1, 3), False), ((2, 24), True), ((1, 6), True)
    for (size, to), (images, last) in itertools.product(SIZES, planes):
        yield Images((*images, *to), last, next(turns), size=size)


@on_every_way(cases)
def test_it_is_its_specification(way, case):
    check(case, way)


@every_triton_way
def test_kernels_take_tensors_that_are_not_aligned(way):
    check(Images((1, 8, 4, 3), True, HALF, size=(2, 2)), way, UNALIGNED)


@every_triton_way
@pytest.mark.parametrize("size", [(5, 40), (40, 5), (6, 7)])
def test_positions_that_32_bits_do_not_hold_are_found_as_the_others(way, size, monkeypatch):
    from ncsn_fast.kernels.triton import resize_add

    monkeypatch.setattr(resize_add, "_MOST_PRODUCT", 0)
    check(Images((1, 8, 7, 31), True, torch.float32, size=size), way)


@every_triton_way
def test_what_a_pixel_did_not_give_to_does_not_reach_it(way):
    x, base = leaves(way, (1, 1, 3, 3), (1, 1, 9, 9))
    upstream = torch.ones_like(base)
    upstream[..., 8, 8] = torch.nan
    y = ops.resize_add(x, base, backend=way.backend)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    assert gradient.isnan().sum() == 1
    assert gradient[0, 0, 2, 2].isnan()


@every_triton_way
def test_the_gradient_is_pytorchs_and_the_same_whenever_it_is_computed(way):
    x, base = leaves(way, (2, 8, 16, 16), (2, 8, 32, 32), last=True)
    upstream = draw(base.shape, last=True).to(way.device)
    found, again, expected = (
        torch.autograd.grad(ops.resize_add(x, base, backend=backend), x, upstream)[0]
        for backend in (way.backend, way.backend, "torch")
    )
    assert torch.equal(found, again)
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 31])
@pytest.mark.parametrize("wanted", [1, 2, 4, 7, 32, 61])
def test_so_many_pixels_read_one_as_there_are_at_most(size, wanted):
    pytest.importorskip("triton", reason="Triton is not installed")
    from ncsn_fast.kernels.triton.resize_add import _readers

    scale = Fraction(size - 1, wanted - 1) if wanted > 1 else Fraction(0)
    readers = [sum(abs(at * scale - one) < 1 for at in range(wanted)) for one in range(size)]
    assert _readers(size, wanted) == max(readers)


@both_formats
@every_triton_way
@pytest.mark.usefixtures("small_launches")
def test_a_batch_may_take_several_launches(way, last):
    from ncsn_fast.kernels.triton.common.rows import rows

    case = Images((5, 8, 3, 4), last, torch.float32, size=(2, 2))
    assert rows(torch.Size(case.shape), last, 4).samples < 5
    check(case, way)


def check(case, way, guard=GUARD):
    """The sum, and the gradient of x."""
    base = draw(case.shape, case.dtype, case.last, 1)
    x = draw((*case.shape[:2], *case.size), case.dtype, case.last)
    if way.is_native:
        y = ops.resize_add(x.requires_grad_(), base, backend="cpp")
        assert y.stride() == base.stride()
        found = y.detach(), torch.autograd.grad(y, x, base)[0]
    else:
        found = by_triton(case, way, guard, x, base)
    exact, plain = (specified(x.detach(), base, kind) for kind in (torch.float64, torch.float32))
    for result, e, p in zip(found, exact, plain, strict=True):
        assert_close(result, e, way.stored(p, case.dtype))


def by_triton(case, way, guard, x, base):
    from ncsn_fast.kernels.triton.resize_add import resize_add, resize_gradient

    buffers = Buffers(way.device, guard)
    found = buffers.output(case.shape, case.dtype, case.last)
    gradient = buffers.output(x.shape, case.dtype, case.last)
    upstream, base = base, buffers.input(base, case.last)
    # Images of single pixels are in both formats, and count as contiguous.
    resize_add(buffers.input(x, is_channels_last(base)), base, found)
    resize_gradient(buffers.input(upstream, is_channels_last(gradient)), gradient)
    buffers.check()
    return found, gradient


def specified(x, base, dtype):
    """The sum, and the gradient of x where that of the sum is the base."""
    x, base = x.to(dtype).requires_grad_(), base.to(dtype)
    y = reference.resize_add(x, base)
    return y.detach(), torch.autograd.grad(y, x, base)[0]


@both_formats
@every_backend
@pytest.mark.parametrize("size", [(7, 9), (2, 3), (4, 5), (1, 1)])
def test_the_operation_and_its_gradient_are_those_of_the_specification(way, size, last):
    def operation(x, base, backend):
        return [ops.resize_add(x, base, backend=backend)]

    x, base = leaves(way, SHAPE, (2, 8, *size), last=last)
    check_backend(operation, [x, base], way, base)


@every_backend
def test_images_may_be_laid_out_differently(way):
    x, base = draw((2, 8, 2, 3)).to(way.device), draw(SHAPE, last=True).to(way.device)
    found = ops.resize_add(x, base, backend=way.backend)
    torch.testing.assert_close(found, reference.resize_add(x, base))
    assert found.is_contiguous(memory_format=LAST)


@every_backend
def test_images_of_one_size_are_added_as_they_are(way):
    x, base = (draw(SHAPE, seed=seed).to(way.device) for seed in (0, 1))
    assert torch.equal(ops.resize_add(x, base, backend=way.backend), base + x)


@every_backend
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_batches_without_pixels_stay_so(way, shape):
    (base,) = leaves(way, shape)
    x = torch.ones(shape[0], 8, 2, 2, device=way.device)
    resized = ops.resize_add(x, base, backend=way.backend)
    resized.sum().backward()
    assert resized.shape == base.grad.shape == shape


@every_backend
def test_opcheck(way):
    x, base = leaves(way, (1, 2, 4, 5), (1, 2, 3, 7), last=True)
    check_operator("resize_add", x, base, None, way.backend)
    check_operator("resize_gradient", x.detach(), 2, 3, way.backend)


@every_backend
def test_a_second_derivative_is_refused_with_the_way_out(way):
    (x,) = leaves(way, (1, 2, 3, 4))
    check_no_second_derivative(
        ops.resize_add(x, x[..., :2, :2], backend=way.backend), x, "resize_add"
    )


@refusals(
    (lambda x: ops.resize_add(x[:, :2], x), "batch and channels have to agree"),
    (lambda x: ops.resize_add(x.half(), x), "base is torch.float32"),
    (lambda x: ops.resize_add(x[..., :0], x), "without pixels cannot be resized"),
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(SHAPE))
