"""instance_norm_plus: each implementation against the specification, and the public operation."""

import math

import pytest
import torch
from cases.common import (
    UNALIGNED,
    assert_close,
    check_operator,
    draw,
    every_backend,
    every_native_way,
    every_triton_way,
    every_way,
    laid,
    on_every_way,
)
from cases.images import HALF, LAST, both_formats, check_no_second_derivative
from cases.norm import (
    EPS,
    MANY_CHANNELS,
    SMALL,
    SPLIT,
    TINY,
    Norm,
    check_norm,
    check_statistics,
    inputs,
    is_split,
    norm_cases,
    run,
)

from ncsn_fast import ops, reference
from ncsn_fast.device import native

SHAPE = (2, 4, 3, 5)


@on_every_way(norm_cases)
def test_norm_and_gradients_are_their_specification(way, case):
    check_norm(case, way)


@every_triton_way
@both_formats
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_a_large_mean_hides_no_spread(way, dtype, last):
    mean = 1000.0 if dtype == torch.float32 else 60.0
    check_norm(Norm((2, 6, 8, 8), last, dtype, None, mean=mean), way)


@every_native_way
@both_formats
def test_the_moments_of_large_images_far_from_zero_are_accurate(way, last):
    x = laid(draw((1, 32, 256, 256)) * 0.5 + 100, last)
    parameters = [1 + 0.1 * draw((32,), seed=1), 1 + 0.1 * draw((32,), seed=2), draw((32,), seed=3)]
    found = ops.instance_norm_plus(x, *parameters, backend="cpp")
    exact, plain = (
        reference.instance_norm_plus(*(one.to(dtype) for one in (x, *parameters)), EPS)
        for dtype in (torch.float64, torch.float32)
    )
    assert_close(found, exact, plain)


@every_triton_way
@both_formats
def test_kernels_take_tensors_that_are_not_aligned(way, last):
    check_norm(Norm(SMALL[1], last, HALF, rows=True), way, UNALIGNED)


@every_triton_way
@both_formats
@pytest.mark.parametrize("shape", [SMALL[0], SPLIT[0]], ids=["whole", "split"])
def test_statistics_of_a_sum_are_those_of_its_total(way, shape, last):
    check_statistics(shape, last, way.device)


def test_the_shapes_take_every_way_through_the_statistics():
    reduction = grids()
    assert not any(is_split(shape, last) for shape in SMALL for last in (True, False))
    assert all(is_split(shape, last) for shape in SPLIT for last in (True, False))
    assert reduction(torch.Size(MANY_CHANNELS[0]), True, 4).blocks > 1
    assert reduction(torch.Size(TINY[0]), True, 4).unroll == 1
    found = [reduction(torch.Size(shape), last, 4) for shape in SPLIT for last in (True, False)]
    assert {grid.even for grid in found} == {True, False}


def grids():
    pytest.importorskip("triton", reason="Triton is not installed")
    from ncsn_fast.kernels.triton.instance_norm_statistics import reduction

    return reduction


@both_formats
@pytest.mark.parametrize("alone", [True, False], ids=["statistics", "sums"])
def test_every_multiprocessor_has_work_on_a_single_image(alone, last):
    def grid(channels, side, samples=1):
        return grids()(torch.Size((samples, channels, side, side)), last, 4, alone)

    for channels, side in ((128, 32), (256, 32), (256, 16), (512, 16), (512, 8)):
        assert grid(channels, side).programs >= 128
    # Parts are put together by one program, a thread to a channel or two.
    assert max(grid(128, 32).splits, grid(256, 16).splits) <= 16
    # What is too small for that is not launched twice where once will do, or in smallest programs.
    for channels, side in ((256, 8), (256, 4), (256, 7)):
        found = grid(channels, side)
        once = alone and last
        assert found.whole == once
        assert once or found.block_pixels * found.block_channels * found.unroll == 256
    # Of many images each has a program: nothing is left to be put together.
    assert not last or grid(128, 32, samples=256).whole


@pytest.mark.parametrize("samples", [1, 3, 70_000, 1 << 22])
@both_formats
def test_splits_hold_all_pixels_once(samples, last):
    for channels, side in ((2, 1), (3, 37), (256, 16), (128, 32), (64, 1024), (5000, 3)):
        grid = grids()(torch.Size((samples, channels, side, side)), last, 4)
        turn = grid.block_pixels * grid.unroll
        assert grid.per_split % turn == 0
        assert 0 < side * side - (grid.splits - 1) * grid.per_split <= grid.per_split
        assert (grid.blocks - 1) * grid.block_channels < channels
        assert channels <= grid.blocks * grid.block_channels
        assert grid.even == (side * side % turn == 0)


