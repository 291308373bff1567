"""sampler_update: each implementation against the specification."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from cases.common import (
    COEFFICIENTS,
    FAST_MATH_LIMIT,
    GUARD,
    SEED,
    STEP,
    UNALIGNED,
    Buffers,
    Way,
    assert_close,
    every_triton_way,
    every_way,
    laid,
    name,
    normal,
    on_every_way,
)
from cases.states import (
    CUT,
    HALF,
    HUGE,
    LAYOUTS,
    MANY,
    MANY_SAMPLES,
    NATIVE_LAYOUTS,
    ONE_PROGRAM,
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
from ncsn_fast.noise import KNOWN, SAMPLER
from ncsn_fast.reference import StepResult

ON_GPU = Way("triton", "cuda", fast_math=True)
EVERYTHING = "noise history guidance mask scale"
VARIANTS = (
    *("", "noise", "history", "noise history", "noise guidance", "noise mask", "mask"),
    *("noise scale", "z", "z history guidance mask scale", EVERYTHING),
)


@dataclass(frozen=True)
class Update:
    """A case.

    Attributes:
        last, dtype: of the network's output, which is channels_last or contiguous.
        uses: of "noise", "z", "history", "guidance", "mask" and "scale", where the network's next
            input is not the state itself.
    """

    shape: tuple[int, ...]
    last: bool = False
    dtype: torch.dtype = torch.float32
    uses: str = EVERYTHING

    def __str__(self) -> str:
        sizes, uses = "x".join(map(str, self.shape)), self.uses.replace(" ", "+") or "plain"
        return f"{sizes}-{name(self.dtype, self.last)}-{uses}"


def cases(way):
    """All variants and dtypes in each way of addressing; all layouts."""
    if way.is_native:
        of = itertools.product(SEVERAL_PROGRAMS[::2], way.dtypes, VARIANTS)
        found = [Update(*layout, dtype, uses) for layout, dtype, uses in of]
        found += [Update(*of, dtype) for of, dtype in itertools.product(NATIVE_LAYOUTS, way.dtypes)]
        return dict.fromkeys(found)
    dtypes = itertools.cycle(way.dtypes)
    of = itertools.product(SEVERAL_PROGRAMS, VARIANTS)
    found = [Update(*layout, next(dtypes), uses) for layout, uses in of]
    of = itertools.product(ONE_PROGRAM, way.dtypes)
    found += [Update(*layout, dtype, "noise history") for layout, dtype in of]
    found += [Update(*layout, next(dtypes)) for layout in (*LAYOUTS, *MANY_SAMPLES)]
    return dict.fromkeys(found)


@on_every_way(cases)
def test_sampler_update_is_its_specification(way, case):
    check(case, way)


@every_way
@each_place
def test_tensors_need_not_be_aligned(way, place):
    check(Update(*layout_of(place, way), way.dtypes[-1]), way, UNALIGNED)


@every_way
@each_place
def test_state_and_history_may_be_written_where_they_are_read(way, place):
    case = Update(*layout_of(place, way), way.dtypes[1])
    inputs = inputs_of(case)
    apart = run(case, inputs, way)
    x, history = (inputs[name].to(way.device, copy=True) for name in ("x", "history"))
    same = {"x": x, "x_out": x, "history": history, "history_out": history}
    for one, other in zip(run(case, inputs, way, **same), apart, strict=True):
        assert torch.equal(one, other)


@every_way
def test_the_output_of_a_network_may_be_any_view(way):
    case = Update((2, 3, 4, 6), False, way.dtypes[1], "noise history")
    inputs = inputs_of(case)
    n = inputs["n"].to(way.device)
    last = laid(n.repeat_interleave(2, dim=1), True)
    for view in (n.mT.contiguous().mT, n.repeat(1, 1, 1, 2)[..., ::2], last[:, ::2], n[:1, :, :1]):
        view = view.expand(case.shape)
        found, expected = (run(case, inputs, way, n=one) for one in (view, view.contiguous()))
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.history, expected.history)


@every_way
def test_nothing_hides_a_nan_but_the_known_region(way):
    case = Update((1, 8), uses="noise mask scale")
    inputs = inputs_of(case)
    inputs["x"][0, :4] = torch.tensor([math.nan, math.nan, math.inf, -math.inf])
    inputs["mask"][0, :4] = torch.tensor([False, True, False, False])
    found = run(case, inputs, way)
    for result in (found.x, found.network_input):
        assert result.isnan().tolist() == [[True] + [False] * 7]
        assert result[0, 2:4].tolist() == [math.inf, -math.inf]


@every_triton_way
@pytest.mark.parametrize(("shape", "last"), CUT, ids=PLACES)
def test_a_batch_may_take_several_launches(way, shape, last):
    case = Update(shape, last, HALF)
    inputs = inputs_of(case)
    check_cut(lambda buffers: run(case, inputs, way, buffers), shape, last, way)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "last"), MANY)
def test_there_may_be_more_samples_than_a_grid_has_rows(shape, last):
    check(Update(shape, last, HALF), ON_GPU)


@pytest.mark.gpu
@each_place
def test_two_runs_are_equal_bit_for_bit(place):
    case = Update(*SEVERAL_PROGRAMS[place], HALF)
    inputs = inputs_of(case)
    for one, other in zip(*(run(case, inputs, ON_GPU) for _ in range(2)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.alone
@pytest.mark.gpu
@pytest.mark.parametrize("shape", HUGE, ids=PLACES)
def test_elements_are_counted_beyond_32_bits(shape):
    from ncsn_fast.kernels.triton.sampler_update import sampler_update

    need_memory(40)
    x = torch.zeros(shape, device="cuda")
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    n = torch.zeros_like(x, dtype=HALF, memory_format=layout)
    network_input = torch.full_like(x, torch.nan)
    row = torch.tensor([1.0, 1, 0, 1, 0, 0, 0, 0.5, 0], device="cuda")
    sampler_update(
        x, n, row, **step_on("cuda"), sample_ids=torch.arange(len(x), device="cuda"),
        z=None, history=None, guidance=None, mask=None, known=None,
        x_out=x, history_out=None, input_out=network_input,
        add_noise=True, fast_math=False,
    )  # fmt: skip
    for i in (0, len(x) // 3, len(x) - 2, len(x) - 1):
        z = noise.normal(shape[1:], seed=SEED, step=STEP, stream=SAMPLER, sample_ids=[i])[0]
        assert torch.allclose(x[i].cpu(), z, rtol=0, atol=5e-5)
        assert torch.equal(network_input[i], x[i] / 2)


def inputs_of(case):
    """The tensors that kernel and specification both take, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    names = ("x", "n", "z", "history", "guidance", "known", "mask")
    values = {name: torch.randn(case.shape, generator=generator) for name in names}
    given = {"x", "n", *case.uses.split()}
    if "mask" in given:
        given.add("known")
    inputs = {name: value if name in given else None for name, value in values.items()}
    inputs |= {"n": values["n"].to(case.dtype), "row": torch.tensor(COEFFICIENTS)}
    if "mask" in given:
        inputs["mask"] = values["mask"] > 0.3
    return inputs


