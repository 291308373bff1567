"""residual_add: each implementation against the specification, and the public operation."""

import math

import pytest
import torch
from cases.common import (
    GUARD,
    UNALIGNED,
    Buffers,
    assert_close,
    check_operator,
    draw,
    every_backend,
    every_native_way,
    every_triton_way,
    on_every_way,
)
from cases.images import (
    ANY,
    HALF,
    IMAGES,
    LAST,
    SHAPE,
    Images,
    all_kinds,
    check_backend,
    check_no_second_derivative,
    each_kind,
    leaves,
    refusals,
)

from ncsn_fast import ops, reference
from ncsn_fast.device import native
from ncsn_fast.reference import ACTIVATIONS


def cases(way):
    if way.is_native:
        return all_kinds([(2, 40, 9, 7)], list(ACTIVATIONS))
    return each_kind(list(ACTIVATIONS))


@on_every_way(cases)
def test_sum_activation_and_gradient_are_their_specification(way, case):
    check(case, way)


@every_triton_way
def test_kernels_take_tensors_that_are_not_aligned(way):
    check(Images(*IMAGES[1], HALF, "elu"), way, UNALIGNED)


@every_triton_way
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1016, 1023, 1025])
def test_elements_that_vectors_do_not_divide_are_added_as_the_others(way, count):
    check(Images((1, 1, 1, count), False, HALF, "elu"), way)


def check(case, way, guard=GUARD):
    """x and the gradients of the results are in the format of the case, the residual is not."""
    values = [draw(case.shape, case.dtype, case.last != (i == 1), i) for i in range(4)]
    found = natively(case, *values) if way.is_native else by_triton(case, way, guard, *values)
    exact, plain = (
        specified(case, *values, dtype=dtype) for dtype in (torch.float64, torch.float32)
    )
    for result, e, p in zip(found, exact, plain, strict=True):
        assert_close(result, e, way.stored(p, case.dtype))


def natively(case, x, residual, *upstreams):
    x.requires_grad_()
    total, active, _ = ops.residual_add(x, residual, activation=case.activation, backend="cpp")
    assert total.stride() == active.stride() == x.stride()
    (gradient,) = torch.autograd.grad((total, active), x, upstreams)
    return total.detach(), active.detach(), gradient


def by_triton(case, way, guard, x, residual, *upstreams):
    from ncsn_fast.kernels.triton.residual_add import residual_add, residual_add_gradient

    buffers = Buffers(way.device, guard)
    given = [buffers.input(v, case.last) for v in (x, residual, x + residual, *upstreams)]
    total, active, gradient = (buffers.output(case.shape, case.dtype, case.last) for _ in range(3))
    residual_add(*given[:2], total, active, case.activation, fast_math=way.fast_math)
    residual_add_gradient(*given[2:], gradient, case.activation, fast_math=way.fast_math)
    buffers.check()
    return total, active, gradient


def specified(case, x, residual, *upstreams, dtype):
    """total, active, and the gradient at the total as it is stored."""
    results = reference.residual_add(x.detach().to(dtype), residual.to(dtype), case.activation)
    upstream, active_upstream = (value.to(dtype) for value in upstreams)
    total = (x.detach() + residual).to(dtype).requires_grad_()
    active = reference.activated(total, case.activation)
    return *results, upstream + torch.autograd.grad(active, total, active_upstream)[0]


@every_triton_way
def test_elu_has_all_its_digits_near_zero(way):
    """A difference of nearly equal numbers costs no more than exp's own error."""
    from ncsn_fast.kernels.triton.residual_add import residual_add

    x = -torch.logspace(-9, 1, 1000, device=way.device)
    total, active = torch.empty_like(x), torch.empty_like(x)
    residual_add(x, torch.zeros_like(x), total, active, "elu", fast_math=way.fast_math)
    torch.testing.assert_close(active.double(), torch.expm1(x.double()), rtol=1e-6, atol=3e-7)


@every_native_way
def test_sums_are_rounded_as_pytorch_rounds(way):
    x, residual = (draw((1, 33, 40, 7), torch.bfloat16, seed=seed) for seed in (0, 1))
    x.flatten()[:4] = torch.tensor([math.inf, math.nan, 3e38, -0.0])
    residual.flatten()[:4] = torch.tensor([-math.inf, 1.0, 3e38, -0.0])
    total, same = native.ops().residual_add(x, residual, "")
    torch.testing.assert_close(total, x + residual, atol=0, rtol=0, equal_nan=True)
    assert total.data_ptr() == same.data_ptr()
    with pytest.raises(ValueError, match="agree in type and shape"):
        native.ops().residual_add(x.float(), residual, "")