@both_formats
@pytest.mark.parametrize("unroll", [4, 8])
@pytest.mark.parametrize("side", [4, 7, 8, 14, 16, 28, 32, 37])
def test_threads_take_the_elements_of_an_image_and_hardly_more(side, unroll, last):
    pytest.importorskip("triton", reason="Triton is not installed")
    from ncsn_fast.kernels.triton.instance_norm import elementwise

    for channels in (64, 128, 256, 512):
        grid = elementwise(torch.Size((2, channels, side, side)), last, unroll)
        of = grid.settings
        assert of["UNROLL"] <= unroll
        turns = grid.programs // of["BLOCKS"]
        taken = turns * of["UNROLL"] * of["BLOCK_PIXELS"]
        assert side * side <= taken
        assert channels == of["BLOCKS"] * of["BLOCK_CHANNELS"]
        # No tile lies outside but where the last program has fewer than the others.
        assert taken - side * side < (turns + 1) * of["BLOCK_PIXELS"]
        assert of["EVEN"] == (taken == side * side)
        assert of["EVEN"] or side not in (4, 8, 16, 32)


@every_triton_way
@both_formats
@pytest.mark.parametrize("shape", [SMALL[0], SPLIT[0]], ids=["whole", "split"])
def test_statistics_of_numbers_whose_squares_overflow(way, shape, last):
    from ncsn_fast.kernels.triton.instance_norm_statistics import statistics

    x = laid(torch.full(shape, 1e25), last).to(way.device)
    means, channels = shape[0] * shape[1], shape[1]
    found = torch.full((shape[0] * (2 * channels + 2),), math.nan, device=way.device)
    statistics(x, found)
    mean, variance, over, spread = found.split([means, means, shape[0], shape[0]])
    assert (mean == 1e25).all()
    assert (over == 1e25).all()
    assert not variance.any()
    assert not spread.any()


@every_triton_way
@both_formats
@pytest.mark.parametrize("shape", [SMALL[0], SPLIT[0]], ids=["whole", "split"])
def test_two_runs_are_equal_bit_for_bit(way, shape, last):
    case = Norm(shape, last, HALF)
    runs = [run(case, *inputs(case, way), way) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@every_way
def test_nan_stays_in_its_sample(way):
    x = draw((2, 32, 3, 5), seed=1)
    x[0, 1, 2, 3] = math.nan
    x, one = x.to(way.device), torch.ones(32, device=way.device)
    y = ops.instance_norm_plus(x, one, one, one, activation="elu", backend=way.backend)
    assert y[0].isnan().all()
    assert torch.isfinite(y[1]).all()


@every_native_way
def test_what_kernels_would_misread_is_refused(way):
    x, three = torch.zeros(2, 3, 4, 4), (torch.zeros(3).double(),) * 3
    with pytest.raises(ValueError, match="contiguous float32"):
        native.ops().instance_norm_plus(x, *three, 1e-5, "")


def parameters(rows=False, device="cpu"):
    """γ, α, β with gradients; per sample they are columns of one table."""
    table = draw((SHAPE[0], 3 * SHAPE[1]) if rows else (3 * SHAPE[1],), seed=5).to(device)
    return [part.requires_grad_() for part in table.chunk(3, -1)]


def derivatives(x, three, backend):
    y = ops.instance_norm_plus(x, *three, activation="swish", backend=backend)
    return y, *torch.autograd.grad(y, (x, *three), draw(SHAPE, seed=6).to(x))


@every_backend
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "shared"])
def test_the_operation_and_its_gradients_are_those_of_the_specification(way, rows):
    x = draw(SHAPE, last=True, seed=1).to(way.device).requires_grad_()
    found, expected = (
        derivatives(x, parameters(rows, way.device), name) for name in (way.backend, "torch")
    )
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0, atol=1e-5)
    assert found[0].is_contiguous(memory_format=LAST)


