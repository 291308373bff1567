"""What a compiled kernel's listings say: SASS (NVIDIA's machine code), PTX and AMD's assembly.

Nothing here needs Triton or a GPU.
"""

import re
import struct
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

# After & and ? some versions of cuobjdump say how the instruction is scheduled.
_SASS_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?\w+)\s+)?([\w.]+)\s*([^;&?]*)[^;]*;")
_PTX_STATEMENT = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+([^;]*);", re.MULTILINE)
_PTX_RESULT = re.compile(r"\{[^}]*\}|[^,]*")
_PTX_REGISTER = re.compile(r"%\w+")
_BRANCHES = ("BRA", "BRX", "JMP", "JMX")
_CALLS = ("CALL", "JCAL", "RET")


class Instruction(NamedTuple):
    """A line of SASS: ``predicate`` is None where the instruction always runs."""

    address: int
    predicate: str | None
    name: str
    operands: str

    @property
    def opcode(self) -> str:
        """The name without its modifiers."""
        return self.name.split(".")[0]


class Access(NamedTuple):
    """A load or store of global memory: ``kind`` is "ld" or "st", ``bits`` of one thread."""

    kind: str
    bits: int


def disassemble(
    cubins: Sequence[bytes], architecture: str, nvdisasm: str
) -> list[list[Instruction]]:
    """The instructions of kernels, without NOPs, by the program of that path.

    It takes a third of a second to begin with, so it gets the machine code of all of them as one
    image: addresses count through it.

    Args:
        cubins: of one architecture.
        architecture: its name, such as "90a".
    """
    codes = [machine_code(cubin) for cubin in cubins]
    listed = iter(instructions(_run([nvdisasm, "--binary", f"SM{architecture}"], b"".join(codes))))
    found: list[list[Instruction]] = [[] for _ in codes]
    line = next(listed, None)
    for kernel, (_, end) in zip(
        found, pairwise(accumulate(map(len, codes), initial=0)), strict=True
    ):
        while line is not None and line.address < end:
            kernel.append(line)
            line = next(listed, None)
    return found


def machine_code(cubin: bytes) -> bytes:
    """The only .text section of a cubin, which is an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, of_names = struct.unpack_from("<HHH", cubin, 0x3A)
    # Of a section: where its name is, type, flags, address, offset and length.
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    names = sections[of_names][4]
    (code,) = (
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(b".text.", names + name)
    )
    return code


def usage(cubin: bytes, cuobjdump: str) -> dict[str, int]:
    """The resources that a kernel uses, by the program of that path."""
    return resources(_run([cuobjdump, "-res-usage"], cubin))


def _run(command: list[str], content: bytes) -> str:
    """What a program prints of a file with this content."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        done = subprocess.run([*command, file.name], capture_output=True, text=True, check=True)
        return done.stdout


def instructions(listing: str) -> list[Instruction]:
    """The instructions of a listing, without NOPs."""
    found = (_SASS_LINE.match(line) for line in listing.splitlines())
    lines = (Instruction(int(m[1], 16), m[2], m[3], m[4].strip()) for m in found if m)
    return [line for line in lines if line.opcode != "NOP"]


def straight_line(code: list[Instruction]) -> list[Instruction]:
    """The instructions from entry to the first unpredicated EXIT: each runs at most once.

    Raises:
        ValueError: where their number would say nothing about the time: a call, a branch
            backward (a loop), a branch past that EXIT, or no such EXIT.
    """
    ends = [i for i, line in enumerate(code) if line.opcode == "EXIT" and not line.predicate]
    if not ends:
        raise ValueError("there is no unpredicated EXIT")
    run = code[: ends[0] + 1]
    for line in run:
        where = f"{line.name} at {line.address:#06x}"
        if line.opcode in _CALLS:
            raise ValueError(f"{where} is a call")
        if line.opcode in _BRANCHES:
            target = re.search(r"0x[0-9a-f]+$", line.operands)
            if target is None or int(target[0], 16) <= line.address:
                raise ValueError(f"{where} is a branch backward, or to who knows where")
            if int(target[0], 16) > run[-1].address:
                raise ValueError(f"{where} leaves the instructions that are counted")
    return run


def loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """(first, last) instruction of each loop, in the order of the branches that close them."""
    found = []
    # Behind the end lie ways round divergence, which branch back as well.
    ends = (i for i, line in enumerate(code) if line.opcode == "EXIT" and not line.predicate)
    for last, line in enumerate(code[: next(ends, None)]):
        target = re.search(r"0x[0-9a-f]+$", line.operands)
        if line.opcode in _BRANCHES and target and int(target[0], 16) <= line.address:
            first = next(i for i, one in enumerate(code) if one.address >= int(target[0], 16))
            found.append((first, last))
    return found


def loop_body(code: list[Instruction]) -> list[Instruction]:
    """The instructions of a kernel's longest loop, which runs through its elements.

    Raises:
        ValueError: where their number would say nothing about the time: a call in it, another
            loop in it, or no loop at all.
    """
    found = loops(code)
    if not found:
        raise ValueError("there is no loop")
    first, last = max(found, key=lambda loop: loop[1] - loop[0])
    body = code[first : last + 1]
    if sum(first <= one[0] and one[1] <= last for one in found) > 1:
        raise ValueError(f"the loop at {body[0].address:#06x} has a loop in it")
    # Of a call that goes to what follows the loop nobody returns: it is the way out.
    behind = f"{code[last + 1].address:#x}"
    for line in body:
        if line.opcode in _CALLS and line.operands != behind:
            raise ValueError(f"{line.name} at {line.address:#06x} is a call")
    return body