def specified(case, inputs, dtype):
    """The specification, with everything but n in a dtype."""
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


def run(case, inputs, way, buffers=None, **instead):
    """The kernel's results, with some tensors ``instead`` of those that the case stands for."""
    buffers = Buffers(way.device) if buffers is None else buffers
    uses = case.uses.split()
    tensors = {
        name: None if value is None else buffers.input(value, name == "n" and case.last)
        for name, value in inputs.items()
    }
    wanted = {"x_out": True, "history_out": "history" in uses, "input_out": "scale" in uses}
    tensors |= {
        name: buffers.output(case.shape, torch.float32) if there else None
        for name, there in wanted.items()
    }
    tensors |= {**which_noise(case.shape[0], buffers), **instead}
    launch(way, tensors, add_noise="noise" in uses)
    return StepResult(*(tensors[name] for name in wanted))


def launch(way, tensors, add_noise):
    if way.is_native:
        first = ("x", "n", "row", "seed", "step", "sample_ids")
        given = [tensors[one] for one in (*first, "z", "history", "guidance", "mask", "known")]
        out = [tensors[one] for one in ("x_out", "history_out", "input_out")]
        native.ops().sampler_update(*given, add_noise, *out)
        return
    from ncsn_fast.kernels.triton.sampler_update import sampler_update

    sampler_update(**tensors, add_noise=add_noise, fast_math=way.fast_math)


def check(case, way, guard=GUARD):
    """The kernel does what the specification says, and nothing else."""
    inputs, buffers = inputs_of(case), Buffers(way.device, guard)
    found = run(case, inputs, way, buffers)
    buffers.check()
    exact, plain = (specified(case, inputs, dtype) for dtype in (torch.float64, torch.float32))
    for result, e, p in zip(found, exact, plain, strict=True):
        if result is not None:
            assert_close(result, e, p, FAST_MATH_LIMIT if way.fast_math else 0.0)
