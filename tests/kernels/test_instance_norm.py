"""InstanceNorm++: the kernels against the specification, in Triton's interpreter, and the operation
with PyTorch's machinery around it."""

import math

import pytest
import torch
from cases.common import UNALIGNED, Buffers
from torch.library import opcheck

pytest.importorskip("triton", reason="Triton is not installed")

from cases.norm import (
    MANY_CHANNELS,
    SMALL,
    SPLIT,
    TINY,
    Norm,
    check_norm,
    check_statistics,
    draw,
    inputs,
    is_split,
    norm_cases,
    run,
)

from ncsn_fast import ops, reference
from ncsn_fast.kernels.triton.common import launch
from ncsn_fast.kernels.triton.instance_norm_statistics import reduction, statistics

pytestmark = pytest.mark.skipif(
    not launch.INTERPRETED, reason="with a GPU kernels are compiled for it: test_gpu_networks.py"
)
HERE = {"device": "cpu", "fast_math": False}
LAST = torch.channels_last
SHAPE = (2, 4, 3, 5)
both_formats = pytest.mark.parametrize("last", [True, False], ids=["last", "first"])


@pytest.mark.parametrize("case", norm_cases(), ids=str)
def test_norm_and_gradients_are_their_specification(case):
    check_norm(case, **HERE)


@both_formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_large_mean_hides_no_spread(dtype, last):
    mean = 1000.0 if dtype == torch.float32 else 60.0
    check_norm(Norm((2, 6, 8, 8), last, dtype, None, mean=mean), **HERE)


@both_formats
def test_the_kernels_take_tensors_that_are_not_aligned(last):
    check_norm(Norm(SMALL[1], last, torch.float16, rows=True), **HERE, guard=UNALIGNED)


@both_formats
@pytest.mark.parametrize("shape", [SMALL[0], SPLIT[0]], ids=["whole", "split"])
def test_statistics_of_a_sum_are_those_of_its_total(shape, last):
    check_statistics(shape, last, "cpu")


def test_the_shapes_take_every_way_through_the_statistics():
    assert not any(is_split(shape, last) for shape in SMALL for last in (True, False))
    assert all(is_split(shape, last) for shape in SPLIT for last in (True, False))
    assert reduction(torch.Size(MANY_CHANNELS[0]), True, 4).blocks == 2
    assert reduction(torch.Size(TINY[0]), True, 4).unroll == 1
    grids = [reduction(torch.Size(shape), last, 4) for shape in SPLIT for last in (True, False)]
    assert {grid.even for grid in grids} == {True, False}


@pytest.mark.parametrize("samples", [1, 3, 70_000, 1 << 22])
@both_formats
def test_splits_hold_all_pixels_once(samples, last):
    for channels, side in ((2, 1), (3, 37), (256, 16), (128, 32), (64, 1024), (5000, 3)):
        grid = reduction(torch.Size((samples, channels, side, side)), last, 4)
        turn = grid.block_pixels * grid.unroll
        assert grid.per_split % turn == 0
        assert 0 < side * side - (grid.splits - 1) * grid.per_split <= grid.per_split
        assert (grid.blocks - 1) * grid.block_channels < channels
        assert channels <= grid.blocks * grid.block_channels
        assert grid.even == (side * side % turn == 0)


@both_formats
@pytest.mark.parametrize("shape", [SMALL[0], SPLIT[0]], ids=["whole", "split"])
def test_statistics_of_numbers_whose_squares_overflow(shape, last):
    layout = LAST if last else torch.contiguous_format
    x = torch.full(shape, 1e25).contiguous(memory_format=layout)
    means, channels = shape[0] * shape[1], shape[1]
    found = torch.full((shape[0] * (2 * channels + 2),), math.nan)
    statistics(x, found)
    mean, variance, over, spread = found.split([means, means, shape[0], shape[0]])
    assert (mean == 1e25).all()
    assert (over == 1e25).all()
    assert not variance.any()
    assert not spread.any()


def test_two_runs_are_equal_bit_for_bit():
    case = Norm(SPLIT[0], True)
    runs = [run(case, *inputs(case), Buffers("cpu"), False) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_nan_stays_in_its_sample():
    x = draw(SHAPE, 1)
    x[0, 1, 2, 3] = math.nan
    one = torch.ones(SHAPE[1])
    y = ops.instance_norm_plus(x, one, one, one, activation="elu", backend="triton")
    assert y[0].isnan().all()
    assert torch.isfinite(y[1]).all()


def parameters(rows=False):
    """γ, α, β with gradients; per sample they are columns of one table."""
    table = draw((SHAPE[0], 3 * SHAPE[1]) if rows else (3 * SHAPE[1],), 5)
    return [part.requires_grad_() for part in table.chunk(3, -1)]


def derivatives(x, three, backend):
    y = ops.instance_norm_plus(x, *three, activation="swish", backend=backend)
    return y, *torch.autograd.grad(y, (x, *three), draw(SHAPE, 6))


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "shared"])
def test_the_operation_is_the_same_on_both_backends(rows):
    x = draw(SHAPE, 1).to(memory_format=LAST).requires_grad_()
    found, expected = (derivatives(x, parameters(rows), name) for name in ("triton", "torch"))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0, atol=1e-5)
    assert found[0].is_contiguous(memory_format=LAST)


def test_only_what_is_asked_for_gets_a_gradient():
    x, (gamma, alpha, beta) = draw(SHAPE, 1), parameters()
    y = ops.instance_norm_plus(x, gamma, alpha.detach(), beta.detach(), backend="triton")
    y.sum().backward()
    assert gamma.grad is not None
    assert alpha.grad is beta.grad is x.grad is None


