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
  elements that a thread takes, on average where tiles reach beyond an image; of a kernel that goes
  through its elements in a loop, those of the loop, over the elements of a turn. Null where no
  budget asks for it, because branches and calls take its meaning away (begin_step; elements that
  are addressed one by one: strided).
- ld_width, st_width: bits of the narrowest load and store of each type, among the tensors that
  have the shape of the state. A whole quad has 128 in fp32, 64 in fp16, 32 in a mask.
- bytes_per_element: what these loads and stores move, by the widths and the number of accesses in
  the compiled code; null for loops.
- min_bytes_per_element: the same if each of these tensors is moved once.

What does not apply, or is not in a target's listings, is null.
"""

import argparse
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from ncsn_fast.benchmarks.static import norms as static_norms
from ncsn_fast.benchmarks.static import passes as static_passes
from ncsn_fast.benchmarks.static import sass
from ncsn_fast.benchmarks.static import variants as static_variants
from ncsn_fast.benchmarks.static.variants import Budget, Variant
from ncsn_fast.device.memory_format import is_dense
from ncsn_fast.kernels.triton.common import launch

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
    torch.int8: "i8",
    torch.bool: "i1",
}
_ELEMENT_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "i8": 8, "i1": 8}
VARIANTS = {
    (variant.kernel, variant.name): variant
    for variant in chain(
        static_variants.variants(), static_norms.variants(), static_passes.variants()
    )
}


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


class Launch(NamedTuple):
    """What a launcher hands to Triton."""

    kernel: Any
    arguments: dict[str, Any]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__).removeprefix("_").removesuffix("_kernel")

    @property
    def signature(self) -> tuple[object, ...]:
        """What it is compiled for but the target: two launches of one signature share the code."""
        types = {
            name: value.dtype if isinstance(value, Tensor) else value is None
            for name, value in self.arguments.items()
            if isinstance(value, Tensor | None)
        }
        fixed = {name: self.settings[name] for name in sorted({*self.settings} - {"FAST_MATH"})}
        return self.name, *types.items(), *fixed.items()

    @property
    def bytes_per_element(self) -> int:
        """Of the tensors of the shape of the state, if each is moved once."""
        return sum(tensor.element_size() for tensor in self.states.values())

    @property
    def states(self) -> dict[str, Tensor]:
        """The arguments of the shape of the state, which is that of the first of them."""
        tensors = {name: t for name, t in self.arguments.items() if isinstance(t, Tensor)}
        shape = next(iter(tensors.values())).shape
        return {name: t for name, t in tensors.items() if t.shape == shape}


def record(call: Callable[[], object], kernel: str) -> Launch:
    """The last launch of a kernel that a call makes; nothing is run."""
    return [one for one in launches(call) if one.name == kernel][-1]


def launches(call: Callable[[], object]) -> list[Launch]:
    """The launches that a call makes, none of which is run: what they would write is zero."""
    found: list[Launch] = []

    def run(function: Any, *arguments: Any, grid: object, warmup: bool, **settings: Any) -> None:
        found.append(
            Launch(function, dict(zip(function.arg_names, arguments, strict=False)), settings)
        )
        for tensor in arguments:
            # In place and unseen by autograd; what is expanded cannot be an output.
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and is_dense(tensor):
                tensor.data.zero_()

    kind = InterpretedFunction if launch.INTERPRETED else JITFunction
    with mock.patch.object(kind, "run", run):
        call()
    return found


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


class Compiled(NamedTuple):
    """A compiled variant, before its machine code is read.

    Attributes:
        facts: what is known of its row.
        cubin, ptx: NVIDIA's; None on AMD.
        types: of its parameters that have the shape of the state, by their positions.
        elements: of the state that a thread takes; None where that says nothing.
    """

    variant: Variant
    target: str
    facts: dict[str, Any]
    cubin: bytes | None
    ptx: str | None
    types: dict[int, str]
    elements: float | None


def compile_variant(key: tuple[str, str], target: str) -> Compiled:
    """Compile a variant of that kernel and name for a target."""
    variant = VARIANTS[key]
    recorded = record(variant.call, variant.kernel)
    source = specialise(recorded, TARGETS[target])
    options = {"num_warps": recorded.settings["num_warps"]}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    facts: dict[str, Any] = {field.name: None for field in fields(Row)}
    facts |= {"kernel": variant.kernel, "variant": variant.name, "target": target}
    facts |= {"shared": compiled.metadata.shared}
    if variant.elements and not variant.loop:
        facts |= {"min_bytes_per_element": recorded.bytes_per_element}
    if TARGETS[target].backend == "hip":
        facts |= _amd(compiled.asm["amdgcn"])
        return Compiled(variant, target, facts, None, None, {}, None)
    cubin, ptx, states = compiled.asm["cubin"], compiled.asm["ptx"], recorded.states
    used = sass.usage(cubin, triton.knobs.nvidia.cuobjdump.path)
    facts |= {"registers": used["REG"], "stack": used["STACK"], "local": used["LOCAL"]}
    parameters = [name for name, kind in source.signature.items() if kind != "constexpr"]
    types = {i: _TYPES[states[name].dtype] for i, name in enumerate(parameters) if name in states}
    elements = None
    if variant.elements:
        elements = variant.elements(recorded.settings) / (32 * recorded.settings["num_warps"])
    return Compiled(variant, target, facts, cubin, ptx, types, elements)


def _amd(assembly: str) -> dict[str, Any]:
    found = sass.amd_resources(assembly)
    return {
        "registers": found["vgpr_count"],
        "stack": found["private_segment_fixed_size"],
        "spills": found["vgpr_spill_count"],
        "barriers": found["barriers"],
    }


def read(compiled: Compiled, code: list[sass.Instruction]) -> Row:
    """The row of a variant for a target of NVIDIA's, from its machine code."""
    variant, facts = compiled.variant, compiled.facts
    facts |= {"spills": sass.count(code, "LDL", "STL"), "barriers": sass.count(code, "BAR")}
    try:
        if compiled.elements is not None and compiled.ptx is not None:
            facts |= _elementwise(variant, code, compiled.ptx, compiled.types, compiled.elements)
    except ValueError as error:
        where = f"{variant.kernel}, {variant.name}, {compiled.target}"
        raise ValueError(f"{where}: {error}") from error
    return Row(**facts)


