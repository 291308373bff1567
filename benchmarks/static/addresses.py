"""Where a kernel's threads read and write, from its PTX: sectors, wavefronts, turns of loops.

Addresses depend on the number of the thread and of the program and on the launch's numbers, hardly
ever on data. So PTX is run with integers and floats as they are and everything that was loaded or
came from another thread unknown. What that leaves out: a mask that depends on data is taken to be
true, a branch that does is not taken, and an address that does is one for all threads.

A request is one instruction of a warp. Of global memory it moves sectors of 32 bytes. Of shared
memory, 32 banks of 4 bytes give a word each in a wavefront; of accesses of 8 bytes a half of a
warp, of 16 bytes a quarter, goes at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SECTOR, _BANKS, _WARP = 32, 32, 32
_FAR = 1 << 40  # from one tensor to the next
_MOST_STATEMENTS = 1_000_000
_GLOBAL = re.compile(r"(ld|st)\.global")
_LABEL = re.compile(r"^\s*(\$\w+):")
_STATEMENT = re.compile(r"^\s*(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*([^;]*);")
_TYPES: dict[str, Any] = {
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip
_WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_LOGIC: dict[str, Callable[[Any, Any], Any]] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
_SIMPLE: dict[str, Callable[[Any, Any], Any]] = {
    **_LOGIC, "add": np.add, "sub": np.subtract, "mul": np.multiply,
    "min": np.minimum, "max": np.maximum,
}  # fmt: skip

Values = NDArray[Any]


@dataclass
class Traffic:
    """What programs ask of memory.

    Attributes:
        sectors, least_sectors: of global memory, and the fewest that hold the bytes asked for.
        shared, least_shared: wavefronts of shared memory, and the fewest possible.
        loaded, stored: bytes, by the position of the tensor among the kernel's parameters.
        turns: of each loop, in the order of the branches that close them.
    """

    sectors: float = 0
    least_sectors: float = 0
    shared: float = 0
    least_shared: float = 0
    loaded: dict[int, float] = field(default_factory=dict)
    stored: dict[int, float] = field(default_factory=dict)
    turns: tuple[float, ...] = ()

    @property
    def wavefronts(self) -> float:
        """Of shared memory and of the cache beside it, which gives four sectors at a time."""
        return self.shared + self.sectors / 4


class _Statement(NamedTuple):
    negated: bool
    predicate: str | None
    name: str
    operands: tuple[str, ...]


class Code:
    """The statements of a kernel in PTX."""

    def __init__(self, ptx: str) -> None:
        self.statements: list[_Statement] = []
        self.labels: dict[str, int] = {}
        for line in ptx[ptx.index(".entry") :].splitlines():
            if label := _LABEL.match(line):
                self.labels[label[1]] = len(self.statements)
            elif found := _STATEMENT.match(line):
                operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", found[4])
                self.statements.append(
                    _Statement(bool(found[1]), found[2], found[3], tuple(operands))
                )
        self.loops = [
            i
            for i, one in enumerate(self.statements)
            if one.name.startswith("bra") and self.labels[one.operands[0]] <= i
        ]

    def accesses(self, loop: int) -> int:
        """Of global memory, in one turn of a loop."""
        return sum(_GLOBAL.match(one.name) is not None for one in self._body(loop))

    def depth(self, loop: int) -> int:
        """How many loops it is in."""
        first, last = self._range(loop)
        around = (self._range(other) for other in range(len(self.loops)) if other != loop)
        return sum(start <= first and last <= end for start, end in around)

    def _range(self, loop: int) -> tuple[int, int]:
        last = self.loops[loop]
        return self.labels[self.statements[last].operands[0]], last

    def _body(self, loop: int) -> list[_Statement]:
        first, last = self._range(loop)
        return self.statements[first:last]


def traffic(
    code: Code, parameters: Mapping[int, float | None], threads: int, programs: Sequence[int]
) -> Traffic:
    """The mean of some programs of a launch.

    Args:
        code: of its kernel.
        parameters: its numbers by their positions; None for a tensor.
        threads: of a program.
        programs: their numbers.
    """
    runs = [_Program(code, parameters, threads, number).run() for number in programs]
    return Traffic(
        fmean(run.sectors for run in runs),
        fmean(run.least_sectors for run in runs),
        fmean(run.shared for run in runs),
        fmean(run.least_shared for run in runs),
        _mean(run.loaded for run in runs),
        _mean(run.stored for run in runs),
        tuple(map(fmean, zip(*(run.turns for run in runs), strict=True))),
    )


def _mean(found: Iterable[dict[int, float]]) -> dict[int, float]:
    """The mean of what each has, 0 where it has nothing."""
    each = list(found)
    keys = sorted({key for one in each for key in one})
    return {key: fmean(one.get(key, 0.0) for one in each) for key in keys}


@dataclass
class _Program:
    """A program that is run: its registers hold a value per thread, or None."""

    code: Code
    parameters: Mapping[int, float | None]
    threads: int
    number: int
    registers: dict[str, Values | None] = field(default_factory=dict)
    found: Traffic = field(default_factory=Traffic)

    def run(self) -> Traffic:
        reached: Counter[int] = Counter()
        at, done = 0, 0
        while at < len(self.code.statements):
            one = self.code.statements[at]
            live = self._live(one)
            if one.name.startswith("bra"):
                reached[at] += 1
                if self._jumps(at, live):
                    at = self.code.labels[one.operands[0]]
                    continue
            elif one.name == "ret" and (one.predicate is None or (live is not None and live.all())):
                break
            else:
                self._do(one, live)
            at, done = at + 1, done + 1
            if done > _MOST_STATEMENTS:
                raise ValueError(f"a program of more than {_MOST_STATEMENTS} statements")
        self.found.turns = tuple(float(reached[loop]) for loop in self.code.loops)
        return self.found

    def _live(self, one: _Statement) -> Values | None:
        """Which threads take part; None where that is unknown."""
        if one.predicate is None:
            return np.ones(self.threads, bool)
        value = self.registers.get(one.predicate)
        return value if value is None else value ^ one.negated

    def _jumps(self, at: int, live: Values | None) -> bool:
        """Backward where any thread does, else where all do."""
        back = at in self.code.loops
        if live is None:
            if back:
                raise ValueError("a loop that ends by what is in memory")
            return False
        return bool(live.any() if back else live.all())

    def _do(self, one: _Statement, live: Values | None) -> None:
        name, _, rest = one.name.partition(".")
        if name in ("ld", "st", "ldmatrix", "atom", "red") and not rest.startswith("param"):
            self._access(name, rest, one, live)
        elif name in ("st", "bar", "ret", "membar", "fence", "trap") or not one.operands:
            return
        else:
            value = self._value(name, rest.split("."), one.operands)
            for register in re.findall(r"%\w+", one.operands[0]):
                before = self.registers.get(register)
                if one.predicate is None or value is None:
                    self.registers[register] = value
                elif live is None or before is None:
                    self.registers[register] = None
                else:
                    self.registers[register] = np.where(live, value, before)

    def _access(self, name: str, rest: str, one: _Statement, live: Values | None) -> None:
        if name != "st":
            for register in re.findall(r"%\w+", one.operands[0]):
                self.registers[register] = None
        if name in ("atom", "red"):
            return
        address = next(operand for operand in one.operands if operand.startswith("["))
        found = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]", address)
        assert found is not None, address
        base = self._read(found[1], "u64" if "global" in rest else "u32")
        if base is None:  # where, is in memory: one place for all
            base = self._all(0, "u64")
        offset = base.astype(np.int64) + int(found[2] or "0", 0)
        size = 16 if name == "ldmatrix" else _size(rest)
        taking_part = np.ones(self.threads, bool) if live is None else live
        rows = np.where(taking_part, offset, -1).reshape(-1, _WARP)
        rows = rows[(rows >= 0).any(1)]
        if "shared" in rest:
            waves, least = _wavefronts(rows, size)
            self.found.shared += waves
            self.found.least_shared += least
        else:
            tensors, lanes = np.unique(rows[rows >= 0] // _FAR - 1, return_counts=True)
            moved = self.found.stored if name == "st" else self.found.loaded
            for tensor, number in zip(tensors.tolist(), lanes.tolist(), strict=True):
                if tensor < 0:  # of a place that is in memory
                    continue
                moved[tensor] = moved.get(tensor, 0) + size * number
            sectors, least = _sectors(rows, size)
            self.found.sectors += sectors
            self.found.least_sectors += least

    def _read(self, operand: str, kind: str) -> Values | None:
        """The values of an operand as a type says."""
        if operand.startswith("%tid.x"):
            return np.arange(self.threads).astype(_TYPES[kind])
        if operand.startswith("%ctaid.x"):
            return self._all(self.number, kind)
        if operand.startswith("%ctaid") or operand == "global_smem":
            return self._all(0, kind)
        if operand.startswith("%"):
            value = self.registers.get(operand)
            if value is None or kind == "pred" or value.dtype == bool:
                return value
            return value.astype(_unsigned(kind)).view(_TYPES[kind])
        if operand.startswith("0f"):
            return np.full(self.threads, int(operand[2:], 16), np.uint32).view(_TYPES[kind])
        number = int(operand.removesuffix("U"), 0)
        return np.full(self.threads, number != 0) if kind == "pred" else self._all(number, kind)

    def _all(self, value: int, kind: str) -> Values:
        """The same for all threads."""
        bits = np.dtype(_TYPES[kind]).itemsize * 8
        unsigned = np.full(self.threads, value & ((1 << bits) - 1), _unsigned(kind))
        return unsigned.view(_TYPES[kind])

    def _value(self, name: str, words: list[str], operands: tuple[str, ...]) -> Values | None:
        """What an instruction computes, as bits without a sign, or truth; None for unknown."""
        kind = words[-1]
        if name == "ld":
            return self._parameter(operands[1], kind)
        if kind not in _TYPES and kind != "pred":
            return None
        if any(operand.startswith("{") for operand in operands):
            return None
        if name == "cvt":
            return self._converted(words, operands[1])
        if name == "setp":
            return self._compared(words, operands)
        given = [self._read(one, kind) for one in operands[1:]]
        if name == "selp":
            return self._selected(operands, kind)
        if name in ("shl", "shr"):
            given[1] = self._read(operands[2], "u32")
        if name == "bfe":
            given[1:] = [self._read(one, "u32") for one in operands[2:]]
        if name == "mad" and words[0] == "wide":
            given[2] = self._read(operands[3], _WIDER[kind])
        if any(one is None for one in given):
            return None
        with np.errstate(all="ignore"):
            result = _computed(name, words, given)
        return result if result is None else _bits(result)

    def _parameter(self, operand: str, kind: str) -> Values | None:
        number = int(re.findall(r"param_(\d+)", operand)[0])
        value = self.parameters.get(number)
        if value is None:
            return self._all((number + 1) * _FAR, kind)
        if isinstance(value, float):
            return np.full(self.threads, value, np.float32).view(np.uint32)
        return _bits(self._all(int(value), kind))

    def _converted(self, words: list[str], operand: str) -> Values | None:
        kinds = [word for word in words if word in _TYPES or word in ("f16", "bf16", "f16x2")]
        if len(kinds) != 2 or not {*kinds} <= {*_TYPES}:
            return None
        value = self._read(operand, kinds[1])
        if value is None:
            return None
        if "rmi" in words:
            value = np.floor(value)
        with np.errstate(all="ignore"):
            if "f" in kinds[1] and "f" not in kinds[0]:
                return _bits(np.trunc(value).astype(np.int64).astype(_TYPES[kinds[0]]))
            return _bits(value.astype(_TYPES[kinds[0]]))

    def _compared(self, words: list[str], operands: tuple[str, ...]) -> Values | None:
        a, b = (self._read(one, words[-1]) for one in operands[1:3])
        if a is None or b is None or words[0] not in _COMPARED:
            return None
        return np.asarray(_COMPARED[words[0]](a, b))

    def _selected(self, operands: tuple[str, ...], kind: str) -> Values | None:
        a, b = (self._read(one, kind) for one in operands[1:3])
        by = self.registers.get(operands[3])
        if a is None or b is None or by is None:
            return None
        return _bits(np.where(by, a, b))


def _computed(name: str, words: list[str], given: list[Any]) -> Values | None:
    """What arithmetic gives; None for what is not followed."""
    first = given[0]
    if name == "mov":
        return first
    if name == "not":
        return ~first
    if name == "neg":
        return -first
    if name in ("mul", "mad") and first.dtype.kind != "f":
        product = _product(words[0], first, given[1])
        return product if name == "mul" else product + given[2]
    if name in ("fma", "mad"):
        return first * given[1] + given[2]
    if name in _SIMPLE:
        return _SIMPLE[name](first, given[1])
    if name in ("div", "rem"):
        return _quotient(name, first, given[1])
    if name in ("shl", "shr"):
        bits = 8 * first.dtype.itemsize
        by = np.minimum(given[1], bits - 1).astype(first.dtype)
        shifted = first << by if name == "shl" else first >> by
        beyond = np.where(first < 0, -1, 0).astype(first.dtype) if name == "shr" else 0
        return np.where(given[1] < bits, shifted, beyond).astype(first.dtype)
    if name == "bfe":
        return (first >> given[1]) & ((1 << given[2].astype(np.uint64)) - 1).astype(first.dtype)
    return None


def _product(which: str, a: Values, b: Values) -> Values:
    """The lower half of a product, the upper half, or all of it."""
    if which == "lo":
        return a * b
    bits = 8 * a.dtype.itemsize
    wide: Any = np.int64 if a.dtype.kind == "i" else np.uint64
    if bits == 64:
        assert which == "hi"
        exact = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
        return np.array([x & ((1 << 64) - 1) for x in exact], np.uint64).view(a.dtype)
    product = a.astype(wide) * b.astype(wide)
    return product if which == "wide" else (product >> wide(bits)).astype(a.dtype)


def _quotient(name: str, a: Values, b: Values) -> Values:
    """Rounded towards zero, as in C."""
    if a.dtype.kind == "f":
        return a / b
    wide = a.astype(np.int64), b.astype(np.int64)
    whole = np.sign(wide[0]) * np.sign(wide[1]) * (np.abs(wide[0]) // np.abs(wide[1]))
    return (whole if name == "div" else wide[0] - whole * wide[1]).astype(a.dtype)


def _unsigned(kind: str) -> Any:
    return np.dtype(f"u{np.dtype(_TYPES[kind]).itemsize}")


def _bits(value: Values) -> Values:
    """Bits without a sign; truth stays what it is."""
    if value.dtype == bool:
        return value
    return np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")


def _size(rest: str) -> int:
    """Bytes of a thread's access, such as "global.v4.b32"."""
    lanes = re.search(r"\.v(\d)", rest)
    bits = re.search(r"\.[bufs](\d+)$", rest)
    assert bits is not None, rest
    return int(bits[1]) // 8 * (int(lanes[1]) if lanes else 1)


