"""What the Triton kernels have to do, whatever runs them: the cases and their checks.

``test_kernels.py`` runs them in Triton's interpreter, ``test_gpu_kernels.py`` on a GPU.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from cases.common import (
    COEFFICIENTS,
    DTYPES,
    FAST_MATH_LIMIT,
    GUARD,
    SEED,
    STEP,
    Buffers,
    assert_close,
    name,
    normal,
    sample_ids,
)
from torch import Tensor

from ncsn_fast import noise, reference
from ncsn_fast.kernels.triton.begin_step import begin_step
from ncsn_fast.kernels.triton.sampler_update import sampler_update
from ncsn_fast.noise import KNOWN, SAMPLER
from ncsn_fast.reference import StepResult

Layout = tuple[tuple[int, ...], bool]
Inputs = dict[str, Tensor | None]

# Shapes, and whether a network's tensors are channels_last. A program takes 256 quads of four
# elements where they lie one after the other (FLAT), else 64.
FLAT, STRIDED, INTERLEAVED = ((2, 1100), False), ((2, 3, 9, 11), True), ((2, 3, 16, 18), True)
WAYS = ("flat", "strided", "interleaved")  # to address memory, in the order of all such triples
SEVERAL_PROGRAMS = (FLAT, STRIDED, INTERLEAVED)
ONE_PROGRAM = (((2, 3, 8, 8), False), ((2, 3, 5, 7), True), ((2, 3, 8, 8), True))
LAYOUTS = (
    *SEVERAL_PROGRAMS,
    *ONE_PROGRAM,
    ((2, 3, 9, 11), False),
    ((5, 2), False),
    ((6, 1), False),
    ((3, 1, 7, 7), True),  # the same strides in both formats
    ((3, 5, 1, 1), True),
    *(((2, channels, 4, 6), True) for channels in (2, 4, 5, 6, 7, 8)),
    ((2, 9, 4, 4), True),  # too many channels to permute in registers
)
MANY_SAMPLES = (((260, 4), False), ((70, 3), False), ((24, 3, 4, 4), True))  # in one program


def which_noise(count: int, buffers: Buffers) -> dict[str, Tensor]:
    return {
        "seed": noise.seed_tensor(SEED, torch.device(buffers.device)),
        "step": noise.step_tensor(STEP, torch.device(buffers.device)),
        "sample_ids": buffers.input(sample_ids(count)),
    }


@dataclass(frozen=True)
class Update:
    """A case of the sampler update.

    Attributes:
        uses: of "noise", "z", "history", "guidance", "mask" and "scale", where the network's next
            input is not the state itself.
        n, n_last: the dtype of the network's output, and whether it is channels_last.
    """

    shape: tuple[int, ...]
    uses: str
    n: torch.dtype = torch.float32
    n_last: bool = False

    def __str__(self) -> str:
        sizes, uses = "x".join(map(str, self.shape)), self.uses.replace(" ", "+") or "plain"
        return f"{sizes}-{name(self.n, self.n_last)}-{uses}"


EVERYTHING = "noise history guidance mask scale"
VARIANTS = (
    "",
    "noise",
    "history",
    "noise history",
    "noise guidance",
    "noise mask",
    "mask",
    "noise scale",
    "z",
    "z history guidance mask scale",
    EVERYTHING,
)


def update_cases() -> list[Update]:
    """All variants and dtypes in each way of addressing; all layouts."""
    dtypes = itertools.cycle(DTYPES)
    cases = [
        Update(shape, uses, next(dtypes), last)
        for (shape, last), uses in itertools.product(SEVERAL_PROGRAMS, VARIANTS)
    ]
    cases += [
        Update(shape, "noise history", dtype, last)
        for (shape, last), dtype in itertools.product(ONE_PROGRAM, DTYPES)
    ]
    cases += [
        Update(shape, EVERYTHING, next(dtypes), last) for shape, last in (*LAYOUTS, *MANY_SAMPLES)
    ]
    return list(dict.fromkeys(cases))


def update_inputs(case: Update) -> Inputs:
    """The tensors that the kernel and the specification both take, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    names = ("x", "n", "z", "history", "guidance", "known", "mask")
    values = {name: torch.randn(case.shape, generator=generator) for name in names}
    given = {"x", "n", *case.uses.split()}
    if "mask" in given:
        given.add("known")
    inputs = {name: value if name in given else None for name, value in values.items()}
    inputs |= {"n": values["n"].to(case.n), "row": torch.tensor(COEFFICIENTS)}
    if "mask" in given:
        inputs["mask"] = values["mask"] > 0.3
    return inputs


def specified_update(case: Update, inputs: Inputs, dtype: torch.dtype) -> StepResult:
    """The specification of a case, with everything but n in a dtype."""
    uses, known_z = case.uses.split(), None
    if "noise" in uses:
        inputs = {**inputs, "z": normal(case.shape, SAMPLER, STEP, dtype)}
    if "mask" in uses:
        known_z = normal(case.shape, KNOWN, STEP + 1, dtype)
    inputs = {
        name: value if value is None or name in ("n", "mask") else value.to(dtype)
        for name, value in inputs.items()
    }
    return reference.sampler_update(**inputs, known_z=known_z, scale_input="scale" in uses)


