"""The native CPU kernels of networks of images against the specification, as each capability of a
CPU compiles them."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases.common import NATIVE_DTYPES, assert_close, draw, laid
from cases.native import CAPABILITIES, CPP, norm_parameters
from torch.library import opcheck

import ncsn_fast as nf
from ncsn_fast import ops, reference

ACTIVATIONS = (None, *reference.ACTIVATIONS)
# Of networks: whole blocks of channels, parts of them, sizes that nothing divides, single pixels.
IMAGES = ((2, 32, 8, 8), (2, 71, 5, 9), (1, 3, 33, 7), (3, 40, 1, 1), (2, 2, 4, 3), (1, 33, 70, 2))


@pytest.fixture(autouse=True, params=CAPABILITIES)
def capability(request):
    """Run a test with the code for each capability that this CPU has."""
    CPP.capability(request.param)
    yield request.param
    CPP.capability("")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_and_their_slopes_are_their_specification(activation, dtype, last):
    x = draw((2, 40, 9, 7), dtype, last) * 6
    x.flatten()[:2] = torch.tensor([100.0, -100.0])
    grad, other = draw(x.shape, dtype, last, 1), draw(x.shape, dtype, not last, 2)
    assert_close(
        *(CPP.activate(x, activation), reference.activated(x.double(), activation)),
        reference.activated(x, activation),
    )
    exact, plain = (
        torch.autograd.functional.vjp(
            lambda v: reference.activated(v, activation), x.to(t), grad.to(t)
        )[1]
        for t in (torch.float64, dtype)
    )
    assert_close(CPP.activate_backward(x, grad, None, activation), exact, plain)
    found = CPP.activate_backward(x, grad, other, activation)
    assert_close(found, exact + other.double(), plain + other)
    assert found.stride() == x.stride()


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_activations_keep_what_is_not_finite(activation, dtype):
    x = torch.tensor([math.nan, math.inf, -1e30, 0.0, -0.0] * 20, dtype=dtype)
    found, expected = CPP.activate(x, activation), reference.activated(x, activation)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_of_every_bfloat16_number(activation, dtype):
    every = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).to(dtype)
    found, exact = CPP.activate(every, activation), reference.activated(every.double(), activation)
    assert torch.equal(found.isnan(), exact.isnan())
    # A spacing of the type; swish of -88 is 1e-37, where the exponential ends.
    torch.testing.assert_close(
        found.double(), exact.to(dtype).double(), rtol=2**-7, atol=1e-36, equal_nan=True
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_residual_add_and_its_gradient_are_their_specification(activation, dtype, last):
    shape = (2, 40, 9, 7)
    given = draw(shape, dtype, last).requires_grad_(), draw(shape, dtype, not last, 1)
    upstream = draw(shape, dtype, last, 2), draw(shape, dtype, last, 3)
    total, active, _ = ops.residual_add(*given, activation=activation, backend="cpp")
    assert total.stride() == active.stride() == given[0].stride()
    (gradient,) = torch.autograd.grad((total, active), given[0], upstream)
    exact, plain = (
        specified_sum([t.detach().to(kind) for t in (*given, *upstream)], activation)
        for kind in (torch.float64, dtype)
    )
    found = total.detach(), active.detach(), gradient
    for result, e, p in zip(found, exact, plain, strict=True):
        assert_close(result, e, p)


def specified_sum(tensors, activation):
    """The specification's two results, and the gradient of the first that is summed."""
    x, residual, *upstream = tensors
    results = reference.residual_add(x.requires_grad_(), residual, activation)
    (gradient,) = torch.autograd.grad(results, x, upstream)
    return *(one.detach() for one in results), gradient


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", IMAGES)
def test_instance_norm_plus_and_its_gradients_are_their_specification(shape, last, per_sample):
    parameters = norm_parameters(shape, per_sample)
    for dtype, activation in itertools.product(NATIVE_DTYPES, ACTIVATIONS):
        x, grad = draw(shape, dtype, last) + 0.5, draw(shape, dtype, last, 4)
        tensors = [tensor.requires_grad_() for tensor in (x, *parameters)]
        y = ops.instance_norm_plus(*tensors, activation=activation, backend="cpp")
        gradients = torch.autograd.grad(y, tensors, grad)
        y = y.detach()
        assert y.stride() == gradients[0].stride() == x.stride()
        exact, plain = (
            specified_norm(x, parameters, activation, grad, wide) for wide in (True, False)
        )
        assert_close(y, exact[0], plain[0])
        # Single pixels have a deviation of √ε: gradients are as large as they are then inexact.
        for found, e, p in zip(gradients, exact[1], plain[1], strict=True):
            size = e.abs().max().clamp(min=1)
            assert_close((found / size).to(p.dtype), e / size, (p / size).to(p.dtype))