@every_backend
@pytest.mark.parametrize("activation", ANY)
def test_the_operation_and_its_gradient_are_those_of_the_specification(way, activation):
    def operation(x, residual, backend):
        return ops.residual_add(x, residual, activation=activation, backend=backend)

    x, residual = leaves(way, SHAPE, SHAPE, last=ANY.index(activation) % 2 == 0)
    check_backend(operation, [x, residual], way, x)


@every_backend
def test_summands_may_be_laid_out_differently(way):
    x, residual = (image.detach() for image in leaves(way, SHAPE, SHAPE))
    residual = residual.contiguous(memory_format=LAST)
    found = ops.residual_add(x, residual, activation="elu", backend=way.backend)
    torch.testing.assert_close(found.total, x + residual)
    assert found.total.is_contiguous()


@every_backend
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_batches_without_pixels_stay_so(way, shape):
    x, residual = leaves(way, shape, shape)
    total = ops.residual_add(x, residual, activation="elu", backend=way.backend).total
    total.sum().backward()
    assert total.shape == x.grad.shape == shape


@every_triton_way
@pytest.mark.parametrize("activation", ["relu", "lrelu"])
def test_the_slope_at_nan_is_pytorchs(way, activation):
    x = torch.tensor([math.nan, -1.0, 0.0, 1.0], device=way.device).view(1, 1, 2, 2)
    x.requires_grad_()
    for residual in (torch.zeros_like(x), torch.ones_like(x)):
        found, expected = (
            torch.autograd.grad(
                ops.residual_add(x, residual, activation=activation, backend=name).active.sum(), x
            )[0]
            for name in ("triton", "torch")
        )
        assert torch.equal(found, expected)


@every_triton_way
def test_statistics_of_the_sum_are_those_that_the_norm_takes(way):
    x, residual = (image.detach() for image in leaves(way, SHAPE, SHAPE))
    three = [draw(SHAPE[1:2], seed=seed).to(way.device) for seed in (2, 3, 4)]
    total, active, statistics = ops.residual_add(x, residual, statistics=True, backend="triton")
    assert active is None
    assert torch.equal(total, x + residual)
    found, expected, spoilt = (
        ops.instance_norm_plus(total, *three, statistics=given, backend="triton")
        for given in (statistics, None, statistics * 2)
    )
    assert torch.equal(found, expected)
    assert not torch.equal(found, spoilt)


@every_triton_way
@pytest.mark.parametrize("reason", ["gradient", "activation", "specification"])
def test_statistics_are_left_out_where(way, reason):
    x = draw(SHAPE).to(way.device).requires_grad_(reason == "gradient")
    backend = "torch" if reason == "specification" else "triton"
    activation = "elu" if reason == "activation" else None
    found = ops.residual_add(x, x, activation=activation, statistics=True, backend=backend)
    assert found.statistics is None


@every_native_way
def test_a_sum_by_itself_is_pytorchs(way):
    x = draw((2, 32, 8, 8), torch.bfloat16)
    found = ops.residual_add(x, x, statistics=True, backend="cpp")
    assert torch.equal(found.total, x + x)
    assert found.statistics is None


def test_float64_runs_on_the_specification():
    x = draw(SHAPE, torch.float64)
    assert ops.residual_add(x, x, activation="elu").active.dtype == torch.float64


@every_backend
def test_opcheck(way):
    x, *values = leaves(way, *[(1, 2, 4, 5)] * 4, last=True)
    values = [value.detach() for value in values]
    check_operator("residual_add", x, values[0], "elu", way.backend)
    check_operator("residual_add_gradient", *values, "elu", way.backend)
    if not way.is_native:
        check_operator("residual_add_statistics", *values[:2], None)


@every_backend
def test_a_second_derivative_is_refused_with_the_way_out(way):
    (x,) = leaves(way, (1, 2, 3, 4))
    y = ops.residual_add(x, x, activation="elu", backend=way.backend).active
    check_no_second_derivative(y, x, "residual_add")


@refusals(
    (lambda x: ops.residual_add(x, x[:1]), "residual has shape"),
    (lambda x: ops.residual_add(x, x.half()), "residual is torch.float16"),
    (lambda x: ops.residual_add(x, x, activation="tanh"), "activation 'tanh' is unknown"),
    (lambda x: ops.residual_add(x[0], x[0]), r"x has shape \(8, 4, 5\): needed is \(N, C, H, W\)"),
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(SHAPE))
