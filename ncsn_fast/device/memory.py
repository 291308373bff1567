"""What does not fit in memory is halved."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ncsn_fast.support import checks

_log = logging.getLogger("ncsn_fast")


def in_chunks(
    n: int, size: int, work: Callable[[slice], None], again: Callable[[int], None]
) -> None:
    """Work on n samples, some at a time; a chunk that does not fit in memory is halved.

    That is warned of once; the chunks that follow keep the smaller size.

    Args:
        n: how many, at least 1.
        size: how many at a time, at least 1.
        work: is given the slice of 0 … n that is a chunk, one after the other. It may not hold on
            to the memory of a chunk that did not fit.
        again: is called with the number of samples that are done before a smaller chunk is tried,
            to give back memory and to take back what it counted.

    Raises:
        RuntimeError: what ``work`` raises, be it that one sample alone does not fit.
    """
    done, warned = 0, False
    while done < n:
        part = slice(done, min(done + size, n))
        if _fits(work, part):
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


def chunk_size(batch_size: int | str, values: int, budget: int) -> int:
    """How many samples are computed at once.

    Args:
        batch_size: as the caller wishes; "auto": as many as hold so many values.
        values: of one sample.
        budget: values of a chunk of one's own choice.

    Raises:
        ValueError: for anything but "auto" and a whole number of at least 1.
    """
    if batch_size == "auto":
        return max(1, budget // values)
    if isinstance(batch_size, str):
        raise ValueError(f"batch_size = {batch_size!r}: give 'auto' or a number of at least 1")
    return checks.count("batch_size", batch_size)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether this is how PyTorch says that memory was not enough."""
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _fits(work: Callable[[slice], None], part: slice) -> bool:
    """Whether a chunk could be done. Once this returns nothing holds on to the memory of one that
    could not, as its error would."""
    try:
        work(part)
    except RuntimeError as error:
        if part.stop - part.start == 1 or not _out_of_memory(error):
            raise
        return False
    return True


__all__ = ["chunk_size", "in_chunks"]