@pytest.mark.parametrize("view", ["stride", "expand", "transpose"])
def test_any_view_will_do(view):
    x = {
        "stride": draw((2, 4, 6, 10), 1)[:, :, ::2, ::2],
        "expand": draw((2, 1, 3, 5), 1).expand(SHAPE),
        "transpose": draw((2, 4, 5, 3), 1).mT,
    }[view]
    gamma = draw((8,), 2)[::2]
    found, expected = (
        ops.instance_norm_plus(x, gamma, gamma, gamma, backend=name) for name in ("triton", "torch")
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5)])
def test_nothing_has_a_norm(shape):
    x = torch.empty(shape, requires_grad=True)
    three = parameters()
    y = ops.instance_norm_plus(x, *three, backend="triton")
    gradients = torch.autograd.grad(y.sum(), (x, *three))
    assert y.shape == gradients[0].shape == shape
    assert not any(gradient.any() for gradient in gradients[1:])


def test_statistics_may_come_from_the_sum():
    x, residual = draw(SHAPE, 1), draw(SHAPE, 2)
    three = [parameter.detach() for parameter in parameters()]
    total, active, statistics = ops.residual_add(x, residual, statistics=True, backend="triton")
    assert active is None
    assert torch.equal(total, x + residual)
    found = ops.instance_norm_plus(total, *three, statistics=statistics, backend="triton")
    assert torch.equal(found, ops.instance_norm_plus(total, *three, backend="triton"))
    spoilt = ops.instance_norm_plus(total, *three, statistics=statistics * 2, backend="triton")
    assert not torch.equal(found, spoilt)


@pytest.mark.parametrize("reason", ["gradient", "activation", "specification"])
def test_statistics_are_left_out_where(reason):
    x = draw(SHAPE, 1).requires_grad_(reason == "gradient")
    backend = "torch" if reason == "specification" else "triton"
    activation = "elu" if reason == "activation" else None
    found = ops.residual_add(x, x, activation=activation, statistics=True, backend=backend)
    assert found.statistics is None


def test_the_specification_takes_no_notice_of_statistics():
    x, one = draw(SHAPE, 1), torch.ones(SHAPE[1])
    statistics = torch.full((2 * (2 * 4 + 2),), math.nan)
    y = ops.instance_norm_plus(x, one, one, one, statistics=statistics, backend="torch")
    assert torch.equal(y, reference.instance_norm_plus(x, one, one, one))


def test_float64_runs_the_specification():
    x, one = draw(SHAPE, 1).double(), torch.ones(SHAPE[1])
    assert ops.instance_norm_plus(x, one, one, one).dtype == torch.float64
    with pytest.raises(ValueError, match=r"cannot run this: .*float64"):
        ops.instance_norm_plus(x, one, one, one, backend="triton")


def test_a_second_backward_is_refused():
    x = draw(SHAPE, 1).requires_grad_()
    y = ops.instance_norm_plus(x, *parameters(), activation="swish", backend="triton")
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"nf\.use_backend\('torch'\)"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 4)}, r"x has shape \(2, 4\): needed is \(N, C, H, W\)"),
        ({"gamma": torch.ones(3)}, r"gamma is \(3,\) on cpu: needed is \(4,\), or \(2, 4\)"),
        ({"alpha": torch.ones(1, 4)}, r"alpha is \(1, 4\) on cpu"),
        ({"beta": torch.ones(4, device="meta")}, r"beta is \(4,\) on meta"),
        ({"activation": "gelu"}, "activation 'gelu' is unknown; choose one of"),
        ({"statistics": torch.ones(8)}, r"statistics are torch.float32 \(8,\) on cpu, which"),
        ({"x": torch.ones(2, 1, 3, 5), **dict.fromkeys(("gamma", "alpha", "beta"), torch.ones(1))},
         "at least 2 channels"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changes, message):
    given = {"x": torch.ones(SHAPE), **dict.fromkeys(("gamma", "alpha", "beta"), torch.ones(4))}
    with pytest.raises(ValueError, match=message):
        ops.instance_norm_plus(**{**given, **changes})


def opcheck_cases():
    x, residual = draw(SHAPE, 1).to(memory_format=LAST), draw(SHAPE, 2)
    three = parameters(rows=True)
    detached = [parameter.detach() for parameter in three]
    differentiable = x.clone().requires_grad_()
    how = 1e-5, "elu", "triton"
    _, norm = torch.ops.ncsn_fast.instance_norm_plus(x, *detached, None, *how)
    return {
        "instance_norm_plus": (differentiable, *three, None, *how),
        "instance_norm_plus with statistics": (differentiable, *three, norm, *how),
        "instance_norm_plus_gradient": (residual, x, *detached, norm, 1e-5, None, "triton"),
        "residual_add_statistics": (x, residual),
    }


@pytest.mark.parametrize("name", opcheck_cases())
def test_opcheck(name):
    operation = getattr(torch.ops.ncsn_fast, name.split()[0]).default
    results = opcheck(operation, opcheck_cases()[name])
    assert set(results.values()) == {"SUCCESS"}


def test_torch_compile_takes_all_of_it_in_one_graph():
    def unit(x, residual, *three):
        total, _, statistics = ops.residual_add(x, residual, statistics=True, backend="triton")
        return ops.instance_norm_plus(
            total, *three, activation="elu", statistics=statistics, backend="triton"
        )

    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    x, residual = draw(SHAPE, 1).to(memory_format=LAST), draw(SHAPE, 2)
    with torch.no_grad():
        found, expected = (one(x, residual, *parameters()) for one in (compiled, unit))
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    x.requires_grad_()
    found, expected = (one(x, residual, *parameters()) for one in (compiled, unit))
    assert torch.equal(found, expected)
    found, expected = (torch.autograd.grad(y.sum(), x)[0] for y in (found, expected))
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
