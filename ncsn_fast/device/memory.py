"""What does not fit in memory is halved, or refused before it is read."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ncsn_fast.support import checks

_log = logging.getLogger("ncsn_fast")
_GIB = 1 << 30
_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def in_chunks(
    n: int,
    size: int,
    work: Callable[[slice], None],
    again: Callable[[int], None],
    *,
    halves: bool = True,
) -> int:
    """Work on n samples, some at a time; a chunk that does not fit in memory is halved.

    That is warned of once; the chunks that follow keep the smaller size.

    Args:
        n: how many, at least 1.
        size: how many at a time, at least 1.
        work: is given the slice of 0 … n that is a chunk, one after the other. It may not hold on
            to the memory of a chunk that did not fit.
        again: is called with the number of samples that are done before a smaller chunk is tried,
            to give back memory and to take back what it counted.
        halves: False refuses what does not fit.

    Returns:
        How many at a time do fit: ``size``, or the half that it came to.

    Raises:
        RuntimeError: what ``work`` raises, be it that one sample alone does not fit; and where a
            chunk does not that is not halved.
    """
    done, warned = 0, False
    while done < n:
        part = slice(done, min(done + size, n))
        if _fits(work, part, halves):
            done = part.stop
            continue
        tried = part.stop - done
        size = tried // 2
        again(done)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not warned:
            _log.warning(
                "%d samples at once do not fit in memory: going on with %d, or fewer if need be "
                "(batch_size= avoids this)",
                tried,
                size,
            )
        warned = True
    return size


def copied_later(x: Tensor) -> Callable[[], Tensor]:
    """A function that copies a tensor to the CPU, from another thread say, while its device goes on
    with what is asked of it after this call. Until then nothing may change the tensor.
    """
    if x.device.type != "cuda":
        return x.detach().cpu
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(x.device))

    def copied() -> Tensor:
        with torch.cuda.stream(torch.cuda.Stream(x.device)):
            ready.wait()
            return x.detach().cpu()

    return copied


def chunk_size(batch_size: int | str, values: int, budget: int) -> int:
    """How many samples are computed at once.

    Args:
        batch_size: as the caller wishes; "auto": as many as hold so many values.
        values: of one sample.
        budget: values of a chunk of one's own choice.

    Raises:
        ValueError: for anything but "auto" and a whole number of at least 1.
    """
    if isinstance(batch_size, str) and batch_size == "auto":
        return max(1, budget // values)
    if isinstance(batch_size, str):
        raise ValueError(f"batch_size = {batch_size!r}: give 'auto' or a number of at least 1")
    return checks.count("batch_size", batch_size)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether this is how PyTorch says that memory was not enough."""
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _fits(work: Callable[[slice], None], part: slice, halves: bool) -> bool:
    """Whether a chunk could be done. Once this returns nothing holds on to the memory of one that
    could not, as its error would."""
    size = part.stop - part.start
    try:
        work(part)
    except RuntimeError as error:
        if size == 1 or not _out_of_memory(error):
            raise
        if not halves:
            told = f"{size} samples at once do not fit in memory: give fewer, as they are not cut"
            raise RuntimeError(told) from error
        return False
    return True


def check_host_memory(
    needed: int, what: str, otherwise: str, device: torch.device | None = None
) -> None:
    """Refuse now what would not fit into the free memory of this machine, where that is known.

    Args:
        needed: bytes that ``what`` takes.
        otherwise: what helps.
        device: where it is needed, if that is a GPU: what of its memory PyTorch holds is free too.

    Raises:
        ValueError: where there is less.
    """
    free = free_host_bytes()
    if device is not None and device.type == "cuda":
        free = torch.cuda.get_device_properties(device).total_memory
    if free is not None and needed > free:
        raise ValueError(f"{what} takes {too_much(needed, free)}: {otherwise}")


def too_much(needed: int, free: int) -> str:
    """So many bytes, of which so many are free, in words."""
    return f"{needed / _GIB:.3g} GiB of memory, of which {free / _GIB:.3g} are free"


def free_host_bytes() -> int | None:
    """Free memory of this machine, or, where that is less, of what a container or a job of a
    cluster may use of it; None where the system does not say."""
    try:
        # As it is, since a sampler asks at every call: decoding takes as long again.
        with open("/proc/meminfo", "rb", buffering=0) as file:
            found = re.search(rb"MemAvailable:\s*(\d+) kB", file.read(4096))
    except OSError:
        return None
    free = [int(found[1]) * 1024] if found else []
    return min(free + [_left(*limited) for limited in _limited()], default=None)


@functools.cache
def _limited() -> tuple[tuple[Path, int], ...]:
    """The control groups (version 2) of this process with less memory than there is, and the bytes
    of each."""
    try:
        own = re.search(r"^0::/(.*)$", _GROUP.read_text(), re.MULTILINE)
    except OSError:
        return ()
    group = _GROUPS / own[1] if own else _GROUPS
    found = []
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # "max", or no file at the root
            found.append((folder, int((folder / "memory.max").read_text())))
        if folder == _GROUPS:
            break
    return tuple(found)


def _left(group: Path, limit: int) -> int:
    """Bytes that a control group has left: what it caches of files makes room."""
    try:
        used = int((group / "memory.current").read_text())
        cached = re.search(
            r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE
        )
    except (OSError, ValueError):
        return limit
    return max(0, limit - used + (int(cached[1]) if cached else 0))


__all__ = [
    "check_host_memory",
    "chunk_size",
    "copied_later",
    "free_host_bytes",
    "in_chunks",
    "too_much",
]