def run_update(
    case: Update, inputs: Inputs, buffers: Buffers, fast_math: bool, **instead: Tensor
) -> StepResult:
    """Run the kernel, with some tensors ``instead`` of those that the case stands for."""
    uses = case.uses.split()
    tensors = {
        name: None if value is None else buffers.input(value, name == "n" and case.n_last)
        for name, value in inputs.items()
    }
    out = {"x_out": buffers.output(case.shape, torch.float32), "history_out": None}
    if "history" in uses:
        out["history_out"] = buffers.output(case.shape, torch.float32)
    if "scale" in uses:
        out["input_out"] = buffers.output(case.shape, torch.float32)
    tensors |= {"input_out": None, **out, **which_noise(case.shape[0], buffers), **instead}
    sampler_update(**tensors, add_noise="noise" in uses, fast_math=fast_math)
    return StepResult(tensors["x_out"], tensors["history_out"], tensors["input_out"])


def check_update(case: Update, device: str, fast_math: bool, guard: int = GUARD) -> None:
    """Assert that the kernel does what the specification says, and nothing else."""
    inputs, buffers = update_inputs(case), Buffers(device, guard)
    found = run_update(case, inputs, buffers, fast_math)
    buffers.check()
    exact = specified_update(case, inputs, torch.float64)
    plain = specified_update(case, inputs, torch.float32)
    for result, e, p in zip(found, exact, plain, strict=True):
        if result is not None:
            assert_close(result, e, p, FAST_MATH_LIMIT if fast_math else 0.0)


def check_update_in_place(layout: Layout, device: str, fast_math: bool) -> None:
    """Assert that state and history may be written where they are read."""
    case = Update(layout[0], EVERYTHING, torch.float16, layout[1])
    inputs = update_inputs(case)
    apart = run_update(case, inputs, Buffers(device), fast_math)
    x, history = (inputs[name].to(device, copy=True) for name in ("x", "history"))
    same = {"x": x, "x_out": x, "history": history, "history_out": history}
    found = run_update(case, inputs, Buffers(device), fast_math, **same)
    for one, other in zip(found, apart, strict=True):
        assert torch.equal(one, other)


def check_update_of_views(device: str, fast_math: bool) -> None:
    """Assert that the network's output may be any view."""
    case = Update((2, 3, 4, 6), "noise history", torch.float16)
    inputs = update_inputs(case)
    n = inputs["n"].to(device)
    last = n.repeat_interleave(2, dim=1).contiguous(memory_format=torch.channels_last)
    for view in (n.mT.contiguous().mT, n.repeat(1, 1, 1, 2)[..., ::2], last[:, ::2], n[:1, :, :1]):
        view = view.expand(case.shape)
        found = run_update(case, inputs, Buffers(device), fast_math, n=view)
        expected = run_update(case, inputs, Buffers(device), fast_math, n=view.contiguous())
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.history, expected.history)


def check_known_replaces_nan(device: str, fast_math: bool) -> None:
    """Assert that nothing hides a NaN but the known region, which replaces one."""
    case = Update((1, 8), "noise mask scale")
    inputs = update_inputs(case)
    inputs["x"][0, :4] = torch.tensor([math.nan, math.nan, math.inf, -math.inf])
    inputs["mask"][0, :4] = torch.tensor([False, True, False, False])
    found = run_update(case, inputs, Buffers(device), fast_math)
    for result in (found.x, found.network_input):
        assert result.isnan().tolist() == [[True] + [False] * 7]
        assert result[0, 2:4].tolist() == [math.inf, -math.inf]


def check_begin_step(conditions: Tensor | None, samples: int, device: str) -> None:
    """Assert that steps count up, in noise beyond the end of the table, which holds its last row.

    Args:
        conditions: (3,), what the network is told in each row.
        samples: how many samples are told it.
    """
    buffers = Buffers(device)
    values = torch.randn(3, 9, generator=torch.Generator().manual_seed(4))
    table = buffers.input(values)
    counter = torch.tensor([1, STEP], device=device)
    row, step = buffers.output((9,), torch.float32), buffers.output((), torch.int64)
    told, condition = None, None
    if conditions is not None:
        told = buffers.input(conditions)
        condition = buffers.output((samples,), conditions.dtype)
    for index in (1, 2, 2, 2):
        before = counter.cpu().clone()
        begin_step(counter, table, told, row, step, condition)
        assert torch.equal(counter.cpu(), before + 1)
        assert torch.equal(row.cpu(), values[index])
        assert step.item() == before[1]
        assert condition is None or torch.equal(condition.cpu(), conditions[index].expand(samples))
    buffers.check()
