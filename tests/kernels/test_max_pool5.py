"""max_pool5: each implementation against the specification, and the public operation."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases.common import (
    GUARD,
    NATIVE_DTYPES,
    UNALIGNED,
    Buffers,
    assert_close,
    check_operator,
    draw,
    every_backend,
    every_triton_way,
    every_way,
    laid,
    on_every_way,
)
from cases.images import (
    ANY,
    HALF,
    IMAGES,
    NATIVE_IMAGES,
    SHAPE,
    Images,
    all_kinds,
    both_formats,
    check_backend,
    check_no_second_derivative,
    each_kind,
    leaves,
    refusals,
)

from ncsn_fast import ops, reference

RISING = ("elu", "relu", "lrelu", None)  # what Triton's kernel takes along
HIGH = (((1, 2, 13, 3), False), ((1, 8, 13, 3), True))  # some bands see no end of the image


def cases(way):
    if way.is_native:
        return all_kinds(NATIVE_IMAGES, ANY)
    kinds = list(each_kind(RISING))
    layouts = [Images(*IMAGES[i], kinds[i].dtype, kinds[i].activation) for i in range(2, 7)]
    bands = [
        Images(shape, last, kind, "elu") for shape, last in HIGH for kind in (HALF, torch.float32)
    ]
    return kinds + layouts + bands


@on_every_way(cases)
def test_maxima_and_their_gradient_are_their_specification(way, case):
    check(case, way)


@every_triton_way
def test_kernels_take_tensors_that_are_not_aligned(way):
    check(Images(*IMAGES[1], HALF, "elu"), way, UNALIGNED)


@both_formats
@every_triton_way
@pytest.mark.usefixtures("small_launches")
def test_a_batch_may_take_several_launches(way, last):
    from ncsn_fast.kernels.triton.common.rows import rows

    case = Images((5, 8, 3, 4), last, torch.float32, "elu")
    assert rows(torch.Size(case.shape), last, 4).samples < 5
    check(case, way)


def check(case, way, guard=GUARD):
    """The gradient also of few different values, so that most neighbourhoods have several maxima:
    it goes to the first."""
    x, *upstreams = (draw(case.shape, case.dtype, case.last, seed) for seed in range(3))
    found = pool(x, case.activation, way, guard)
    exact = reference.max_pool5(x.double(), case.activation)
    plain = reference.max_pool5(x.float(), case.activation)
    for result, e, p in zip(found, exact, plain, strict=True):
        assert_close(result, e, way.stored(p, case.dtype))
        assert not way.is_native or result.stride() == x.stride()
    for values in (x, (2 * x).round() / 2)[0 if way.is_native else 1 :]:
        active = reference.activated(values.double(), case.activation).to(case.dtype)
        given = values, active, *upstreams
        found = (natively if way.is_native else by_triton)(case, way, *given)
        exact = specified_gradient(case, *given, dtype=torch.float64)
        plain = specified_gradient(case, *given, dtype=torch.float32)
        assert_close(found, exact, way.stored(plain, case.dtype))


def pool(x, activation, way, guard=GUARD):
    """(active, pooled) of images on the CPU."""
    if way.is_native:
        return ops.max_pool5(x, activation=activation, backend="cpp")
    from ncsn_fast.kernels.triton.max_pool5 import max_pool5

    buffers, last = Buffers(way.device, guard), not x.is_contiguous()
    given = buffers.input(x, last)
    active = buffers.output(x.shape, x.dtype, last) if activation else None
    pooled = buffers.output(x.shape, x.dtype, last)
    max_pool5(given, active, pooled, activation, fast_math=way.fast_math)
    buffers.check()
    return given if active is None else active, pooled


def natively(case, way, x, active, *upstreams):
    """The gradient of x by the kernel, which takes the maxima of what it makes of x; without
    activation it is that of the maxima alone."""
    x = x.clone().requires_grad_()
    results = ops.max_pool5(x, activation=case.activation, backend="cpp")
    alone = 0 if case.activation else 1
    return torch.autograd.grad(results[alone:], x, upstreams[alone:])[0]


def by_triton(case, way, x, active, active_upstream, upstream):
    """The same."""
    from ncsn_fast.kernels.triton.max_pool5 import max_pool5_gradient

    buffers = Buffers(way.device)
    found = buffers.output(case.shape, case.dtype, case.last)
    x, active, upstream = (buffers.input(v, case.last) for v in (x, active, upstream))
    other = buffers.input(active_upstream, case.last) if case.activation else None
    how = {"fast_math": way.fast_math}
    max_pool5_gradient(x, active, other, upstream, found, case.activation, **how)
    buffers.check()
    return found


def specified_gradient(case, x, active, active_upstream, upstream, dtype):
    """Through the maxima of the activation as its type holds it, as in PyTorch's 5×5 pool."""
    leaf, values = x.to(dtype).requires_grad_(), active.to(dtype).requires_grad_()
    pooled = F.max_pool2d(values, 5, stride=1, padding=2)
    gradient = torch.autograd.grad(pooled, values, upstream.to(dtype))[0]
    if case.activation is None:
        return gradient
    gradient = gradient + active_upstream.to(dtype)
    return torch.autograd.grad(reference.activated(leaf, case.activation), leaf, gradient)[0]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@both_formats
