"""The operations on images as networks run them on a GPU: sizes, captures, torch.compile, and what
lies beyond 32 bits."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from cases.common import Way, draw
from cases.images import HALF, LAST, both_formats
from cases.norm import SMALL, SPLIT, Norm, check_norm, check_statistics

from ncsn_fast import ops, reference
from ncsn_fast.kernels.triton.max_pool5 import max_pool5

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
FAST = Way("triton", DEVICE, fast_math=True)
NETWORK = (16, 128, 32, 32)  # as NCSNv2 has them on CIFAR-10
# As networks have them, for whole samples and for samples that are split.
REAL = ((256, 128, 16, 16), (3, 256, 16, 16), (64, 512, 4, 4), (2, 128, 96, 96))
ACTIVATIONS = ("elu", "relu", "lrelu", "swish", None)


@both_formats
@pytest.mark.parametrize("shape", REAL, ids=str)
def test_norms_of_networks_are_their_specification(shape, last):
    check_norm(Norm(shape, last, HALF), FAST)


@both_formats
@pytest.mark.parametrize("shape", [SMALL[1], SPLIT[1], *REAL], ids=str)
def test_statistics_of_a_sum_are_those_of_its_total(shape, last):
    check_statistics(shape, last, DEVICE)


def test_more_samples_than_a_grid_has_rows():
    check_norm(Norm((70_000, 4, 2, 2), True, HALF), FAST)


def images(*sizes):
    """Leaves with few different values."""
    drawn = [((2 * draw(size, HALF)).round() / 2).to(DEVICE) for size in sizes]
    return [image.contiguous(memory_format=LAST).requires_grad_() for image in drawn]


def operations():
    """Functions of one or two images, with the number of them."""
    given = {
        f"max_pool5 {activation}": (lambda x, a=activation: ops.max_pool5(x, activation=a), 1)
        for activation in ACTIVATIONS
    }
    given["residual_add"] = (lambda x, y: ops.residual_add(x, y, activation="elu")[:2], 2)
    given["resize_add"] = (lambda x: [ops.resize_add(x[..., :16, :16], x)], 1)
    given["resize_add down"] = (lambda x: [ops.resize_add(x, x[..., :16, :16])], 1)
    return given


@pytest.mark.parametrize("name", operations())
def test_results_are_bit_for_bit_the_same_whenever_they_are_computed(name):
    operation, count = operations()[name]
    inputs = [image.detach() for image in images(*[NETWORK] * count)]
    first = operation(*inputs)
    for one, other in zip(first, operation(*inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_of_max_pool5_is_deterministic(activation):
    (x,) = images(NETWORK)
    gradients = []
    for _ in range(2):
        pooled = ops.max_pool5(x, activation=activation)[1]
        gradients += torch.autograd.grad(pooled.float().sum(), x)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("size", [(16, 16), (64, 64)])
def test_the_gradient_of_resize_add_is_deterministic(size):
    base, x = images(NETWORK, (*NETWORK[:2], *size))
    gradients = []
    for _ in range(2):
        gradients += torch.autograd.grad(ops.resize_add(x, base).float().square().sum(), x)
    assert torch.equal(*gradients)


def captured(step):
    """A step as a graph, with what it returned in the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


