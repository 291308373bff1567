"""InstanceNorm++ on a GPU: python -m pytest -m gpu tests/test_gpu_networks.py."""

import pytest
import torch
from cases.common import UNALIGNED, Buffers

pytest.importorskip("triton", reason="Triton is not installed")

from cases.norm import (
    SMALL,
    SPLIT,
    Norm,
    check_norm,
    check_statistics,
    draw,
    inputs,
    norm_cases,
    run,
)

from ncsn_fast import ops, reference

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
HALF, LAST = torch.float16, torch.channels_last
both_mathematics = pytest.mark.parametrize("fast_math", [True, False], ids=["fast", "exact"])
both_formats = pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
# As networks have them, for whole samples and for samples that are split.
REAL = ((256, 128, 16, 16), (3, 256, 16, 16), (64, 512, 4, 4), (2, 128, 96, 96))


@both_mathematics
@pytest.mark.parametrize("case", norm_cases(), ids=str)
def test_norm_and_gradients_are_their_specification(case, fast_math):
    check_norm(case, DEVICE, fast_math)


@both_formats
@pytest.mark.parametrize("shape", REAL, ids=str)
def test_shapes_of_networks(shape, last):
    check_norm(Norm(shape, last, HALF), DEVICE, True)


@both_formats
def test_the_kernels_take_tensors_that_are_not_aligned(last):
    check_norm(Norm(SMALL[1], last, HALF, rows=True), DEVICE, True, guard=UNALIGNED)


@both_formats
@pytest.mark.parametrize("shape", [*SMALL, *SPLIT, *REAL], ids=str)
def test_statistics_of_a_sum_are_those_of_its_total(shape, last):
    check_statistics(shape, last, DEVICE)


@both_formats
@pytest.mark.parametrize("shape", [SMALL[0], SPLIT[0]], ids=str)
def test_two_runs_are_equal_bit_for_bit(shape, last):
    case = Norm(shape, last, HALF)
    runs = [run(case, *inputs(case), Buffers(DEVICE), True) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


class Unit:
    """The end of a residual unit and the norm behind it, as a network without gradients runs it."""

    def __init__(self, shape):
        self.x, self.residual, self.y = (
            torch.empty(shape, dtype=HALF, device=DEVICE, memory_format=LAST) for _ in range(3)
        )
        self.parameters = [draw((shape[1],), seed).to(DEVICE) for seed in (1, 2, 3)]

    def draw(self, seed):
        self.x.copy_(draw(self.x.shape, seed))
        self.residual.copy_(draw(self.x.shape, seed + 1))

    def step(self):
        with torch.no_grad():
            total, _, statistics = ops.residual_add(self.x, self.residual, statistics=True)
            assert statistics is not None
            self.y.copy_(
                ops.instance_norm_plus(
                    total, *self.parameters, activation="elu", statistics=statistics
                )
            )


@pytest.mark.parametrize("shape", [SPLIT[0], REAL[0]], ids=["split", "whole"])
def test_replays_of_a_graph_are_the_eager_steps_bit_for_bit(shape):
    unit = Unit(shape)
    unit.draw(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        unit.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        unit.step()
    for seed in (10, 20, 30):
        unit.draw(seed)
        graph.replay()
        replayed = unit.y.clone()
        unit.step()
        assert torch.equal(replayed, unit.y)


def test_more_samples_than_a_grid_has_rows():
    check_norm(Norm((70_000, 4, 2, 2), True, HALF), DEVICE, True)


def need_memory(gigabytes):
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free memory on the GPU")


@both_formats
@pytest.mark.parametrize(
    "shape", [((1 << 31) // 4096 + 3, 256, 4, 4), (1, 3, 32768, 32768)], ids=["batch", "sample"]
)
def test_norm_beyond_32_bits(shape, last):
    need_memory(40)
    layout = LAST if last else torch.contiguous_format
    x = torch.empty(shape, dtype=HALF, device=DEVICE, memory_format=layout).normal_()
    gamma, alpha, beta = (draw((shape[1],), seed).to(DEVICE) for seed in (1, 2, 3))
    y = ops.instance_norm_plus(x, gamma, alpha, beta, backend="triton")
    moments = [torch.var_mean(channel.float(), correction=0) for channel in x[-1]]
    variance, mean = (torch.stack(parts) for parts in zip(*moments, strict=True))
    over, center = torch.var_mean(mean)
    t = (mean - center) / torch.sqrt(over + 1e-5)
    scale = gamma / torch.sqrt(variance + 1e-5)
    pixels = x[-1, :, -1].float() - mean[:, None]  # of the last row of the last sample
    expected = pixels * scale[:, None] + (gamma * alpha * t + beta)[:, None]
    assert (y[-1, :, -1] - expected).abs().max() <= 1e-2


@both_formats
def test_gradient_beyond_32_bits(last):
    need_memory(40)
    layout = LAST if last else torch.contiguous_format
    shape = ((1 << 31) // 4096 + 3, 256, 4, 4)
    x = torch.empty(shape, dtype=HALF, device=DEVICE, memory_format=layout).normal_()
    three = [draw((shape[1],), seed).to(DEVICE) for seed in (1, 2, 3)]
    x.requires_grad_()
    y = ops.instance_norm_plus(x, *three, activation="elu", backend="triton")
    (found,) = torch.autograd.grad(y, x, torch.ones_like(y))
    alone = x.detach()[-1:].float().requires_grad_()
    expected = reference.instance_norm_plus(alone, *three, 1e-5, "elu")
    (expected,) = torch.autograd.grad(expected, alone, torch.ones_like(expected))
    assert (found[-1:] - expected).abs().max() <= 1e-2