def specified_norm(x, parameters, activation, grad, wide):
    """The specification's result and its gradients with respect to x, γ, α and β."""
    tensors = [(t.double() if wide else t).detach().requires_grad_() for t in (x, *parameters)]
    y = reference.instance_norm_plus(*tensors, 1e-5, activation)
    return y.detach(), torch.autograd.grad(y, tensors, grad.to(y.dtype))


@pytest.mark.parametrize("last", [False, True])
def test_the_moments_of_large_images_far_from_zero_are_accurate(last):
    x = laid(draw((1, 32, 256, 256)) * 0.5 + 100, last)
    parameters = norm_parameters(x.shape, False)
    found = ops.instance_norm_plus(x, *parameters, backend="cpp")
    exact, plain = (specified_norm(x, parameters, None, x, wide)[0] for wide in (True, False))
    assert_close(found, exact, plain)


def test_an_image_with_nan_spoils_its_own_sample_only():
    x = draw((2, 32, 8, 8))
    x[0, 3, 2, 1] = math.nan
    parameters = norm_parameters(x.shape, False)
    y = ops.instance_norm_plus(x, *parameters, activation="elu", backend="cpp")
    assert y[0].isnan().all()
    assert not y[1].isnan().any()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_max_pool5_is_its_specification(shape, last, activation):
    for dtype in NATIVE_DTYPES:
        x = draw(shape, dtype, last)
        found = ops.max_pool5(x, activation=activation, backend="cpp")
        exact = reference.max_pool5(x.double(), activation)
        plain = reference.max_pool5(x, activation)
        for result, e, p in zip(found, exact, plain, strict=True):
            assert_close(result, e, p)
            assert result.stride() == x.stride()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_of_max_pool5_goes_to_the_first_maximum(shape, last, activation):
    """As in PyTorch's 5×5 pool; whole numbers make for many equals."""
    for dtype, equals in itertools.product(NATIVE_DTYPES, (False, True)):
        x = draw(shape, dtype, last)
        x = (2 * x).round() if equals else x
        dactive, dpooled = draw(shape, dtype, last, 1), draw(shape, dtype, last, 2)
        x.requires_grad_()
        results = ops.max_pool5(x, activation=activation, backend="cpp")
        (found,) = torch.autograd.grad(results, x, (dactive, dpooled))
        exact, plain = (specified_pool(x, activation, dactive, dpooled, w) for w in (True, False))
        assert_close(found, exact, plain)


def specified_pool(x, activation, dactive, dpooled, wide):
    """Through the maxima of x itself as its type holds them."""
    x = x.detach().double() if wide else x.detach()
    x.requires_grad_()
    active = reference.activated(x, activation)
    if wide and dpooled.dtype == torch.bfloat16:  # equals are those of the rounded activation
        active = active + (active.to(torch.bfloat16).double() - active).detach()
    pooled = F.max_pool2d(active, 5, stride=1, padding=2)
    grads = (dactive.to(x.dtype), dpooled.to(x.dtype))
    return torch.autograd.grad((active, pooled), x, grads)[0]


