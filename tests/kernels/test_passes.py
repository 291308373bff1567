"""The memory-bound passes of the networks: kernels in Triton's interpreter against the
specification, and operations from their public functions. On a GPU see test_gpu_passes.py."""

import pytest
import torch
import torch.nn.functional as F
from cases.common import UNALIGNED
from torch.library import opcheck

pytest.importorskip("triton", reason="Triton is not installed")

from cases.passes import (
    IMAGES,
    Pass,
    check_elu_near_zero,
    check_locate,
    check_max_pool5,
    check_max_pool5_gradient,
    check_offsets,
    check_residual_add,
    check_residual_add_gradient,
    check_resize_add,
    check_special_values,
    draw,
    pool_cases,
    residual_cases,
    resize_cases,
    with_ties,
)

import ncsn_fast as nf
from ncsn_fast import ops, reference
from ncsn_fast.kernels.triton.common import launch, rows

pytestmark = pytest.mark.skipif(
    not launch.INTERPRETED, reason="with a GPU kernels are compiled for it: see test_gpu_passes.py"
)
HERE = {"device": "cpu", "fast_math": False}
LAST = torch.channels_last
SHAPE = (2, 8, 4, 5)
both_formats = pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])


@pytest.mark.parametrize("case", residual_cases(), ids=str)
def test_residual_add_is_its_specification(case):
    check_residual_add(case, **HERE)


@pytest.mark.parametrize("case", residual_cases(), ids=str)
def test_the_gradient_of_residual_add_is_that_of_its_specification(case):
    check_residual_add_gradient(case, **HERE)


@pytest.mark.parametrize("case", pool_cases(), ids=str)
def test_max_pool5_is_its_specification(case):
    check_max_pool5(case, **HERE)


@pytest.mark.parametrize("case", pool_cases(), ids=str)
def test_the_gradient_of_a_maximum_goes_to_the_first_one(case):
    check_max_pool5_gradient(case, **HERE)


@pytest.mark.parametrize("case", resize_cases(), ids=str)
def test_resize_add_is_its_specification(case):
    check_resize_add(case, "cpu")


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("last", [False, True])
def test_nan_wins_and_minus_infinity_loses_a_maximum(last):
    check_special_values(last=last, **HERE)


def test_kernels_take_tensors_that_are_not_aligned():
    check_residual_add(Pass(*IMAGES[1], torch.float16, "elu"), **HERE, guard=UNALIGNED)
    check_max_pool5(Pass(*IMAGES[1], torch.float16, "elu"), **HERE, guard=UNALIGNED)
    case = Pass((1, 8, 4, 3), True, torch.float16, size=(2, 2))
    check_resize_add(case, "cpu", guard=UNALIGNED)


@pytest.fixture
def small_launches(monkeypatch):
    """Launches of a few samples at most."""
    monkeypatch.setattr(rows, "_MOST_VECTORS", 20)
    rows.rows.cache_clear()
    yield
    rows.rows.cache_clear()


@pytest.mark.usefixtures("small_launches")
@pytest.mark.parametrize("last", [False, True])
def test_a_batch_may_take_several_launches(last):
    case = Pass((5, 8, 3, 4), last, torch.float32, "elu")
    found = rows.rows(torch.Size(case.shape), last, 4)
    assert found.samples < 5
    check_max_pool5(case, **HERE)
    check_max_pool5_gradient(case, **HERE)
    check_resize_add(Pass((5, 8, 3, 4), last, torch.float32, size=(2, 2)), "cpu")


def test_elu_has_all_its_digits_near_zero():
    check_elu_near_zero(**HERE)


def test_what_lies_beyond_the_last_vector_is_that_vector_again():
    check_locate("cpu")


def test_elements_beyond_32_bits_are_found():
    check_offsets("cpu")


def test_no_launch_counts_beyond_31_bits():
    for last in (False, True):
        found = rows.rows(torch.Size((1 << 20, 12, 64, 64)), last, 2, 4)
        assert 1 <= found.samples < 1 << 20
        assert found.numbers[0] + found.settings["BLOCK_SIZE"] < 1 << 31


def images(*sizes, layout=torch.contiguous_format, dtype=torch.float32):
    """Leaves of these shapes."""
    drawn = [draw(size, dtype, 1)[0].contiguous(memory_format=layout) for size in sizes]
    return [image.requires_grad_() for image in drawn]


def by_both(operation, inputs):
    """Results and gradients by the specification, and by the kernels."""
    answers = []
    for backend in ("torch", "triton"):
        results = [r for r in operation(*inputs, backend=backend) if r is not None]
        loss = sum((r.square() * (i + 1)).sum() for i, r in enumerate(results))
        answers.append((results, torch.autograd.grad(loss, inputs)))
    return answers


