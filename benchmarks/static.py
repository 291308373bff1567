"""What the GPU kernels are compiled to, and whether that keeps within their budgets; no GPU needed.

    python -m ncsn_fast.benchmarks.static

compiles each kernel ahead of time, as its launcher launches it, and prints a row per kernel,
variant and target. It exits with 1 where a budget is exceeded, saying which. The fields:

- registers: per thread; on AMD the vector registers.
- stack, local: bytes of slow memory per thread; on AMD scratch, as stack.
- spills: instructions that read or write such memory; on AMD the vector registers spilled.
- shared: bytes that the kernel asks for, without what the driver reserves.
- barriers: barrier instructions.
- sass_per_element: instructions from entry to the first unpredicated EXIT, without NOPs, over the
  elements that a thread takes. Null where a loop or a call takes its meaning away: in begin_step,
  and where elements are addressed one by one (strided), which divides 64-bit integers.
- ld_width, st_width: bits of the narrowest load and store of each type, among the tensors that
  have the shape of the state. A whole quad has 128 in fp32, 64 in fp16, 32 in a mask.
- bytes_per_element: what these loads and stores move, by the widths and the number of accesses in
  the compiled code.
- min_bytes_per_element: the same if each of these tensors is moved once.

What does not apply, or is not in a target's listings, is null.
"""

import argparse
import functools
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ncsn_fast.benchmarks import sass
from ncsn_fast.kernels.triton import begin_step, dsm_loss, launch, perturb, sampler_update

TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_PUBLISHED = "sm_90"  # whose figures are published
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}
_QUAD_BITS = {"fp32": 128, "fp16": 64, "bf16": 64, "i1": 32}
_SAMPLES = 8


@dataclass(frozen=True)
class Row:
    """One kernel, variant and target; the module's docstring says what the fields are."""

    kernel: str
    variant: str
    target: str
    registers: int
    stack: int
    local: int | None
    spills: int
    shared: int
    barriers: int
    sass_per_element: float | None
    ld_width: dict[str, int] | None
    st_width: dict[str, int] | None
    bytes_per_element: float | None
    min_bytes_per_element: float | None


@dataclass(frozen=True)
class Budget:
    """The most that a variant may use; None is no limit.

    No variant may have a stack, local memory or spills on any target, nor move a tensor twice;
    what else is said here holds on all NVIDIA targets.
    """

    instructions: float | None = None  # per element
    shared: int | None = 0
    barriers: int | None = 0
    whole_quads: bool = True  # each load and store takes four elements at once


class Variant(NamedTuple):
    """A launch to compile: ``call`` calls a launcher with tensors that have no storage."""

    kernel: str
    name: str
    call: Callable[[], None]
    budget: Budget
    everywhere: bool = False  # compiled for all targets also in a quick check


class Launch(NamedTuple):
    """What a launcher hands to Triton."""

    kernel: Any
    arguments: dict[str, Any]
    settings: dict[str, Any]

    @property
    def elementwise(self) -> bool:
        """Whether the kernel goes through the elements of a state."""
        return "CHANNELS" in self.settings

    @property
    def elements_per_thread(self) -> float:
        """Elements of the state that a thread of a whole program takes, 32 threads to a warp."""
        quads = self.settings["BLOCK_SIZE"] * self.settings["CHANNELS"]
        return 4 * quads / (32 * self.settings["num_warps"])

    @property
    def states(self) -> dict[str, Tensor]:
        """The arguments of the shape of the state, which is that of the first of them."""
        if not self.elementwise:
            return {}
        tensors = {name: t for name, t in self.arguments.items() if isinstance(t, Tensor)}
        shape = next(iter(tensors.values())).shape
        return {name: t for name, t in tensors.items() if t.shape == shape}


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _scalars(kind: torch.dtype = torch.int64) -> tuple[Tensor, Tensor, Tensor]:
    """Seed, step and sample ids."""
    return _meta(dtype=kind), _meta(dtype=kind), _meta(_SAMPLES, dtype=kind)


