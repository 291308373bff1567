"""Which implementation an operation runs on, and why.

The specification in PyTorch ("torch") runs everywhere. Faster backends are the packages of that
name under ``ncsn_fast.kernels``; one that is absent is never chosen, and asking for it by name is
an error that says so.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from types import TracebackType

import torch

BACKENDS = ("auto", "torch", "triton", "cpp")
_ENVIRONMENT = "NCSN_FAST_BACKEND"
_chosen: str | None = None  # what use_backend() asked for; None leaves it to the environment


class use_backend:
    """Choose the backend of all operations: a plain call stays, a ``with`` block restores.

    The choice is the whole process's, all of its threads included.

    Args:
        name: "torch", "triton" or "cpp"; "auto" leaves the choice to the environment variable
            NCSN_FAST_BACKEND, else to what is fastest.

    Raises:
        ValueError: for an unknown name, or one that cannot run here (with the reason).
    """

    def __init__(self, name: str) -> None:
        global _chosen
        _check(name, "use_backend")
        self._previous = _chosen
        _chosen = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _chosen
        _chosen = self._previous


def resolve(backend: str = "auto", device: torch.device | str = "cpu") -> tuple[str, str]:
    """The backend that operations use and the reason, for example ("torch", "…").

    An explicit ``backend`` wins over :func:`use_backend`, which wins over ``NCSN_FAST_BACKEND``.

    Raises:
        ValueError: where a backend asked for by name cannot run.
    """
    wishes = (
        (backend, "the backend argument"),
        (_chosen or "auto", "use_backend"),
        (os.environ.get(_ENVIRONMENT) or "auto", _ENVIRONMENT),
    )
    for wish, source in wishes:
        _check(wish, source)
        if wish != "auto":
            return wish, f"asked for by {source}"
    fast = "triton" if torch.device(device).type == "cuda" else "cpp"
    return "torch", f"{fast} is not available: {missing(fast)}"


@functools.cache  # asked at every step, and looking for a module costs more than a small step
def missing(name: str) -> str | None:
    """Why a backend cannot run here, or None where it can."""
    if name == "torch":
        return None
    try:
        found = importlib.util.find_spec(f"ncsn_fast.kernels.{name}")
    except ModuleNotFoundError:
        return "ncsn_fast.kernels is missing: install the package (pip install -e .)"
    if found is None:
        return f"this version of ncsn_fast has no {name} kernels"
    return f"the {name} kernels of this installation belong to another version of ncsn_fast"


def _check(name: str, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{source}: backend {name!r} is unknown; choose one of {BACKENDS}")
    if name != "auto" and (reason := missing(name)):
        raise ValueError(
            f"{source}: backend {name!r} cannot run here, because {reason}. "
            "Use 'torch', or 'auto' to take the fastest that runs"
        )


__all__ = ["BACKENDS", "missing", "resolve", "use_backend"]