@every_way
def test_nan_wins_and_minus_infinity_loses_a_maximum(way, last):
    x = torch.full((1, 8, 7, 9), -math.inf)
    x[:, :, 5, 6], x[:, 1, 1, 1] = 0.5, math.nan
    x = laid(x, last)
    for activation in RISING:
        found = pool(x, activation, way)
        for one, other in zip(found, reference.max_pool5(x, activation), strict=True):
            torch.testing.assert_close(one.cpu(), other, equal_nan=True)


@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@both_formats
@every_way
def test_maxima_are_exact_whatever_the_numbers(way, last, dtype):
    x = draw((2, 32, 7, 6), dtype, last) * 1e38
    x[0, :, 3, 3], x[1, :, 2, 5], x[1, 5] = -math.nan, math.inf, -math.inf
    found, expected = pool(x, None, way)[1], F.max_pool2d(x, 5, stride=1, padding=2)
    torch.testing.assert_close(found.cpu(), expected, atol=0, rtol=0, equal_nan=True)


@every_backend
@pytest.mark.parametrize("activation", ANY)
def test_the_operation_and_its_gradient_are_those_of_the_specification(way, activation):
    def operation(x, backend):
        return ops.max_pool5(x, activation=activation, backend=backend)

    (x,) = leaves(way, SHAPE, last=ANY.index(activation) % 2 == 0)
    check_backend(operation, [x], way, x)


@every_backend
def test_views_are_pooled_as_what_they_show(way):
    x = draw((2, 8, 5, 8)).to(way.device)
    for view in (x.mT, x[..., ::2], x[:, ::2], x[:1].expand(2, -1, -1, -1)):
        found = ops.max_pool5(view, activation="elu", backend=way.backend)
        for one, other in zip(found, reference.max_pool5(view, "elu"), strict=True):
            torch.testing.assert_close(one, other)


@every_backend
def test_without_activation_it_gives_back_its_input(way):
    x = draw(SHAPE).to(way.device)
    assert ops.max_pool5(x, backend=way.backend)[0] is x


@every_backend
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_batches_without_pixels_stay_so(way, shape):
    (x,) = leaves(way, shape)
    pooled = ops.max_pool5(x, activation="elu", backend=way.backend)[1]
    pooled.sum().backward()
    assert pooled.shape == x.grad.shape == shape


@every_backend
def test_ties_are_resolved_in_the_values_that_were_pooled(way):
    """ELU rounds different 16-bit values to one: the first of these has the gradient."""
    x = torch.full((1, 1, 1, 5), -9.0, dtype=way.dtypes[1], device=way.device)
    x[..., 3] = -8.8
    x.requires_grad_()
    active, pooled = ops.max_pool5(x, activation="elu", backend=way.backend)
    assert active.unique().numel() == 1
    pooled.float().sum().backward()
    first = x.grad.float()[0, 0, 0]
    assert first[3] == 0
    assert (first[:3] > 0).all()


