"""The memory-bound passes on a GPU: python -m pytest -m gpu tests/test_gpu_passes.py."""

import pytest
import torch
from cases.common import UNALIGNED

pytest.importorskip("triton", reason="Triton is not installed")

from cases.passes import (
    IMAGES,
    RISING,
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

from ncsn_fast import ops, reference
from ncsn_fast.kernels.triton.max_pool5 import max_pool5

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
HALF, LAST = torch.float16, torch.channels_last
NETWORK = Pass((16, 128, 32, 32), True, HALF)  # as NCSNv2 has them on CIFAR-10
both_mathematics = pytest.mark.parametrize("fast_math", [True, False], ids=["fast", "exact"])


@both_mathematics
@pytest.mark.parametrize("case", residual_cases(), ids=str)
def test_residual_add_is_its_specification(case, fast_math):
    check_residual_add(case, DEVICE, fast_math)
    check_residual_add_gradient(case, DEVICE, fast_math)


@both_mathematics
@pytest.mark.parametrize("case", pool_cases(), ids=str)
def test_max_pool5_is_its_specification(case, fast_math):
    check_max_pool5(case, DEVICE, fast_math)
    check_max_pool5_gradient(case, DEVICE, fast_math)


@pytest.mark.parametrize("case", resize_cases(), ids=str)
def test_resize_add_is_its_specification(case):
    check_resize_add(case, DEVICE)


@both_mathematics
@pytest.mark.parametrize("last", [False, True])
def test_nan_wins_and_minus_infinity_loses_a_maximum(last, fast_math):
    check_special_values(DEVICE, last, fast_math)


@both_mathematics
def test_kernels_take_tensors_that_are_not_aligned(fast_math):
    case = Pass(*IMAGES[1], HALF, "elu")
    check_residual_add(case, DEVICE, fast_math, UNALIGNED)
    check_max_pool5(case, DEVICE, fast_math, UNALIGNED)
    check_resize_add(Pass((1, 8, 4, 3), True, HALF, size=(2, 2)), DEVICE, UNALIGNED)


@both_mathematics
def test_elu_has_all_its_digits_near_zero(fast_math):
    check_elu_near_zero(DEVICE, fast_math)


def test_what_lies_beyond_the_last_vector_is_that_vector_again():
    check_locate(DEVICE)


def test_elements_beyond_32_bits_are_found():
    check_offsets(DEVICE)


@pytest.mark.parametrize("last", [False, True])
def test_a_batch_of_more_than_4_gibi_elements_is_pooled_to_its_end(last):
    shape = (34, 128, 1024, 1024)
    needed = 2 * 2 * torch.Size(shape).numel() + (4 << 30)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory")
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(shape, dtype=HALF, device=DEVICE, memory_format=layout).normal_()
    pooled = torch.empty_like(x)
    max_pool5(x, None, pooled, None)
    assert torch.equal(pooled[-1:], torch.nn.functional.max_pool2d(x[-1:], 5, 1, 2))


def images(*sizes):
    drawn = [with_ties(draw(size, NETWORK.dtype, 1)[0]) for size in sizes]
    moved = [image.to(DEVICE).contiguous(memory_format=LAST) for image in drawn]
    return [image.requires_grad_() for image in moved]


def operations():
    """Functions of one or two images, with the number of them."""
    given = {
        f"max_pool5 {activation}": (lambda x, a=activation: ops.max_pool5(x, activation=a), 1)
        for activation in (*RISING, "swish", None)
    }
    given["residual_add"] = (lambda x, y: ops.residual_add(x, y, activation="elu")[:2], 2)
    given["resize_add"] = (lambda x: [ops.resize_add(x[..., :16, :16], x)], 1)
    given["resize_add down"] = (lambda x: [ops.resize_add(x, x[..., :16, :16])], 1)
    return given


@pytest.mark.parametrize("name", operations())
def test_results_are_bit_for_bit_the_same_whenever_they_are_computed(name):
    operation, count = operations()[name]
    inputs = [image.detach() for image in images(*[NETWORK.shape] * count)]
    first = operation(*inputs)
    for one, other in zip(first, operation(*inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", [*RISING, None])
def test_the_gradient_of_max_pool5_is_deterministic(activation):
    (x,) = images(NETWORK.shape)
    gradients = []
    for _ in range(2):
        pooled = ops.max_pool5(x, activation=activation)[1]
        gradients += torch.autograd.grad(pooled.float().sum(), x)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", operations())
def test_a_captured_pass_replays_what_it_computes_eagerly(name):
    operation, count = operations()[name]
    inputs = [image.detach() for image in images(*[NETWORK.shape] * count)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        operation(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operation(*inputs)
    for image in inputs:
        image.neg_()
    graph.replay()
    for one, other in zip(captured, operation(*inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", operations())
def test_a_compiled_pass_gives_the_same_results(name):
    operation, count = operations()[name]
    inputs = images(*[NETWORK.shape] * count)
    compiled = torch.compile(operation, fullgraph=True)
    for one, other in zip(compiled(*inputs), operation(*inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_kernels_are_what_runs_on_a_gpu():
    (x,) = images(NETWORK.shape)
    assert ops.max_pool5(x)[1].grad_fn.name() != reference.max_pool5(x)[1].grad_fn.name()