def _states(network: torch.dtype, channels: int, strided: bool) -> tuple[Tensor, Tensor]:
    """A float32 state and the network's tensor of its shape: channels_last if channels are given.

    With an odd number of pixels, if strided.
    """
    x = _meta(_SAMPLES, channels or 3, *((5, 7) if strided else (32, 32)))
    n = x.to(network)
    return x, n.to(memory_format=torch.channels_last) if channels else n


def _sampler_update(
    *,
    network: torch.dtype = torch.float16,
    channels: int = 0,
    strided: bool = False,
    history: bool = False,
    guidance: bool = False,
    mask: bool = False,
    noise: bool = True,
    scale: bool = False,
    clamp: tuple[float, float] | None = None,
    words: torch.dtype = torch.int64,
) -> None:
    x, n = _states(network, channels, strided)
    h = x if history else None
    g = x if guidance else None
    is_known, known = (x.bool(), x) if mask else (None, None)
    sampler_update.sampler_update(
        x, n, _meta(9), *_scalars(words), None, h, g, is_known, known, x, h, n,
        add_noise=noise, scale_input=scale, clamp=clamp, fast_math=True,
    )  # fmt: skip


def _perturb(*, channels: int = 0, strided: bool = False) -> None:
    x, out = _states(torch.float16, channels, strided)
    perturb.perturb(x, _meta(_SAMPLES), *_scalars(), out, fast_math=True)


def _dsm_loss(
    *,
    loss: bool = True,
    gradient: bool = True,
    weights: bool = False,
    channels: int = 0,
    strided: bool = False,
) -> None:
    _, n = _states(torch.float16, channels, strided)
    per_sample = _meta(_SAMPLES)
    dsm_loss.dsm_loss(
        n, per_sample if weights else None, *_scalars(), per_sample if gradient else None,
        loss=per_sample if loss else None, gradient=n if gradient else None, fast_math=True,
    )  # fmt: skip


def _begin_step() -> None:
    counter, labels = _meta(2, dtype=torch.int64), _meta(7, dtype=torch.int64)
    _, step, per_sample = _scalars()
    begin_step.begin_step(counter, _meta(7, 9), labels, _meta(9), step, per_sample)


def _variants() -> Iterator[Variant]:
    """All kernels and variants with their budgets; the network is float16 if not said."""
    of, update = functools.partial, "sampler_update"
    everything = of(
        _sampler_update, history=True, guidance=True, mask=True, scale=True, clamp=(-1.0, 1.0)
    )
    strided = Budget(shared=None, barriers=None, whole_quads=False)
    yield Variant(update, "plain", _sampler_update, Budget(45), everywhere=True)
    yield Variant(update, "history", of(_sampler_update, history=True), Budget(50))
    yield Variant(update, "guidance", of(_sampler_update, guidance=True), Budget(48))
    yield Variant(update, "mask", of(_sampler_update, mask=True), Budget(65))
    yield Variant(update, "everything", everything, Budget(80))
    silent = of(_sampler_update, noise=False)
    yield Variant(update, "no noise", silent, Budget(13))
    yield Variant(update, "no noise, history", of(silent, history=True), Budget(19))
    for channels in (2, 3, 4, 8):
        call = of(_sampler_update, channels=channels)
        yield Variant(update, f"channels_last {channels}", call, Budget(45))
    call = of(everything, channels=3)
    yield Variant(update, "everything, channels_last 3", call, Budget(80), everywhere=True)
    yield Variant(update, "fp32 network", of(_sampler_update, network=torch.float32), Budget(45))
    yield Variant(update, "bf16 network", of(_sampler_update, network=torch.bfloat16), Budget(45))
    yield Variant(update, "32-bit words", of(_sampler_update, words=torch.int32), Budget(45))
    yield Variant(update, "strided", of(_sampler_update, channels=3, strided=True), strided)

    yield Variant("perturb", "plain", _perturb, Budget(30), everywhere=True)
    yield Variant("perturb", "channels_last 3", of(_perturb, channels=3), Budget(30))
    yield Variant("perturb", "strided", of(_perturb, channels=3, strided=True), strided)

    summing = Budget(36, shared=16, barriers=2)
    yield Variant("dsm_loss", "forward and backward", _dsm_loss, summing, everywhere=True)
    yield Variant("dsm_loss", "forward", of(_dsm_loss, gradient=False), summing)
    yield Variant("dsm_loss", "backward", of(_dsm_loss, loss=False), Budget(36))
    yield Variant("dsm_loss", "weights", of(_dsm_loss, weights=True), summing)
    yield Variant("dsm_loss", "channels_last 3", of(_dsm_loss, channels=3), summing)
    yield Variant("dsm_loss", "strided", of(_dsm_loss, channels=3, strided=True), strided)

    once = Budget(barriers=1, whole_quads=False)
    yield Variant("begin_step", "labels", _begin_step, once, everywhere=True)