def assert_alike(answers, like):
    """The same numbers twice; those of the kernels are laid out like a tensor."""
    (results, gradients), (others, other_gradients) = answers
    for one, other in zip([*results, *gradients], [*others, *other_gradients], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert all(other.stride() == like.stride() for other in others)


@both_formats
@pytest.mark.parametrize("activation", [*reference.ACTIVATIONS, None])
def test_residual_add_and_its_gradient_are_the_same_on_both_backends(activation, layout):
    def operation(x, residual, backend):
        return ops.residual_add(x, residual, activation=activation, backend=backend)

    x, residual = images(SHAPE, SHAPE, layout=layout)
    assert_alike(by_both(operation, [x, residual]), x)


@both_formats
@pytest.mark.parametrize("activation", [*reference.ACTIVATIONS, None])
def test_max_pool5_and_its_gradient_are_the_same_on_both_backends(activation, layout):
    def operation(x, backend):
        return ops.max_pool5(x, activation=activation, backend=backend)

    (x,) = images(SHAPE, layout=layout)
    assert_alike(by_both(operation, [x]), x)


@both_formats
@pytest.mark.parametrize("size", [(7, 9), (2, 3), (4, 5), (1, 1)])
def test_resize_add_and_its_gradient_are_the_same_on_both_backends(size, layout):
    def operation(x, base, backend):
        return [ops.resize_add(x, base, backend=backend)]

    x, base = images(SHAPE, (2, 8, *size), layout=layout)
    assert_alike(by_both(operation, [x, base]), base)


def test_tensors_may_be_laid_out_differently():
    x, residual = images(SHAPE, SHAPE)
    residual = residual.detach().contiguous(memory_format=LAST)
    found = ops.residual_add(x.detach(), residual, activation="elu", backend="triton")
    torch.testing.assert_close(found.total, x.detach() + residual)
    assert found.total.is_contiguous()
    small = x.detach()[:, :, :2, :3]
    resized = ops.resize_add(small, residual, backend="triton")
    torch.testing.assert_close(resized, reference.resize_add(small, residual))
    assert resized.is_contiguous(memory_format=LAST)


def test_views_are_pooled_as_what_they_show():
    (x,) = images((2, 8, 5, 8))
    for view in (x.mT, x[..., ::2], x[:, ::2], x[:1].expand(2, -1, -1, -1)):
        found = ops.max_pool5(view, activation="elu", backend="triton")
        for one, other in zip(found, reference.max_pool5(view, "elu"), strict=True):
            torch.testing.assert_close(one, other)


def test_without_activation_max_pool5_gives_back_its_input():
    (x,) = images(SHAPE)
    assert ops.max_pool5(x, backend="triton")[0] is x


def test_images_of_one_size_are_added_as_they_are():
    x, base = (image.detach() for image in images(SHAPE, SHAPE))
    assert torch.equal(ops.resize_add(x, base, backend="triton"), base + x)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_batches_without_pixels_stay_so(shape):
    x, other = images(shape, shape)
    total = ops.residual_add(x, other, activation="elu", backend="triton").total
    pooled = ops.max_pool5(x, activation="elu", backend="triton")[1]
    resized = ops.resize_add(torch.ones(shape[0], 8, 2, 2), x, backend="triton")
    for result in (total, pooled, resized):
        assert result.shape == shape
        result.sum().backward()
    assert x.grad.shape == shape


def test_float64_runs_on_the_specification():
    x, other = images(SHAPE, SHAPE, dtype=torch.float64)
    assert ops.residual_add(x, other, activation="elu").active.dtype == torch.float64
    with pytest.raises(ValueError, match=r"cannot run this: kernels take float32, float16"):
        ops.max_pool5(x, backend="triton")


def test_ties_are_resolved_in_the_values_that_were_pooled():
    """ELU rounds different 16-bit values to one: the first of these has the gradient."""
    x = torch.full((1, 1, 1, 5), -9.0, dtype=torch.float16)
    x[..., 3] = -8.8
    x.requires_grad_()
    active, pooled = ops.max_pool5(x, activation="elu", backend="triton")
    assert active.unique().numel() == 1
    pooled.float().sum().backward()
    first = x.grad.float()[0, 0, 0]
    assert first[3] == 0
    assert (first[:3] > 0).all()


def test_swish_which_falls_and_rises_is_pooled_after_it():
    x = torch.linspace(-6, -0.1, 60).view(1, 1, 6, 10)
    found = ops.max_pool5(x, activation="swish", backend="triton")
    for one, other in zip(found, reference.max_pool5(x, "swish"), strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_nan_goes_where_pytorch_sends_it():
    (x,) = images(SHAPE)
    with torch.no_grad():
        x[0, :, 1, 1] = x[1, 3, 2, 2:4] = torch.nan
    found = torch.autograd.grad(ops.max_pool5(x, backend="triton")[1].sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(F.max_pool2d(x, 5, 1, 2).sum(), x))


def test_the_gradient_of_a_pool_may_come_from_the_maxima_alone():
    x, active, upstream = draw(SHAPE, torch.float32, 3)
    gradient = torch.ops.ncsn_fast.max_pool5_gradient.default
    found = gradient(x, active, None, upstream, "lrelu", "triton")
    expected = gradient(x, active, torch.zeros_like(x), upstream, "lrelu", "triton")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("activation", ["relu", "lrelu"])
def test_the_slope_at_nan_is_pytorchs(activation):
    x = torch.tensor([torch.nan, -1.0, 0.0, 1.0]).view(1, 1, 2, 2).requires_grad_()
    for residual in (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)):
        found, expected = (
            torch.autograd.grad(
                ops.residual_add(x, residual, activation=activation, backend=name).active.sum(), x
            )[0]
            for name in ("triton", "torch")
        )
        assert torch.equal(found, expected)


def operators():
    x, base = images((1, 2, 4, 5), (1, 2, 3, 7), layout=LAST)
    values = with_ties(x.detach())
    return {
        "residual_add": [x, x.detach(), "elu", "triton"],
        "residual_add_gradient": [values, values, values, "elu", "triton"],
        "max_pool5": [x, "triton"],
        "max_pool5_active": [x, "lrelu", "triton"],
        "max_pool5_gradient": [values, values, None, values, None, "triton"],
        "resize_add": [x, base, "triton"],
        "resize_gradient": [values, 2, 3, "triton"],
    }


@pytest.mark.parametrize("name", operators())
def test_opcheck(name):
    results = opcheck(getattr(torch.ops.ncsn_fast, name).default, operators()[name])
    assert set(results.values()) == {"SUCCESS"}


def chain(x, base):
    total, active, _ = ops.residual_add(x, x * 2, activation="elu", backend="triton")
    active, pooled = ops.max_pool5(active + total, activation="relu", backend="triton")
    return ops.resize_add(active + ops.max_pool5(pooled, backend="triton")[1], base)


def test_a_compiled_chain_gives_the_same_results_and_gradients():
    x, base = images((1, 8, 4, 5), (1, 8, 6, 3), layout=LAST)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        torch.autograd.grad(compiled(x, base).square().sum(), [x, base]),
        torch.autograd.grad(chain(x, base).square().sum(), [x, base]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: ops.residual_add(x, x, activation="elu", backend="triton").active, "residual"),
        (lambda x: ops.max_pool5(x, activation="elu", backend="triton")[1], "max_pool5"),
        (lambda x: ops.max_pool5(x, backend="triton")[1], "max_pool5"),
        (lambda x: ops.resize_add(x, x[..., :2, :2], backend="triton"), "resize_add"),
    ],
)
def test_a_second_derivative_is_refused_with_the_way_out(operation, name):
    (x,) = images((1, 2, 3, 4))
    (gradient,) = torch.autograd.grad(operation(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{name}.*second derivative.*nf\.use_backend"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.activate(x, "tanh"), "activation 'tanh' is unknown; choose one of"),
        (lambda x: ops.max_pool5(x, activation="tanh"), "activation 'tanh' is unknown"),
        (lambda x: ops.max_pool5(x[0]), r"x has shape \(8, 4, 5\): needed is \(N, C, H, W\)"),
        (lambda x: ops.residual_add(x, x[:1]), "residual has shape"),
        (lambda x: ops.residual_add(x, x.half()), "residual is torch.float16"),
        (lambda x: ops.resize_add(x[:, :2], x), "batch and channels have to agree"),
        (lambda x: ops.resize_add(x.half(), x), "base is torch.float32"),
        (lambda x: ops.resize_add(x[..., :0], x), "without pixels cannot be resized"),
        (lambda x: ops.activate(x, "elu", backend="cuda"), "backend 'cuda' is unknown"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(SHAPE))


def test_an_activation_by_itself_is_pytorchs_under_any_backend():
    (x,) = images(SHAPE, layout=LAST)
    with nf.use_backend("triton"):
        active = ops.activate(x, "elu")
    assert torch.equal(active, F.elu(x))
    assert active.is_contiguous(memory_format=LAST)