def _distinct(keys: Values) -> Values:
    """How many different keys ≥ 0 there are in each row."""
    ordered = np.sort(keys, axis=-1)
    new = np.ones(ordered.shape, bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return np.asarray((new & (ordered >= 0)).sum(-1))


def _sectors(rows: Values, size: int) -> tuple[int, int]:
    """(sectors, the fewest) of the addresses (warps, 32), -1 for lanes that take no part."""
    bytes_asked = _distinct(np.where(rows >= 0, rows // size, -1)) * size
    touched = _distinct(np.where(rows >= 0, rows // _SECTOR, -1))
    return int(touched.sum()), int((-(-bytes_asked // _SECTOR)).sum())


def _wavefronts(rows: Values, size: int) -> tuple[int, int]:
    """(wavefronts, the fewest) of the addresses (warps, 32), -1 for lanes that take no part."""
    words = max(1, size // 4)
    parts = rows.reshape(-1, _WARP // words)
    parts = parts[(parts >= 0).any(1)]
    word = np.where(parts[..., None] >= 0, parts[..., None] // 4 + np.arange(words), -1)
    word = word.reshape(len(parts), -1)
    banks = np.arange(_BANKS)[:, None, None]
    most = _distinct(np.where((word >= 0) & (word % _BANKS == banks), word, -1)).max(0)
    return int(most.sum()), len(parts)


__all__ = ["Code", "Traffic", "traffic"]
