"""Which implementation an operation runs on, and why.

The specification in PyTorch ("torch") runs everywhere. Faster are the kernels of
``ncsn_fast.kernels``: "triton" on GPUs, "cpp" on CPUs, which are built when first asked for. Where
they cannot run they are never chosen, and asking for them by name is an error that says why.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from types import TracebackType

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import forward_ad

from ncsn_fast.device import native

BACKENDS = ("auto", "torch", "triton", "cpp")
KERNELS = ("triton", "cpp")
# What networks take and give, as far as kernels know it.
NETWORK_TYPES = (torch.float32, torch.float16, torch.bfloat16)
NATIVE_TYPES = (torch.float32, torch.bfloat16)  # those of the CPU
OLDEST_TRITON = (3, 4)  # the first whose compiler knows tuples as the kernels use them
_MOST_ELEMENTS = (1 << 33) - (1 << 18)  # of one sample; see kernels/triton/common/tiles.py
_ENVIRONMENT = "NCSN_FAST_BACKEND"
# What use_backend() asked for, the last of them counts; none leaves it to the environment.
_chosen: list[use_backend] = []
_log = logging.getLogger("ncsn_fast")


class use_backend:
    """Choose the backend of all operations: a plain call stays, a ``with`` block restores.

    The choice is the whole process's, all of its threads included; of blocks that several threads
    are in, the one begun last counts until it ends. A function that torch.compile has compiled
    keeps the backend it was compiled with.

    Args:
        name: "torch", "triton" or "cpp"; "auto" leaves the choice to the environment variable
            NCSN_FAST_BACKEND, else to what is fastest.

    Raises:
        ValueError: for an unknown name, or one that cannot run here (with the reason).
    """

    def __init__(self, name: str) -> None:
        _check(name, "use_backend")
        self.name = name
        _chosen.append(self)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _chosen.remove(self)


def resolve(backend: str = "auto", device: torch.device | str = "cpu") -> tuple[str, str]:
    """The backend that operations on a device use and the reason, for example ("torch", "…").

    An explicit ``backend`` wins over :func:`use_backend`, which wins over ``NCSN_FAST_BACKEND``.

    Raises:
        ValueError: where a backend asked for by name cannot run.
    """
    kind = torch.device(device).type
    if isinstance(backend, str) and backend == "auto":
        backend, source = wished()
    else:
        source = "the backend argument"
    if not isinstance(backend, str) or backend != "auto":
        _check(backend, source, torch.device(device))
        return backend, f"asked for by {source}"
    fast = "triton" if kind == "cuda" else "cpp"
    reason = missing(fast, torch.device(device))
    if reason is None:
        return fast, f"the fastest on {kind}"
    return "torch", f"{fast} is not available: {reason}"


def choose(
    backend: str, device: torch.device, obstacle: str | None = None, *, half: bool = False
) -> str:
    """The backend of one call: the one of :func:`resolve`, unless something stands in its way.

    Args:
        backend: what the caller wishes.
        device: where the tensors are.
        obstacle: why kernels cannot take these very arguments, if so.
        half: whether float16 is among what a kernel would read or write.

    Raises:
        ValueError: where a backend asked for by name cannot run.
    """
    if backend in KERNELS and obstacle is None and not half and missing(backend, device) is None:
        return backend  # the engine's own way: decided once a chain, asked for at every step
    name, reason = resolve(backend, device)
    if half and name == "cpp" and obstacle is None:
        obstacle = "the kernels of the CPU take float32 and bfloat16, not float16"
    if obstacle and name != "torch":
        if reason.startswith("asked for"):
            raise ValueError(
                f"backend {name!r}, {reason}, cannot run this: {obstacle}. "
                "Use 'torch', or 'auto' to take what runs"
            )
        name, reason = "torch", obstacle
    if not reason.startswith("asked for"):
        _tell(name, device.type, reason)
    return name


# To torch.compile a constant: it asks the environment and looks for modules. This is the mark of
# torch.compiler.assume_constant_result, which itself takes a second and a half to import.
vars(choose)["_dynamo_marked_constant"] = True


def obstacle(x: Tensor, *others: Tensor | None) -> str | None:
    """Why the kernels cannot take a state x (N, *shape) and what enters with it; None: they can."""
    if x.dtype != torch.float32:
        return f"kernels hold the state in float32, x is {x.dtype}"
    if torch.is_grad_enabled():
        for tensor in (x, *others):
            if tensor is not None and tensor.requires_grad:
                return "the kernel of this operation has no gradient (torch.no_grad() needs none)"
    return general_obstacle(x)


def general_obstacle(x: Tensor) -> str | None:
    """What stands in the way of any kernel."""
    if x.numel() >= _MOST_ELEMENTS and x[0].numel() >= _MOST_ELEMENTS:
        return f"a sample of {x[0].numel()} elements; kernels take less than 2³³ - 2¹⁸"
    if forward_ad._current_level >= 0:
        return "kernels have no forward-mode derivative"
    if torch.compiler.is_compiling():
        return None
    if is_functorch_wrapped_tensor(x):
        return "kernels cannot be transformed by torch.func"
    if is_legacy_batchedtensor(x):
        return "kernels have no gradients of many upstream ones at once (is_grads_batched)"
    return None


@functools.cache
def _tell(name: str, kind: str, reason: str) -> None:
    """Say once which path the operations on a kind of device take."""
    level = logging.WARNING if kind == "cuda" and "not available" in reason else logging.INFO
    _log.log(level, "operations on %s run on backend %r (%s)", kind, name, reason)


@functools.cache  # asked at every step, and looking for a module costs more than a small step
def missing(name: str, device: torch.device | None = None) -> str | None:
    """Why a backend cannot run here (on a device), or None where it can."""
    if name == "torch":
        return None
    if name == "triton":
        return _missing_triton(device)
    if device is not None and device.type != "cpu":
        return f"its kernels run on CPUs, and the tensors are on {device.type}"
    return native.missing()


def _missing_triton(device: torch.device | None) -> str | None:
    try:
        found = importlib.util.find_spec("ncsn_fast.kernels.triton")
    except ModuleNotFoundError:
        found = None
    if found is None:
        return "ncsn_fast.kernels is missing: install the package (pip install -e .)"
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install triton"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"Triton {triton.__version__} is installed and the kernels need {oldest} or newer"
    if triton.knobs.runtime.interpret:
        return None  # its interpreter runs kernels on any device
    if not torch.cuda.is_available():
        return "there is no GPU that this torch can use"
    if device is not None and device.type != "cuda":
        return f"Triton's kernels run on GPUs, and the tensors are on {device.type}"
    return None


def wished() -> tuple[str, str]:
    """What was asked for outside the call: the backend's name and who asked."""
    chosen = _chosen[-1].name if _chosen else "auto"
    if chosen != "auto":
        return chosen, "use_backend"
    return os.environ.get(_ENVIRONMENT) or "auto", _ENVIRONMENT


def _check(name: str, source: str, device: torch.device | None = None) -> None:
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{source}: backend {name!r} is unknown; choose one of {BACKENDS}")
    if name != "auto" and (reason := missing(name, device)):
        raise ValueError(
            f"{source}: backend {name!r} cannot run here, because {reason}. "
            "Use 'torch', or 'auto' to take the fastest that runs"
        )


def plain_call(x: Tensor) -> bool:
    """Whether nobody watches: being an operation of PyTorch's costs more than all the rest of a
    call, and only who traces it needs that."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    return torch._C._len_torch_dispatch_stack() == 0


def unwatched(x: Tensor, *others: Tensor) -> bool:
    """Whether a kernel may be launched on them outside of PyTorch's dispatcher and of autograd."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *others)):
        return False
    return plain_call(x)


__all__ = [
    "NATIVE_TYPES",
    "NETWORK_TYPES",
    "choose",
    "general_obstacle",
    "missing",
    "obstacle",
    "plain_call",
    "resolve",
    "unwatched",
    "use_backend",
    "wished",
]