def resources(listing: str) -> dict[str, int]:
    """What ``cuobjdump -res-usage`` says of a kernel: REG, STACK, LOCAL, ..."""
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", listing)}


def count(code: list[Instruction], *opcodes: str) -> int:
    """How many instructions have one of these opcodes."""
    return sum(line.opcode in opcodes for line in code)


def sass_accesses(code: list[Instruction]) -> "Counter[Access]":
    """The accesses of global memory in SASS, which does not say of which tensor."""
    kinds = {"LDG": "ld", "STG": "st"}
    return Counter(
        Access(kinds[line.opcode], _sass_bits(line.name)) for line in code if line.opcode in kinds
    )


def _sass_bits(name: str) -> int:
    """The width of LDG.E.128, STG.E.U16, LDG.E (32 bits) and the like."""
    width = re.search(r"\.[SU]?(8|16|64|128|256)\b", name)
    return int(width[1]) if width else 32


def ptx_accesses(ptx: str) -> dict[int, "Counter[Access]"]:
    """The accesses of global memory by kernel parameter, in the order of the parameters.

    An address is followed back through the registers that it was computed from. What was itself
    loaded from memory ends the search.

    Raises:
        ValueError: where an address comes from two pointers.
    """
    pointers = {int(n) for n in re.findall(r"\.param \.u64 \.ptr[^\n]*_param_(\d+)", ptx)}
    origins: dict[str, set[str]] = defaultdict(set)
    accesses: list[tuple[Access, str]] = []
    for operation, operands in _PTX_STATEMENT.findall(ptx):
        if re.match(r"(ld|st)\.global", operation):
            address = re.search(r"\[\s*(%\w+)", operands)
            assert address is not None, operands
            accesses.append((Access(operation[:2], _ptx_bits(operation)), address[1]))
        elif parameter := re.search(r"_param_(\d+)\]", operands):
            origins[operands.split(",")[0]].add(parameter[1])
        else:
            results = _PTX_RESULT.match(operands)
            assert results is not None
            for result in _PTX_REGISTER.findall(results[0]):
                origins[result].update(_PTX_REGISTER.findall(operands[results.end() :]))
    found: dict[int, Counter[Access]] = defaultdict(Counter)
    for access, register in accesses:
        of = _parameters(register, origins) & pointers
        if len(of) != 1:
            raise ValueError(f"an address of parameters {sorted(of)}: one pointer was expected")
        found[of.pop()][access] += 1
    return dict(found)


def _parameters(register: str, origins: dict[str, set[str]]) -> set[int]:
    """The parameters that a register was computed from."""
    seen: set[str] = set()
    ahead = [register]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += origins.get(name, ())
    return {int(name) for name in seen if name.isdigit()}


def _ptx_bits(operation: str) -> int:
    """The width of ld.global.v4.b32 and the like."""
    lanes = re.search(r"\.v(\d)", operation)
    bits = re.search(r"\.[bufs](\d+)$", operation)
    assert bits is not None, operation
    return int(bits[1]) * (int(lanes[1]) if lanes else 1)


def widths(
    ptx: str, code: list[Instruction], types: dict[int, str]
) -> tuple[dict[str, int], dict[str, int]]:
    """How a thread loads and stores some of the kernel's tensors.

    PTX says which tensor an access is of; SASS has to have all of these accesses.

    Args:
        ptx, code: the two listings of the kernel.
        types: position among the kernel's parameters → name of the tensor's type.

    Returns:
        (narrowest load in bits by type, narrowest store in bits by type).

    Raises:
        ValueError: where SASS lacks an access: split into narrower ones, or dropped.
    """
    narrowest: dict[str, dict[str, int]] = {"ld": {}, "st": {}}
    accesses: Counter[Access] = Counter()
    for position, its_accesses in ptx_accesses(ptx).items():
        if position in types:
            accesses += its_accesses
            for kind, bits in its_accesses:
                so_far = narrowest[kind].get(types[position], bits)
                narrowest[kind][types[position]] = min(bits, so_far)
    if missing := accesses - sass_accesses(code):
        raise ValueError(f"accesses in PTX but not in SASS: {dict(missing)}")
    return narrowest["ld"], narrowest["st"]


def amd_resources(assembly: str) -> dict[str, int]:
    """The numbers of the metadata of AMD's assembly, and ``barriers``, its s_barrier's."""
    numbers = re.findall(r"^\s*(?:- )?\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)
    barriers = len(re.findall(r"^\s*s_barrier\b", assembly, re.MULTILINE))
    return {**{name: int(number) for name, number in numbers}, "barriers": barriers}


__all__ = [
    "Access",
    "Instruction",
    "amd_resources",
    "count",
    "disassemble",
    "instructions",
    "loop_body",
    "loops",
    "machine_code",
    "ptx_accesses",
    "resources",
    "sass_accesses",
    "straight_line",
    "usage",
    "widths",
]