def _elementwise(
    variant: Variant,
    code: list[sass.Instruction],
    ptx: str,
    types: dict[int, str],
    elements: float,
) -> dict[str, Any]:
    """What is said per element of the state."""
    facts: dict[str, Any] = {}
    if variant.budget.instructions is not None:
        run = sass.loop_body(code) if variant.loop else sass.straight_line(code)
        facts["sass_per_element"] = round(len(run) / elements, 2)
    facts["ld_width"], facts["st_width"], moved = sass.traffic(ptx, code, types)
    if not variant.loop:
        facts["bytes_per_element"] = round(moved / elements, 2)
    return facts


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
            wanted = min(128, budget.lanes * _ELEMENT_BITS[kind])
            if bits < wanted:
                yield f"{name} of {kind} is {bits}, {wanted} wanted"
    if budget.once and row.bytes_per_element not in (None, row.min_bytes_per_element):
        yield f"bytes_per_element is {row.bytes_per_element}, not {row.min_bytes_per_element}"


def compile_all(targets: Sequence[str], quick: bool) -> list[Row]:
    """The rows for some targets; if quick, of most variants for sm_90 only."""
    wanted = [
        (key, target)
        for target in targets
        for key, variant in VARIANTS.items()
        if not quick or target == _PUBLISHED or variant.everywhere
    ]
    # Spawned, not forked: torch may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        compiled = list(pool.map(compile_variant, *zip(*wanted, strict=True)))
    codes = _machine_codes(compiled)
    return [
        Row(**one.facts) if one.cubin is None else read(one, codes[id(one)]) for one in compiled
    ]


def _machine_codes(compiled: Iterable[Compiled]) -> dict[int, list[sass.Instruction]]:
    """The instructions of those for NVIDIA, by their ids."""
    of: dict[str, list[Compiled]] = {}
    for one in compiled:
        if one.ptx is not None:
            architecture = re.findall(r"^\.target sm_(\w+)", one.ptx, re.MULTILINE)[0]
            of.setdefault(architecture, []).append(one)
    found: dict[int, list[sass.Instruction]] = {}
    for architecture, those in of.items():
        cubins = [one.cubin for one in those if one.cubin is not None]
        codes = sass.disassemble(cubins, architecture, triton.knobs.nvidia.nvdisasm.path)
        found |= {id(one): code for one, code in zip(those, codes, strict=True)}
    return found


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
