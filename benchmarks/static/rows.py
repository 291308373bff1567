"""A line of the table of compiled kernels, and what exceeds a budget.

A row is of a kernel, a variant of its launch and a target. The other fields:

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
- budget: the most of them that are allowed.
- ld_width, st_width: bits of the narrowest load and store of each type, among the tensors that
  have the shape of the state. A whole quad has 128 in fp32, 64 in fp16, 32 in a mask.
- bytes_per_element: what these loads and stores move; of three programs where there are many.
- min_bytes_per_element: the same if each of these tensors is moved once; null for loops.
- sectors, wavefronts: what requests of warps move of global memory, in sectors of 32 bytes, over
  the fewest that hold the bytes asked for; and in how many wavefronts shared memory answers, over
  the fewest possible. Computed by a model (``addresses.py``). Null where nothing is asked.

What does not apply, or is not in a target's listings, is null.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from ncsn_fast.benchmarks.static.variants import Budget, Variant

PUBLISHED = "sm_90"  # the target whose figures are published
_ELEMENT_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "i8": 8, "i1": 8}
Variants = Mapping[tuple[str, str], Variant]


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
    budget: float | None
    ld_width: dict[str, int] | None
    st_width: dict[str, int] | None
    bytes_per_element: float | None
    min_bytes_per_element: float | None
    sectors: float | None
    wavefronts: float | None


def check(rows: Iterable[Row], variants: Variants) -> list[str]:
    """What exceeds its budget, a line each."""
    return [
        f"{row.kernel}, {row.variant}, {row.target}: {fault}"
        for row in rows
        for fault in _faults(row, variants[row.kernel, row.variant].budget)
    ]


def _faults(row: Row, budget: Budget) -> Iterator[str]:
    limits: dict[str, float | None] = {"stack": 0, "spills": 0}
    if row.target.startswith("sm_"):
        limits |= {"local": 0, "shared": budget.shared, "barriers": budget.barriers}
        limits |= {"sass_per_element": budget.instructions}
    if row.wavefronts is not None:
        limits |= {"wavefronts": budget.conflicts}
    for name, limit in limits.items():
        value = getattr(row, name)
        if limit is not None and (value is None or value > limit):
            yield f"{name} is {value}, at most {limit} allowed"
    for name in ("ld_width", "st_width"):
        for kind, bits in (getattr(row, name) or {}).items():
            wanted = min(128, budget.lanes * _ELEMENT_BITS[kind])
            if bits < wanted:
                yield f"{name} of {kind} is {bits}, {wanted} wanted"
    moved, least = row.bytes_per_element, row.min_bytes_per_element
    if budget.once and None not in (moved, least) and moved != least:
        yield f"bytes_per_element is {moved}, not {least}"


def table(rows: Iterable[Row]) -> str:
    """The rows as aligned text."""
    names = [field.name for field in fields(Row)]
    return aligned([names, *([getattr(row, name) for name in names] for row in rows)])


def markdown(rows: Iterable[Row]) -> str:
    """The table of docs/kernels.md: what sm_90 gets, and the budget beside it."""
    names = (
        "kernel", "variant", "SASS instructions per element", "budget", "bytes per element",
        "sectors", "wavefronts", "registers", "shared bytes", "barriers",
    )  # fmt: skip
    cells = (
        (
            f"`{row.kernel}`", row.variant, row.sass_per_element, row.budget,
            row.bytes_per_element, row.sectors, row.wavefronts, row.registers, row.shared,
            row.barriers,
        )
        for row in rows
        if row.target == PUBLISHED
    )  # fmt: skip
    return marked([names, *cells])


def aligned(lines: Sequence[Sequence[object]]) -> str:
    """Lines of cells as text in columns."""
    cells = [[_cell(one) for one in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells
    )
    return "\n".join("  ".join(line).rstrip() for line in padded)


def marked(lines: Sequence[Sequence[object]]) -> str:
    """Lines of cells, the first of them names, as a table in Markdown."""
    texts = [f"| {' | '.join(map(_cell, line))} |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(lines[0]), *texts[1:]])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return " ".join(f"{kind}:{bits}" for kind, bits in value.items()) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


__all__ = ["PUBLISHED", "Row", "Variants", "aligned", "check", "markdown", "marked", "table"]
