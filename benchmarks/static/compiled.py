"""What the GPU kernels are compiled to; no GPU needed.

Each launch is compiled ahead of time as Triton itself would compile it, and its listings are read.
"""

import multiprocessing
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ncsn_fast.benchmarks.static import addresses, sass
from ncsn_fast.benchmarks.static.addresses import Traffic
from ncsn_fast.benchmarks.static.recording import Launch
from ncsn_fast.benchmarks.static.rows import PUBLISHED, Row, Variants

TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.bool: "i1",
}
_FEW = 8  # programs


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


class Listings(NamedTuple):
    """A launch that has been compiled for a GPU of NVIDIA's.

    Attributes:
        cubin, ptx: the two forms of the code.
        parameters: names of its parameters, by their positions.
        traffic: of its programs, on average.
        shared: bytes of shared memory of a program.
    """

    cubin: bytes
    ptx: str
    parameters: list[str]
    traffic: Traffic
    shared: int


def compiled(launch: Launch, target: str) -> Listings:
    """A launch, compiled for a target of NVIDIA's."""
    source = specialise(launch, TARGETS[target])
    code = _compile(launch, source, target)
    ptx = code.asm["ptx"]
    names = [name for name, kind in source.signature.items() if kind != "constexpr"]
    found = traffic(ptx, launch, names)
    return Listings(code.asm["cubin"], ptx, names, found, code.metadata.shared)


def _compile(launch: Launch, source: ASTSource, target: str) -> Any:
    options = {"num_warps": launch.settings["num_warps"]}
    return triton.compile(source, target=TARGETS[target], options=options)


def traffic(ptx: str, launch: Launch, names: Sequence[str]) -> Traffic:
    """What a launch's programs ask of memory: all where they are few, else three of them."""
    given = {i: launch.arguments[name] for i, name in enumerate(names)}
    numbers = {i: None if isinstance(one, Tensor) else one for i, one in given.items()}
    last = launch.programs - 1
    programs = range(last + 1) if last < _FEW else (0, last // 3, last)
    return addresses.traffic(addresses.Code(ptx), numbers, launch.threads, programs)


class _Job(NamedTuple):
    """A variant to compile, without what does not pass to another process."""

    key: tuple[str, str]
    launch: Launch
    counted: str | None
    target: str


class _Compiled(NamedTuple):
    """A compiled variant, before its machine code is read; ``listings`` are None on AMD."""

    facts: dict[str, Any]
    listings: Listings | None


def _compile_job(job: _Job) -> _Compiled:
    launch, target = job.launch, job.target
    facts: dict[str, Any] = {field.name: None for field in fields(Row)}
    facts |= {"kernel": job.key[0], "variant": job.key[1], "target": target}
    if job.counted == "all":
        facts |= {"min_bytes_per_element": launch.bytes_per_element}
    if TARGETS[target].backend == "hip":
        code = _compile(launch, specialise(launch, TARGETS[target]), target)
        facts |= {"shared": code.metadata.shared, **_amd(code.asm["amdgcn"])}
        return _Compiled(facts, None)
    listings = compiled(launch, target)
    used, found = sass.usage(listings.cubin, triton.knobs.nvidia.cuobjdump.path), listings.traffic
    facts |= {"registers": used["REG"], "stack": used["STACK"], "local": used["LOCAL"]}
    facts |= {"shared": listings.shared, "sectors": _ratio(found.sectors, found.least_sectors)}
    facts |= {"wavefronts": _ratio(found.shared, found.least_shared)}
    return _Compiled(facts, listings)


def _ratio(number: float, least: float) -> float | None:
    return round(number / least, 2) if least else None


def _amd(assembly: str) -> dict[str, Any]:
    found = sass.amd_resources(assembly)
    return {
        "registers": found["vgpr_count"],
        "stack": found["private_segment_fixed_size"],
        "spills": found["vgpr_spill_count"],
        "barriers": found["barriers"],
    }


def compile_all(variants: Variants, targets: Sequence[str], quick: bool) -> list[Row]:
    """The rows for some targets; if quick, of most variants for sm_90 only."""
    jobs = [
        _Job(key, variant.launch(), variant.counted, target)
        for target in targets
        for key, variant in variants.items()
        if not quick or target == PUBLISHED or variant.everywhere
    ]
    # Spawned, not forked: torch may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        done = list(pool.map(_compile_job, jobs, chunksize=4))
    codes = machine_codes([one.listings for one in done if one.listings is not None])
    rows = []
    for job, one in zip(jobs, done, strict=True):
        if one.listings is not None:
            budget = variants[job.key].budget.instructions
            code = codes[id(one.listings)]
            try:
                one.facts.update(_read(job, one.listings, code, budget))
            except ValueError as error:
                raise ValueError(f"{', '.join(job.key)}, {job.target}: {error}") from error
        rows.append(Row(**one.facts))
    return rows


def machine_codes(all_of_them: Iterable[Listings]) -> dict[int, list[sass.Instruction]]:
    """The instructions of each, by its id."""
    of: dict[str, list[Listings]] = {}
    for one in all_of_them:
        architecture = re.findall(r"^\.target sm_(\w+)", one.ptx, re.MULTILINE)[0]
        of.setdefault(architecture, []).append(one)
    found: dict[int, list[sass.Instruction]] = {}
    for architecture, those in of.items():
        cubins = [one.cubin for one in those]
        codes = sass.disassemble(cubins, architecture, triton.knobs.nvidia.nvdisasm.path)
        found |= {id(one): code for one, code in zip(those, codes, strict=True)}
    return found


def _read(
    job: _Job, listings: Listings, code: list[sass.Instruction], budget: float | None
) -> dict[str, Any]:
    """What the machine code says of a variant."""
    facts: dict[str, Any] = {"budget": budget}
    facts |= {"spills": sass.count(code, "LDL", "STL"), "barriers": sass.count(code, "BAR")}
    if job.counted is None:
        return facts
    states = job.launch.states
    elements = next(iter(states.values())).numel() / (job.launch.programs * job.launch.threads)
    if budget is not None and job.counted == "loop":
        (turns,) = listings.traffic.turns
        body = sass.loop_body(code)
        # Some loops ptxas unrolls: its turns are several of those of PTX.
        together = sass.count(body, "LDG", "STG") / addresses.Code(listings.ptx).accesses(0)
        facts["sass_per_element"] = round(len(body) * turns / together / elements, 2)
    elif budget is not None:
        facts["sass_per_element"] = round(len(sass.straight_line(code)) / elements, 2)
    names = enumerate(listings.parameters)
    types = {i: _TYPES[states[name].dtype] for i, name in names if name in states}
    facts["ld_width"], facts["st_width"] = sass.widths(listings.ptx, code, types)
    found = listings.traffic
    moved = sum(way.get(i, 0.0) for i in types for way in (found.loaded, found.stored))
    facts["bytes_per_element"] = round(moved / job.launch.threads / elements, 2)
    return facts


__all__ = ["TARGETS", "Listings", "compile_all", "compiled", "machine_codes", "specialise"]