VARIANTS = {(variant.kernel, variant.name): variant for variant in _variants()}


def record(call: Callable[[], None]) -> Launch:
    """The launch that a call of a launcher ends in; nothing is run."""
    launches = []

    def run(kernel: Any, *arguments: Any, grid: object, warmup: bool, **settings: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        launches.append(Launch(kernel, named, settings))

    with mock.patch.object(JITFunction, "run", run):
        call()
    (only,) = launches
    return only


def specialise(recorded: Launch, target: GPUTarget) -> ASTSource:
    """The source with its arguments typed and specialised as Triton's own launch would do it.

    Tensors are taken to be aligned to 16 bytes.
    """
    settings = {**recorded.settings, "IS_HIP": target.backend == "hip"}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(recorded.kernel.params):
        value: Any = settings.get(parameter.name, recorded.arguments.get(parameter.name))
        is_one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or is_one:
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        aligned = isinstance(value, Tensor) or (type(value) is int and value % 16 == 0)
        unasked = parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        if aligned and not unasked:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(recorded.kernel, signature, constants, attributes)


def _type(argument: Tensor | float) -> str:
    """Triton's name for the type of an argument."""
    if isinstance(argument, Tensor):
        return f"*{_TYPES[argument.dtype]}"
    if isinstance(argument, float):
        return "fp32"
    return "i32" if -(1 << 31) <= argument < 1 << 31 else "i64"


def compile_row(variant: Variant, target: str) -> Row:
    """Compile a variant for a target and read the listings."""
    hip = TARGETS[target].backend == "hip"
    recorded = record(variant.call)
    source = specialise(recorded, TARGETS[target])
    options = {"num_warps": recorded.settings["num_warps"]}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    size = sum(tensor.element_size() for tensor in recorded.states.values())
    facts: dict[str, Any] = {field.name: None for field in fields(Row)}
    facts |= {"kernel": variant.kernel, "variant": variant.name, "target": target}
    facts |= {"shared": compiled.metadata.shared}
    facts |= {"min_bytes_per_element": size if recorded.elementwise else None}
    try:
        facts |= _amd(compiled.asm) if hip else _nvidia(compiled.asm, source, recorded)
    except ValueError as error:
        raise ValueError(f"{variant.kernel}, {variant.name}, {target}: {error}") from error
    return Row(**facts)


def _amd(asm: dict[str, Any]) -> dict[str, Any]:
    found = sass.amd_resources(asm["amdgcn"])
    return {
        "registers": found["vgpr_count"],
        "stack": found["private_segment_fixed_size"],
        "spills": found["vgpr_spill_count"],
        "barriers": found["barriers"],
    }


def _nvidia(asm: dict[str, Any], source: ASTSource, recorded: Launch) -> dict[str, Any]:
    listing = sass.disassemble(asm["cubin"], triton.knobs.nvidia.cuobjdump.path)
    code, used = sass.instructions(listing), sass.resources(listing)
    facts = {
        "registers": used["REG"],
        "stack": used["STACK"],
        "local": used["LOCAL"],
        "spills": sass.count(code, "LDL", "STL"),
        "barriers": sass.count(code, "BAR"),
    }
    if not recorded.elementwise:
        return facts
    if not recorded.settings["STRIDED"]:
        run = sass.straight_line(code)
        facts["sass_per_element"] = round(len(run) / recorded.elements_per_thread, 2)
    parameters = [name for name, kind in source.signature.items() if kind != "constexpr"]
    states = recorded.states
    types = {i: _TYPES[states[name].dtype] for i, name in enumerate(parameters) if name in states}
    loads, stores, moved = sass.traffic(asm["ptx"], code, types)
    per_element = round(moved / recorded.elements_per_thread, 2)
    return {**facts, "ld_width": loads, "st_width": stores, "bytes_per_element": per_element}


def check(rows: Iterable[Row]) -> list[str]:
    """What exceeds its budget, a line each."""
    return [
        f"{row.kernel}, {row.variant}, {row.target}: {fault}"
        for row in rows
        for fault in _faults(row, VARIANTS[row.kernel, row.variant].budget)
    ]


def _faults(row: Row, budget: Budget) -> Iterator[str]:
    limits: dict[str, float | None] = {"stack": 0, "spills": 0}
    if TARGETS[row.target].backend == "cuda":
        limits |= {"local": 0, "shared": budget.shared, "barriers": budget.barriers}
        limits |= {"sass_per_element": budget.instructions}
    for name, limit in limits.items():
        value = getattr(row, name)
        if limit is not None and (value is None or value > limit):
            yield f"{name} is {value}, at most {limit} allowed"
    for name in ("ld_width", "st_width"):
        for kind, bits in (getattr(row, name) or {}).items():
            if budget.whole_quads and bits < _QUAD_BITS[kind]:
                yield f"{name} of {kind} is {bits}, {_QUAD_BITS[kind]} wanted"
    if row.bytes_per_element not in (None, row.min_bytes_per_element):
        yield f"bytes_per_element is {row.bytes_per_element}, not {row.min_bytes_per_element}"


def compile_all(targets: Sequence[str], quick: bool) -> list[Row]:
    """The rows for some targets; if quick, of most variants for sm_90 only."""
    wanted = [
        (variant, target)
        for target in targets
        for variant in VARIANTS.values()
        if not quick or target == _PUBLISHED or variant.everywhere
    ]
    # Spawned, not forked: torch may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        return list(pool.map(compile_row, *zip(*wanted, strict=True)))


def table(rows: Iterable[Row]) -> str:
    """The rows as aligned text."""
    names = [field.name for field in fields(Row)]
    lines = [names, *([_cell(getattr(row, name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def markdown(rows: Iterable[Row]) -> str:
    """The README's table: what sm_90 gets, and the budget beside it."""
    lines = [
        "| kernel | variant | SASS instructions per element | budget | bytes per element "
        "| registers | shared bytes | barriers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.target == _PUBLISHED:
            budget = VARIANTS[row.kernel, row.variant].budget.instructions
            cells = (
                f"`{row.kernel}`", row.variant, row.sass_per_element, budget,
                row.bytes_per_element, row.registers, row.shared, row.barriers,
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return " ".join(f"{kind}:{bits}" for kind, bits in value.items()) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 where a budget is exceeded."""
    parser = argparse.ArgumentParser(
        prog="python -m ncsn_fast.benchmarks.static",
        description="Compile the GPU kernels without a GPU and check them against their budgets.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON list")
    form.add_argument("--markdown", action="store_true", help="print the README's table (sm_90)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="most variants for sm_90 only")
    chosen = parser.parse_args(arguments)
    if launch.INTERPRETED:
        parser.error("nothing can be compiled under TRITON_INTERPRET: unset it")
    targets = [_PUBLISHED] if chosen.markdown else chosen.target or list(TARGETS)
    rows = compile_all(targets, chosen.quick)
    if chosen.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(markdown(rows) if chosen.markdown else table(rows))
    faults = check(rows)
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
