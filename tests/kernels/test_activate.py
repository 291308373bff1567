"""activate: the CPU's kernels against the specification, and the public operation. On a GPU
PyTorch's own are as fast as any."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases.common import (
    NATIVE_DTYPES,
    assert_close,
    check_operator,
    draw,
    every_native_way,
    on_every_way,
)
from cases.images import SHAPE, all_kinds, check_no_second_derivative, leaves, refusals

import ncsn_fast as nf
from ncsn_fast import ops, reference
from ncsn_fast.device import native
from ncsn_fast.reference import ACTIVATIONS


def cases(way):
    return all_kinds([(2, 40, 9, 7)], list(ACTIVATIONS)) if way.is_native else ()


@on_every_way(cases)
def test_activations_and_their_slopes_are_their_specification(way, case):
    x = draw(case.shape, case.dtype, case.last) * 6
    x.flatten()[:2] = torch.tensor([100.0, -100.0])
    grad, other = (draw(x.shape, case.dtype, case.last != (i == 2), i) for i in (1, 2))
    exact, plain = (specified(case, x, grad, dtype) for dtype in (torch.float64, case.dtype))
    assert_close(native.ops().activate(x, case.activation), exact[0], plain[0])
    backward = native.ops().activate_backward
    assert_close(backward(x, grad, None, case.activation), exact[1], plain[1])
    found = backward(x, grad, other, case.activation)
    assert_close(found, exact[1] + other.double(), plain[1] + other)
    assert found.stride() == x.stride()


def specified(case, x, grad, dtype):
    """The activation and the gradient of x."""
    return torch.autograd.functional.vjp(
        lambda v: reference.activated(v, case.activation), x.to(dtype), grad.to(dtype)
    )


@every_native_way
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_activations_keep_what_is_not_finite(way, activation, dtype):
    x = torch.tensor([math.nan, math.inf, -1e30, 0.0, -0.0] * 20, dtype=dtype)
    found, expected = native.ops().activate(x, activation), reference.activated(x, activation)
    torch.testing.assert_close(found, expected, equal_nan=True)


@every_native_way
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_every_bfloat16_number(way, activation, dtype):
    every = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).to(dtype)
    found = native.ops().activate(every, activation)
    exact = reference.activated(every.double(), activation)
    assert torch.equal(found.isnan(), exact.isnan())
    # A spacing of the type; swish of -88 is 1e-37, where the exponential ends.
    torch.testing.assert_close(
        found.double(), exact.to(dtype).double(), rtol=2**-7, atol=1e-36, equal_nan=True
    )


@every_native_way
def test_small_numbers_keep_the_accuracy_of_bfloat16(way):
    x = -torch.logspace(-30, 1, 999).bfloat16()
    found, exact = native.ops().activate(x, "elu").double(), torch.expm1(x.double())
    assert ((found - exact) / exact).abs().max() < 0.51 * 2**-7


@every_native_way
def test_what_kernels_would_misread_is_refused(way):
    half = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match="float32 and bfloat16"):
        native.ops().activate(half, "elu")
    with pytest.raises(ValueError, match="unknown"):
        native.ops().activate(half.float(), "gelu")
    with pytest.raises(ValueError, match="cannot run"):
        native.ops().capability("sse9")


@every_native_way
def test_the_operation_and_its_gradient_are_those_of_the_specification(way):
    for last, activation in itertools.product((False, True), ACTIVATIONS):
        x, grad = draw((2, 40, 9, 7), last=last).requires_grad_(), draw((2, 40, 9, 7), seed=1)
        y, expected = ops.activate(x, activation, backend="cpp"), reference.activated(x, activation)
        torch.testing.assert_close(y, expected)
        (found,) = torch.autograd.grad(y, x, grad)
        torch.testing.assert_close(found, *torch.autograd.grad(expected, x, grad))
        assert y.stride() == x.stride()


@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
def test_without_a_kernel_it_is_pytorchs(backend):
    x = draw(SHAPE, last=True)
    with nf.use_backend(backend):
        for given in (x.double(), x.half()) if backend == "auto" else (x,):
            active = ops.activate(given, "elu")
            assert torch.equal(active, F.elu(given))
            assert active.stride() == given.stride()


def test_other_memory_formats_stay():
    columns = draw((2, 3, 4, 4, 5)).contiguous(memory_format=torch.channels_last_3d)
    assert ops.activate(columns, "elu").stride() == columns.stride()


@every_native_way
def test_opcheck(way):
    x, upstream = leaves(way, (2, 4, 5, 6), (2, 4, 5, 6), last=True)
    check_operator("activate", x, "elu")
    check_operator("activate_gradient", x.detach(), upstream.detach(), "elu")


@every_native_way
def test_a_second_derivative_is_refused_with_the_way_out(way):
    (x,) = leaves(way, (1, 2, 3, 4))
    check_no_second_derivative(ops.activate(x, "elu", backend="cpp"), x, "activate")


@refusals(
    (lambda x: ops.activate(x, "tanh"), "activation 'tanh' is unknown; choose one of"),
    (lambda x: ops.activate(x, "elu", backend="cuda"), "backend 'cuda' is unknown"),
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(SHAPE))