def test_nan_wins_every_maximum():
    for value in (math.nan, -math.nan):
        x = draw((1, 3, 9, 9))
        x[0, 1, 4, 4] = value
        _, pooled = ops.max_pool5(x, backend="cpp")
        assert pooled[0, 1, 2:7, 2:7].isnan().all()
        assert pooled.isnan().sum() == 25


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("sizes", [((4, 4), (8, 8)), ((3, 5), (7, 9)), ((1, 1), (4, 3))])
@pytest.mark.parametrize("channels", [3, 32, 71])
def test_resize_add_and_its_gradient_are_their_specification(channels, sizes, last):
    coarse, fine = sizes
    for dtype, (small, large) in itertools.product(NATIVE_DTYPES, ((coarse, fine), (fine, coarse))):
        x = draw((2, channels, *small), dtype, last)
        base = draw((2, channels, *large), dtype, last, 1)
        found = ops.resize_add(x.requires_grad_(), base, backend="cpp")
        exact = reference.resize_add(x.double(), base.double())
        assert_close(*(one.detach() for one in (found, exact, reference.resize_add(x, base))))
        assert found.stride() == base.stride()
        (found,) = torch.autograd.grad(found, x, base)
        exact, plain = (
            torch.autograd.functional.vjp(
                lambda v, base=base: reference.resize_add(v, base.to(v.dtype)),
                *(x.to(t), base.to(t)),
            )[1]
            for t in (torch.float64, dtype)
        )
        assert_close(found, exact, plain)


def test_what_kernels_would_misread_is_refused():
    half = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match="float32 and bfloat16"):
        CPP.activate(half, "elu")
    with pytest.raises(ValueError, match="unknown"):
        CPP.activate(half.float(), "gelu")
    with pytest.raises(ValueError, match="contiguous float32"):
        CPP.instance_norm_plus(half.float(), *(torch.zeros(3).double(),) * 3, 1e-5, "")
    with pytest.raises(ValueError, match="cannot run"):
        CPP.capability("sse9")


def test_parameters_of_samples_and_of_all_may_be_mixed():
    x = draw((2, 32, 8, 8))
    gamma, alpha, beta = norm_parameters(x.shape, True)
    three = [gamma, alpha[0], beta[0].bfloat16()]
    three = [one.clone().requires_grad_() for one in three]
    y = ops.instance_norm_plus(x, *three, backend="cpp")
    exact, gradients = specified_norm(x, three, None, x, True)
    torch.testing.assert_close(y.double(), exact, atol=1e-4, rtol=1e-4)
    found = torch.autograd.grad(y, three, x)
    for gradient, e, parameter in zip(found, gradients[1:], three, strict=True):
        assert gradient.dtype == parameter.dtype
        torch.testing.assert_close(gradient.double(), e, atol=1e-2, rtol=1e-2)


def test_an_activation_by_itself_has_its_gradient():
    for last, activation in itertools.product((False, True), reference.ACTIVATIONS):
        x, grad = draw((2, 40, 9, 7), last=last).requires_grad_(), draw((2, 40, 9, 7), seed=1)
        y = ops.activate(x, activation, backend="cpp")
        torch.testing.assert_close(y, reference.activated(x, activation))
        (found,) = torch.autograd.grad(y, x, grad)
        (expected,) = torch.autograd.grad(reference.activated(x, activation), x, grad)
        torch.testing.assert_close(found, expected)
        assert y.stride() == x.stride()


def opcheck_cases():
    x, other = draw((2, 4, 5, 6), last=True), draw((2, 4, 5, 6), seed=1)
    three = [one.requires_grad_() for one in norm_parameters(x.shape, False)]
    differentiable, statistics = x.clone().requires_grad_(), draw((4, 2, 4)).abs()
    norm = *(one.detach() for one in three), statistics
    return {
        "activate": (differentiable, "elu"),
        "activate_gradient": (x, other, "elu"),
        "instance_norm_plus": (differentiable, *three, None, 1e-5, "elu", "cpp"),
        "instance_norm_plus_gradient": (other, x, *norm, 1e-5, None, "cpp"),
        "max_pool5": (differentiable, "cpp"),
        "max_pool5_active": (differentiable, "lrelu", "cpp"),
        "max_pool5_gradient": (x, x, None, other, None, "cpp"),
        "residual_add": (differentiable, other, "elu", "cpp"),
        "residual_add_gradient": (x, other, other, "elu", "cpp"),
        "resize_add": (differentiable, draw((2, 4, 3, 8)), "cpp"),
        "resize_gradient": (x, 3, 4, "cpp"),
    }


@pytest.mark.parametrize("name", opcheck_cases())
def test_opcheck(name):
    results = opcheck(getattr(torch.ops.ncsn_fast, name).default, opcheck_cases()[name])
    assert set(results.values()) == {"SUCCESS"}