@pytest.mark.parametrize("name", operations())
def test_a_captured_pass_replays_what_it_computes_eagerly(name):
    operation, count = operations()[name]
    inputs = [image.detach() for image in images(*[NETWORK] * count)]
    graph, results = captured(lambda: operation(*inputs))
    for image in inputs:
        image.neg_()
    graph.replay()
    for one, other in zip(results, operation(*inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.alone
@pytest.mark.parametrize("name", operations())
def test_a_compiled_pass_gives_the_same_results(name):
    operation, count = operations()[name]
    inputs = images(*[NETWORK] * count)
    compiled = torch.compile(operation, fullgraph=True)
    # It launches the very kernels: a spacing of float16 would be as large as a tolerance.
    for one, other in zip(compiled(*inputs), operation(*inputs), strict=True):
        assert torch.equal(one, other)


class Unit:
    """The end of a residual unit and the norm behind it, as a network without gradients runs it."""

    def __init__(self, shape):
        self.x, self.residual, self.y = (
            torch.empty(shape, dtype=HALF, device=DEVICE, memory_format=LAST) for _ in range(3)
        )
        self.parameters = [draw((shape[1],), seed=seed).to(DEVICE) for seed in (1, 2, 3)]

    def draw(self, seed):
        self.x.copy_(draw(self.x.shape, seed=seed))
        self.residual.copy_(draw(self.x.shape, seed=seed + 1))

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
    graph, _ = captured(unit.step)
    for seed in (10, 20, 30):
        unit.draw(seed)
        graph.replay()
        replayed = unit.y.clone()
        unit.step()
        assert torch.equal(replayed, unit.y)


def need_memory(gigabytes):
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free memory on the GPU")


@pytest.mark.alone
@both_formats
@pytest.mark.parametrize(
    "shape", [((1 << 31) // 4096 + 3, 256, 4, 4), (1, 3, 32768, 32768)], ids=["batch", "sample"]
)
def test_norm_beyond_32_bits(shape, last):
    need_memory(40)
    layout = LAST if last else torch.contiguous_format
    x = torch.empty(shape, dtype=HALF, device=DEVICE, memory_format=layout).normal_()
    gamma, alpha, beta = (draw((shape[1],), seed=seed).to(DEVICE) for seed in (1, 2, 3))
    y = ops.instance_norm_plus(x, gamma, alpha, beta, backend="triton")
    moments = [torch.var_mean(channel.float(), correction=0) for channel in x[-1]]
    variance, mean = (torch.stack(parts) for parts in zip(*moments, strict=True))
    over, center = torch.var_mean(mean)
    t = (mean - center) / torch.sqrt(over + 1e-5)
    scale = gamma / torch.sqrt(variance + 1e-5)
    pixels = x[-1, :, -1].float() - mean[:, None]  # of the last row of the last sample
    expected = pixels * scale[:, None] + (gamma * alpha * t + beta)[:, None]
    assert (y[-1, :, -1] - expected).abs().max() <= 1e-2


@pytest.mark.alone
@both_formats
def test_gradient_beyond_32_bits(last):
    need_memory(40)
    layout = LAST if last else torch.contiguous_format
    shape = ((1 << 31) // 4096 + 3, 256, 4, 4)
    x = torch.empty(shape, dtype=HALF, device=DEVICE, memory_format=layout).normal_()
    three = [draw((shape[1],), seed=seed).to(DEVICE) for seed in (1, 2, 3)]
    x.requires_grad_()
    y = ops.instance_norm_plus(x, *three, activation="elu", backend="triton")
    (found,) = torch.autograd.grad(y, x, torch.ones_like(y))
    alone = x.detach()[-1:].float().requires_grad_()
    expected = reference.instance_norm_plus(alone, *three, 1e-5, "elu")
    (expected,) = torch.autograd.grad(expected, alone, torch.ones_like(expected))
    assert (found[-1:] - expected).abs().max() <= 1e-2


@pytest.mark.alone
@both_formats
def test_a_batch_of_more_than_4_gibi_elements_is_pooled_to_its_end(last):
    shape = (34, 128, 1024, 1024)
    needed = 2 * 2 * torch.Size(shape).numel() + (4 << 30)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory")
    layout = LAST if last else torch.contiguous_format
    x = torch.empty(shape, dtype=HALF, device=DEVICE, memory_format=layout).normal_()
    pooled = torch.empty_like(x)
    max_pool5(x, None, pooled, None)
    assert torch.equal(pooled[-1:], torch.nn.functional.max_pool2d(x[-1:], 5, 1, 2))
