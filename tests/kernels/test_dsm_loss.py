"""dsm_loss and its gradient: each implementation against the specification."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from cases.common import (
    FAST_MATH_LIMIT,
    GUARD,
    SEED,
    STEP,
    UNALIGNED,
    Buffers,
    Way,
    assert_close,
    draw,
    every_native_way,
    every_triton_way,
    every_way,
    name,
    normal,
    on_every_way,
    poisoned,
)
from cases.states import (
    CUT,
    HALF,
    HUGE,
    LAYOUTS,
    MANY,
    NATIVE_LAYOUTS,
    PLACES,
    SEVERAL_PROGRAMS,
    check_cut,
    each_place,
    layout_of,
    need_memory,
    step_on,
    which_noise,
)

from ncsn_fast import noise, reference
from ncsn_fast.device import native
from ncsn_fast.noise import PERTURB

ON_GPU = Way("triton", "cuda", fast_math=True)


@dataclass(frozen=True)
class Loss:
    """A case.

    Attributes:
        last, dtype: of the network's output, which is channels_last or contiguous.
        outputs: of "loss" and "gradient".
        weighted: whether the losses have weights.
        one_upstream: whether one value is expanded to the gradients of all losses.
    """

    shape: tuple[int, ...]
    last: bool
    dtype: torch.dtype
    outputs: str = "loss gradient"
    weighted: bool = True
    one_upstream: bool = False

    def __str__(self) -> str:
        kind = f"{'x'.join(map(str, self.shape))}-{name(self.dtype, self.last)}"
        more = ["weighted"] * self.weighted + ["one_upstream"] * self.one_upstream
        return "-".join([kind, self.outputs.replace(" ", "+"), *more])


def cases(way):
    """All layouts; all dtypes, and all outputs with and without weights, in each way of
    addressing."""
    if way.is_native:
        of = itertools.product(NATIVE_LAYOUTS, way.dtypes, (True, False))
        return [Loss(*layout, dtype, weighted=weighted) for layout, dtype, weighted in of]
    dtypes, one_upstream = itertools.cycle(way.dtypes), itertools.cycle((True, False))
    found = [Loss(*layout, next(dtypes)) for layout in LAYOUTS]
    found += [Loss(*layout, dtype) for layout in SEVERAL_PROGRAMS for dtype in way.dtypes]
    outputs = ("loss", "gradient", "loss gradient")
    found += [
        Loss(*layout, next(dtypes), wanted, weighted, next(one_upstream))
        for layout, weighted, wanted in itertools.product(SEVERAL_PROGRAMS, (True, False), outputs)
    ]
    return dict.fromkeys(found)


@on_every_way(cases)
def test_dsm_loss_and_its_gradient_are_their_specification(way, case):
    check(case, way)


@every_way
@each_place
def test_tensors_need_not_be_aligned(way, place):
    check(Loss(*layout_of(place, way), way.dtypes[1]), way, UNALIGNED)


@every_triton_way
@pytest.mark.parametrize(("shape", "last"), CUT, ids=PLACES)
def test_a_batch_may_take_several_launches(way, shape, last):
    case = Loss(shape, last, HALF)
    inputs = inputs_of(case)
    check_cut(lambda buffers: run(case, *inputs, way, buffers), shape, last, way)


@every_native_way
def test_a_sample_has_the_same_loss_in_any_batch(way):
    for shape in ((3, 5000), (40, 100), (700, 3)):
        n, buffers = draw(shape), Buffers("cpu")
        seed, step, ids = which_noise(shape[0], buffers).values()
        loss, alone = poisoned(shape[:1]), poisoned((1,))
        native.ops().dsm_loss(n, None, seed, step, ids, None, loss, None)
        for i in (0, 1, shape[0] - 1):
            one = slice(i, i + 1)
            native.ops().dsm_loss(n[one], None, seed, step, ids[one], None, alone, None)
            assert torch.equal(alone[0], loss[i])


@every_native_way
def test_bfloat16_is_rounded_as_pytorch_rounds(way):
    """In the gradient of the loss, 1.5·(n + z): every odd n of [128, 170]·2ᵏ is a tie."""
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-(1 << 15), 1 << 15, (1, 1 << 17), generator=generator)
    n = bits.to(torch.int16).view(torch.bfloat16)
    n[0, :4] = torch.tensor([math.nan, math.inf, -math.inf, 3.38e38])
    exact, found = poisoned(n.shape), poisoned(n.shape, torch.bfloat16)
    which = which_noise(1, Buffers("cpu")).values()
    for of, gradient in ((n.float(), exact), (n, found)):
        native.ops().dsm_loss(of, None, *which, torch.tensor([1.5]), None, gradient)
    ties = exact.isfinite() & (exact.view(torch.int32) & 0xFFFF == 0x8000)
    assert ties.sum() > 1000
    torch.testing.assert_close(found, exact.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "last"), MANY)
def test_there_may_be_more_samples_than_a_grid_has_rows(shape, last):
    check(Loss(shape, last, HALF), ON_GPU)


@pytest.mark.gpu
@each_place
def test_two_runs_are_equal_bit_for_bit(place):
    case = Loss(*SEVERAL_PROGRAMS[place], HALF)
    runs = (run(case, *inputs_of(case), ON_GPU, Buffers("cuda")) for _ in range(2))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.alone
@pytest.mark.gpu
def test_elements_are_counted_beyond_32_bits():
    from ncsn_fast.kernels.triton.dsm_loss import dsm_loss

    need_memory(40)
    n = torch.zeros(HUGE[0], dtype=HALF, device="cuda")
    loss, gradient = torch.full((len(n),), torch.nan, device="cuda"), torch.empty_like(n)
    ids, one = torch.arange(len(n), device="cuda"), torch.ones(1, device="cuda")
    which = {**step_on("cuda"), "sample_ids": ids, "upstream": one.expand(len(n))}
    dsm_loss(n, None, **which, loss=loss, gradient=gradient, fast_math=False)
    assert torch.isfinite(loss).all()
    for i in (0, len(n) // 3, len(n) - 1):
        z = noise.normal(n.shape[1:], seed=SEED, step=STEP, stream=PERTURB, sample_ids=[i])[0]
        assert float(loss[i]) == pytest.approx(float(z.square().sum()) / 2, rel=1e-5)
        assert torch.allclose(gradient[i].cpu(), z.half(), rtol=0, atol=5e-3)


def inputs_of(case):
    """(n, weight, upstream), on the CPU."""
    generator, count = torch.Generator().manual_seed(3), case.shape[0]
    n = torch.randn(case.shape, generator=generator).to(case.dtype)
    weight, upstream = torch.rand(2, count, generator=generator)
    if case.one_upstream:
        upstream = upstream[:1].expand(count)
    return n, weight if case.weighted else None, upstream


def specified(n, weight, upstream, dtype):
    """Losses and their gradient by autograd, with everything in a dtype."""
    n = n.to(dtype, copy=True).requires_grad_()
    weight = None if weight is None else weight.to(dtype)
    losses = reference.dsm_loss(n, normal(n.shape, PERTURB, STEP, dtype), weight)
    return losses.detach(), torch.autograd.grad(losses, n, upstream.to(dtype))[0]


def run(case, n, weight, upstream, way, buffers):
    """The results that the case asks for of (loss, gradient)."""
    count, loss, gradient, given = case.shape[0], None, None, None
    if "loss" in case.outputs:
        loss = buffers.output((count,), torch.float32)
    if "gradient" in case.outputs:
        gradient = buffers.output(case.shape, case.dtype, case.last)
        given = buffers.input(upstream[:1]).expand(count)
        if not case.one_upstream:  # every second of some values
            given = buffers.input(upstream.repeat_interleave(2))[::2]
    weight = None if weight is None else buffers.input(weight)
    tensors = buffers.input(n, case.last), weight, *which_noise(count, buffers).values()
    launch(way, tensors, given, loss, gradient)
    return [result for result in (loss, gradient) if result is not None]


def launch(way, tensors, upstream, loss, gradient):
    if way.is_native:
        upstream = None if upstream is None else upstream.contiguous()
        native.ops().dsm_loss(*tensors, upstream, loss, gradient)
        return
    from ncsn_fast.kernels.triton.dsm_loss import dsm_loss

    dsm_loss(*tensors, upstream, loss=loss, gradient=gradient, fast_math=way.fast_math)


def check(case, way, guard=GUARD):
    inputs, buffers = inputs_of(case), Buffers(way.device, guard)
    found = dict(zip(case.outputs.split(), run(case, *inputs, way, buffers), strict=True))
    buffers.check()
    exact, plain = (specified(*inputs, dtype) for dtype in (torch.float64, torch.float32))
    # An error of z changes ½(n + z)² by |n + z| times as much, which is 1.1 on the average.
    slack = 4 * FAST_MATH_LIMIT if way.fast_math else 0.0
    if "loss" in found:  # one sum of many terms: relative to their number or its size
        elements = math.prod(case.shape[1:])
        size = min(elements, float(exact[0].max()))
        scaled = (losses / size for losses in (found["loss"], exact[0], plain[0]))
        assert_close(*scaled, slack * elements / size)
    if "gradient" in found:
        assert_close(found["gradient"], exact[1], way.stored(plain[1], case.dtype), slack)
