"""What the training kernels have to do, whatever runs them, and what all kernels have in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from cases.common import (
    DTYPES,
    FAST_MATH_LIMIT,
    GUARD,
    STEP,
    Buffers,
    assert_close,
    name,
    normal,
    stored,
)
from cases.update import (
    EVERYTHING,
    LAYOUTS,
    SEVERAL_PROGRAMS,
    Layout,
    Update,
    run_update,
    update_inputs,
    which_noise,
)
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.kernels.triton.common import launch, tiles
from ncsn_fast.kernels.triton.dsm_loss import dsm_loss
from ncsn_fast.kernels.triton.perturb import perturb
from ncsn_fast.noise import PERTURB


@dataclass(frozen=True)
class Training:
    """A case of the training kernels.

    Attributes:
        dtype, last: of the perturbed data, or of the network's output; whether channels_last.
        outputs: of "loss" and "gradient"; of no concern to the perturbation.
        weighted: whether the loss has weights.
        one_upstream: whether one value is expanded to the gradients of all losses.
    """

    shape: tuple[int, ...]
    last: bool
    dtype: torch.dtype
    outputs: str = "loss gradient"
    weighted: bool = True
    one_upstream: bool = False

    def __str__(self) -> str:
        outputs = self.outputs.replace(" ", "+")
        more = ["weighted"] * self.weighted + ["one_upstream"] * self.one_upstream
        return "-".join([brief(self), outputs, *more])


def brief(case: Training) -> str:
    """The name of a case of the perturbation."""
    return f"{'x'.join(map(str, case.shape))}-{name(case.dtype, case.last)}"


def training_cases() -> list[Training]:
    """All layouts, and all dtypes in each way of addressing."""
    dtypes = itertools.cycle(DTYPES)
    cases = [Training(*layout, next(dtypes)) for layout in LAYOUTS]
    cases += [Training(*layout, dtype) for layout in SEVERAL_PROGRAMS for dtype in DTYPES]
    return list(dict.fromkeys(cases))


def loss_cases() -> list[Training]:
    """Those, and all outputs with and without weights in each way of addressing."""
    dtypes, one_upstream = itertools.cycle(DTYPES), itertools.cycle((True, False))
    outputs = ("loss", "gradient", "loss gradient")
    products = itertools.product(SEVERAL_PROGRAMS, (True, False), outputs)
    cases = [
        Training(*layout, next(dtypes), wanted, weighted, next(one_upstream))
        for layout, weighted, wanted in products
    ]
    return list(dict.fromkeys([*training_cases(), *cases]))


def run_perturb(
    case: Training, x: Tensor, sigma: Tensor, buffers: Buffers, fast_math: bool
) -> Tensor:
    out = buffers.output(case.shape, torch.float32)
    which = which_noise(case.shape[0], buffers)
    perturb(buffers.input(x), buffers.input(sigma), **which, out=out, fast_math=fast_math)
    return out


def perturb_inputs(case: Training) -> tuple[Tensor, Tensor]:
    """(x, sigma), on the CPU."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(case.shape, generator=generator)
    return x, torch.rand(case.shape[0], generator=generator)


def check_perturb(case: Training, device: str, fast_math: bool, guard: int = GUARD) -> None:
    """Assert that the perturbed data are those of the specification."""
    (x, sigma), buffers = perturb_inputs(case), Buffers(device, guard)
    out = run_perturb(case, x, sigma, buffers, fast_math)
    buffers.check()
    z = normal(case.shape, PERTURB, STEP, torch.float64)
    exact = reference.perturb(x.double(), sigma.double(), z)
    plain = reference.perturb(x, sigma, normal(case.shape, PERTURB, STEP, torch.float32))
    assert_close(out, exact, plain, FAST_MATH_LIMIT if fast_math else 0.0)


def loss_inputs(case: Training) -> tuple[Tensor, Tensor | None, Tensor]:
    """(n, weight, upstream), on the CPU."""
    generator, count = torch.Generator().manual_seed(3), case.shape[0]
    n = torch.randn(case.shape, generator=generator).to(case.dtype)
    weight, upstream = torch.rand(2, count, generator=generator)
    if case.one_upstream:
        upstream = upstream[:1].expand(count)
    return n, weight if case.weighted else None, upstream