def network(x, base, *three):
    total, active, _ = ops.residual_add(x, x * 2, activation="elu", backend="cpp")
    active, pooled = ops.max_pool5(active + total, activation="relu", backend="cpp")
    y = ops.instance_norm_plus(pooled, *three, activation="elu", backend="cpp")
    return ops.resize_add(ops.activate(y + active, "elu", backend="cpp"), base, backend="cpp")


def test_torch_compile_takes_all_of_it_in_one_graph():
    x, base = draw((1, 32, 4, 5), last=True), draw((1, 32, 6, 3), last=True)
    given = [one.requires_grad_() for one in (x, base, *norm_parameters(x.shape, False))]
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*given), network(*given)
    assert torch.equal(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), given),
        torch.autograd.grad(expected.square().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["activate", "instance_norm_plus", "max_pool5", "residual_add"])
def test_a_second_derivative_is_refused_with_the_way_out(name):
    x = draw((1, 2, 3, 4)).requires_grad_()
    one = torch.ones(2)
    with nf.use_backend("cpp"):
        y = {
            "activate": lambda: ops.activate(x, "elu"),
            "instance_norm_plus": lambda: ops.instance_norm_plus(x, one, one, one),
            "max_pool5": lambda: ops.max_pool5(x)[1],
            "residual_add": lambda: ops.residual_add(x, x, activation="elu").active,
        }[name]()
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{name}.*second derivative.*nf\.use_backend"):
        gradient.sum().backward()


def test_what_kernels_do_not_take_runs_on_the_specification():
    for dtype in (torch.float64, torch.float16):
        x = draw((1, 2, 6, 6)).to(dtype)
        assert torch.equal(ops.max_pool5(x)[1], reference.max_pool5(x)[1])
        assert torch.equal(ops.activate(x, "elu"), F.elu(x))
    columns = draw((2, 3, 4, 4, 5)).contiguous(memory_format=torch.channels_last_3d)
    assert ops.activate(columns, "elu").stride() == columns.stride()


def test_a_sum_by_itself_is_pytorchs():
    x = draw((2, 32, 8, 8), torch.bfloat16)
    found = ops.residual_add(x, x, statistics=True, backend="cpp")
    assert torch.equal(found.total, x + x)
    assert found.statistics is None


def test_a_norm_measures_its_own_statistics():
    x, given = draw((2, 32, 8, 8)).requires_grad_(), torch.zeros(2 * 66)
    one = torch.ones(32)
    gradients = [
        torch.autograd.grad(
            ops.instance_norm_plus(x, one, one, one, statistics=statistics, backend="cpp")
            .square()
            .sum(),
            x,
        )[0]
        for statistics in (None, given)
    ]
    assert torch.equal(*gradients)


def test_small_numbers_keep_the_accuracy_of_bfloat16():
    x = -torch.logspace(-30, 1, 999).bfloat16()
    found, exact = CPP.activate(x, "elu").double(), torch.expm1(x.double())
    assert ((found - exact) / exact).abs().max() < 0.51 * 2**-7


def test_sums_are_rounded_as_pytorch_rounds():
    x, residual = (draw((1, 33, 40, 7), torch.bfloat16, seed=seed) for seed in (0, 1))
    x.flatten()[:4] = torch.tensor([math.inf, math.nan, 3e38, -0.0])
    residual.flatten()[:4] = torch.tensor([-math.inf, 1.0, 3e38, -0.0])
    total, same = CPP.residual_add(x, residual, "")
    torch.testing.assert_close(total, x + residual, atol=0, rtol=0, equal_nan=True)
    assert total.data_ptr() == same.data_ptr()
    with pytest.raises(ValueError, match="agree in type and shape"):
        CPP.residual_add(x.float(), residual, "")


@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("last", [False, True])
def test_maxima_are_exact_whatever_the_numbers(dtype, last):
    x = draw((2, 32, 7, 6), dtype, last) * 1e38
    x[0, :, 3, 3], x[1, :, 2, 5], x[1, 5] = -math.nan, math.inf, -math.inf
    found, expected = CPP.max_pool5(x, "")[1], F.max_pool2d(x, 5, stride=1, padding=2)
    torch.testing.assert_close(found, expected, atol=0, rtol=0, equal_nan=True)