@every_backend
def test_swish_which_falls_and_rises_is_pooled_after_it(way):
    x = torch.linspace(-6, -0.1, 60, device=way.device).view(1, 1, 6, 10)
    found = ops.max_pool5(x, activation="swish", backend=way.backend)
    for one, other in zip(found, reference.max_pool5(x, "swish"), strict=True):
        torch.testing.assert_close(one, other)


@every_triton_way
def test_the_gradient_of_nan_goes_where_pytorch_sends_it(way):
    (x,) = leaves(way, SHAPE)
    with torch.no_grad():
        x[0, :, 1, 1] = x[1, 3, 2, 2:4] = math.nan
    found = torch.autograd.grad(ops.max_pool5(x, backend="triton")[1].sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(F.max_pool2d(x, 5, 1, 2).sum(), x))


@both_formats
@every_triton_way
def test_the_gradient_at_the_ends_of_an_image_stays_in_it(way, last):
    """Also where all that is there is minus infinity, or not a number."""
    x = torch.full((3, 8, 6, 7), -math.inf)
    x[1, :, :, -1], x[1, :, -1] = math.nan, math.nan
    x[2, :, 0], x[2, :, :, 0] = math.nan, math.nan
    x, upstream = laid(x, last).to(way.device), draw(x.shape).to(way.device)
    x.requires_grad_()
    found = torch.autograd.grad(ops.max_pool5(x, backend="triton")[1], x, upstream)
    expected = torch.autograd.grad(F.max_pool2d(x, 5, 1, 2), x, upstream)
    torch.testing.assert_close(found, expected)


@every_backend
def test_the_gradient_may_come_from_the_maxima_alone(way):
    x, active, upstream = (draw(SHAPE, seed=seed).to(way.device) for seed in range(3))
    gradient = torch.ops.ncsn_fast.max_pool5_gradient.default
    found = gradient(x, active, None, upstream, "lrelu", way.backend)
    expected = gradient(x, active, torch.zeros_like(x), upstream, "lrelu", way.backend)
    assert torch.equal(found, expected)


def test_what_kernels_do_not_take_runs_on_the_specification():
    for dtype in (torch.float64, torch.float16):
        x = draw((1, 2, 6, 6), dtype)
        assert torch.equal(ops.max_pool5(x)[1], reference.max_pool5(x)[1])


@every_triton_way
def test_float64_is_refused_where_kernels_were_asked_for(way):
    with pytest.raises(ValueError, match=r"cannot run this: kernels take float32, float16"):
        ops.max_pool5(draw(SHAPE, torch.float64).to(way.device), backend="triton")


@pytest.mark.gpu
def test_kernels_are_what_runs_on_a_gpu():
    x = draw(SHAPE, HALF).to("cuda").requires_grad_()
    assert ops.max_pool5(x)[1].grad_fn.name() != reference.max_pool5(x)[1].grad_fn.name()


@every_backend
def test_opcheck(way):
    x, values, upstream = leaves(way, *[(1, 2, 4, 5)] * 3, last=True)
    values, upstream = (2 * values.detach()).round() / 2, upstream.detach()
    check_operator("max_pool5", x, way.backend)
    check_operator("max_pool5_active", x, "lrelu", way.backend)
    check_operator("max_pool5_gradient", values, values, None, upstream, None, way.backend)


@every_backend
@pytest.mark.parametrize("activation", ["elu", None])
def test_a_second_derivative_is_refused_with_the_way_out(way, activation):
    (x,) = leaves(way, (1, 2, 3, 4))
    y = ops.max_pool5(x, activation=activation, backend=way.backend)[1]
    check_no_second_derivative(y, x, "max_pool5")


@refusals(
    (lambda x: ops.max_pool5(x, activation="tanh"), "activation 'tanh' is unknown"),
    (lambda x: ops.max_pool5(x[0]), r"x has shape \(8, 4, 5\): needed is \(N, C, H, W\)"),
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(SHAPE))
