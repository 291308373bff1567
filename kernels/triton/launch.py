"""What all launches share: the mathematics, the device, the shape of a program."""

from typing import Any

import torch
import triton
from torch import Tensor

IS_HIP = torch.version.hip is not None
# Triton's interpreter runs kernels on the CPU, without the hardware's approximate functions.
INTERPRETED = bool(triton.knobs.runtime.interpret)
FAST_MATH = not INTERPRETED
# A thread takes four quads: less, and the key schedule and the addresses outweigh the work; more,
# and the registers run out. Of a channels_last tensor a thread takes one quad of each channel.
_QUADS, _WARPS = 256, 2
_ALONE = 32 * _WARPS  # one quad a thread


def program(channels_together: int, strided: bool) -> dict[str, int]:
    """Quads and warps of a program."""
    alone = strided or channels_together > 1
    return {"BLOCK_SIZE": _ALONE if alone else _QUADS, "num_warps": _WARPS}


def launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, **settings: Any) -> None:
    """Run a kernel on the device of a tensor; Triton itself goes by the current device."""
    if like.is_cuda and like.device.index != torch.cuda.current_device():
        with torch.cuda.device(like.device):
            kernel[(programs,)](*arguments, **settings)
    else:
        kernel[(programs,)](*arguments, **settings)