def specified_loss(
    n: Tensor, weight: Tensor | None, upstream: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Losses and their gradient by autograd, with everything in a dtype."""
    n = n.to(dtype, copy=True).requires_grad_()
    weight = None if weight is None else weight.to(dtype)
    losses = reference.dsm_loss(n, normal(n.shape, PERTURB, STEP, dtype), weight)
    return losses.detach(), torch.autograd.grad(losses, n, upstream.to(dtype))[0]


def run_loss(
    case: Training,
    n: Tensor,
    weight: Tensor | None,
    upstream: Tensor,
    buffers: Buffers,
    fast_math: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(loss, gradient) of the kernel; None for what the case does without."""
    count, loss, gradient, given = case.shape[0], None, None, None
    if "loss" in case.outputs:
        loss = buffers.output((count,), torch.float32)
    if "gradient" in case.outputs:
        gradient = buffers.output(case.shape, case.dtype, case.last)
        given = buffers.input(upstream[:1]).expand(count)
        if not case.one_upstream:  # every second of some values
            given = buffers.input(upstream.repeat_interleave(2))[::2]
    dsm_loss(
        buffers.input(n, case.last),
        None if weight is None else buffers.input(weight),
        **which_noise(count, buffers),
        upstream=given,
        loss=loss,
        gradient=gradient,
        fast_math=fast_math,
    )
    return loss, gradient


def check_loss(case: Training, device: str, fast_math: bool, guard: int = GUARD) -> None:
    """Assert that losses (per element) and gradient are those of the specification."""
    inputs, buffers = loss_inputs(case), Buffers(device, guard)
    loss, gradient = run_loss(case, *inputs, buffers, fast_math)
    buffers.check()
    exact, plain = (specified_loss(*inputs, dtype) for dtype in (torch.float64, torch.float32))
    # An error of z changes ½(n + z)² by |n + z| times as much, which is 1.1 on the average.
    slack = 4 * FAST_MATH_LIMIT if fast_math else 0.0
    elements = math.prod(case.shape[1:])
    if loss is not None:
        assert_close(loss / elements, exact[0] / elements, plain[0] / elements, slack)
    if gradient is not None:
        assert_close(gradient, exact[1], stored(plain[1], case.dtype), slack)


SPLIT = (((5, 24), False), ((5, 3, 3, 3), True), ((5, 3, 4, 4), True))


@contextmanager
def launches_of(quads: int) -> Iterator[None]:
    """Let no launch take more quads than this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_MOST_QUADS", quads)
        _forget_geometries()
        yield
    _forget_geometries()


def _forget_geometries() -> None:
    launch.over_all.cache_clear()
    launch.within_samples.cache_clear()


def check_split(layout: Layout, device: str, fast_math: bool) -> None:
    """Assert that a batch too large for one launch comes out as from one, bit for bit."""
    shape, last = layout
    half = torch.float16
    update, training = Update(shape, EVERYTHING, half, last), Training(*layout, half)

    def updated(buffers: Buffers) -> list[Tensor]:
        return [*run_update(update, update_inputs(update), buffers, fast_math)]

    def perturbed(buffers: Buffers) -> list[Tensor]:
        return [run_perturb(training, *perturb_inputs(training), buffers, fast_math)]

    def losses(buffers: Buffers) -> list[Tensor]:
        return [*run_loss(training, *loss_inputs(training), buffers, fast_math)]

    for run, plan_last in ((updated, last), (perturbed, False), (losses, last)):
        whole = run(Buffers(device))
        with launches_of(2 * tiles.plan(torch.Size(shape), plan_last).quads):
            assert tiles.plan(torch.Size(shape), plan_last).samples == 2 < shape[0]
            buffers = Buffers(device)
            split = run(buffers)
        buffers.check()
        for one, other in zip(split, whole, strict=True):
            assert torch.equal(one, other)