@every_backend
def test_parameters_of_samples_and_of_all_may_be_mixed(way):
    x = draw(SHAPE, seed=1).to(way.device)
    gamma, alpha, beta = (one.detach() for one in parameters(True, way.device))
    three = [one.clone().requires_grad_() for one in (gamma, alpha[0], beta[0].bfloat16())]
    y = ops.instance_norm_plus(x, *three, backend=way.backend)
    wide = [one.detach().double().requires_grad_() for one in three]
    exact = reference.instance_norm_plus(x.double(), *wide, EPS)
    torch.testing.assert_close(y.double(), exact, atol=1e-4, rtol=1e-4)
    expected = torch.autograd.grad(exact, wide, x.double())
    for found, e, one in zip(torch.autograd.grad(y, three, x), expected, three, strict=True):
        assert found.dtype == one.dtype
        torch.testing.assert_close(found.double(), e, atol=1e-2, rtol=1e-2)


@every_backend
def test_only_what_is_asked_for_gets_a_gradient(way):
    x = draw(SHAPE, seed=1).to(way.device)
    gamma, alpha, beta = parameters(device=way.device)
    y = ops.instance_norm_plus(x, gamma, alpha.detach(), beta.detach(), backend=way.backend)
    y.sum().backward()
    assert gamma.grad is not None
    assert alpha.grad is beta.grad is x.grad is None


@every_backend
@pytest.mark.parametrize("view", ["stride", "expand", "transpose"])
def test_any_view_will_do(way, view):
    x = {
        "stride": draw((2, 4, 6, 10), seed=1)[:, :, ::2, ::2],
        "expand": draw((2, 1, 3, 5), seed=1).expand(SHAPE),
        "transpose": draw((2, 4, 5, 3), seed=1).mT,
    }[view].to(way.device)
    gamma = draw((8,), seed=2).to(way.device)[::2]
    found, expected = (
        ops.instance_norm_plus(x, gamma, gamma, gamma, backend=name)
        for name in (way.backend, "torch")
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@every_backend
@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5)])
def test_nothing_has_a_norm(way, shape):
    x = torch.empty(shape, requires_grad=True, device=way.device)
    three = parameters(device=way.device)
    y = ops.instance_norm_plus(x, *three, backend=way.backend)
    gradients = torch.autograd.grad(y.sum(), (x, *three))
    assert y.shape == gradients[0].shape == shape
    assert not any(gradient.any() for gradient in gradients[1:])


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_statistics_of_others_are_taken_no_notice_of(backend):
    if backend == "cpp" and native.missing():
        pytest.skip(native.missing())
    x, one = draw(SHAPE, seed=1).requires_grad_(), torch.ones(SHAPE[1])
    found, expected = (
        ops.instance_norm_plus(x, one, one, one, statistics=given, backend=backend)
        for given in (torch.full((2 * (2 * 4 + 2),), math.nan), None)
    )
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    assert torch.equal(*gradients)
    if backend == "torch":
        assert torch.equal(found, reference.instance_norm_plus(x, one, one, one))


def test_float64_runs_the_specification():
    x, one = draw(SHAPE, torch.float64), torch.ones(SHAPE[1])
    assert ops.instance_norm_plus(x, one, one, one).dtype == torch.float64


@every_backend
def test_float64_is_refused_where_kernels_were_asked_for(way):
    x, one = draw(SHAPE, torch.float64).to(way.device), torch.ones(SHAPE[1], device=way.device)
    with pytest.raises(ValueError, match=r"cannot run this: .*float64"):
        ops.instance_norm_plus(x, one, one, one, backend=way.backend)


@every_backend
def test_a_second_derivative_is_refused_with_the_way_out(way):
    x = draw(SHAPE, seed=1).to(way.device).requires_grad_()
    three = parameters(device=way.device)
    y = ops.instance_norm_plus(x, *three, activation="swish", backend=way.backend)
    check_no_second_derivative(y, x, "instance_norm_plus")


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


@every_backend
def test_opcheck(way):
    x = draw(SHAPE, last=True, seed=1).to(way.device)
    three = parameters(True, way.device)
    differentiable = x.clone().requires_grad_()
    fixed = [parameter.detach() for parameter in three]
    how = EPS, "elu", way.backend
    _, norm = torch.ops.ncsn_fast.instance_norm_plus(x, *fixed, None, None, *how)
    check_operator("instance_norm_plus", differentiable, *three, None, None, *how)
    if not way.is_native:
        check_operator("instance_norm_plus", differentiable, *three, norm, None, *how)
    upstream = draw(SHAPE, seed=2).to(way.device)
    check_operator("instance_norm_plus_gradient", upstream, x, *fixed, norm, EPS, None, way.backend)
