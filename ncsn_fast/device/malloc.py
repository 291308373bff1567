"""How the C library holds on to memory, where that decides how fast a network runs on a CPU.

PyTorch takes each activation from malloc and gives it back. By default glibc returns what is free
at the end of the heap to the system as soon as it is more than a few activations, and the system
clears every page again when it is next touched: up to a tenth of the time of a forward pass.
"""

from __future__ import annotations

import ctypes
import functools
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 1 << 30  # bytes
_LARGEST_OF_OLD_GLIBC = 32 << 20  # bytes


@functools.cache
def keep_freed_memory() -> bool:
    """Have malloc keep up to 1 GiB of freed memory at hand, for the whole process from now on.

    It is there for whatever the process allocates next. Where the environment has settings for
    malloc (MALLOC_* or GLIBC_TUNABLES), or the C library is not glibc, nothing is changed.

    Returns:
        Whether it was done.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    mapped = mallopt(_MMAP_THRESHOLD, _KEPT) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD_GLIBC)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, _KEPT))


__all__ = ["keep_freed_memory"]
