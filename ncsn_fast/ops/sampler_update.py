"""The sampler update: x ← a·x + b·n + c·h + d·z + w·g, h ← e·x_old + f·n, next network input.

Formula and tensors: :func:`ncsn_fast.reference.sampler_update`. Here the noise is named by
(seed, step, sample_ids), not passed, so that a kernel can make it in registers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import noise, reference
from ncsn_fast.noise import Word
from ncsn_fast.ops import backends
from ncsn_fast.ops.library import KERNEL, LIBRARY
from ncsn_fast.reference import StepResult

_NETWORK_TYPES = (torch.float32, torch.float16, torch.bfloat16)
LIBRARY.define(
    "sampler_update(Tensor x, Tensor n, Tensor row, Tensor seed, Tensor step, Tensor sample_ids, "
    "Tensor? z, Tensor? history, Tensor? guidance, Tensor? mask, Tensor? known, bool add_noise, "
    "bool scale_input, float? clamp_low, float? clamp_high, "
    "Tensor(a!) x_out, Tensor(b!)? history_out, Tensor(c!)? input_out) -> ()"
)


@functools.cache
def _kernel() -> Any:
    from ncsn_fast.kernels.triton.sampler_update import sampler_update

    return sampler_update


def _launch(
    x: Tensor,
    n: Tensor,
    row: Tensor,
    seed: Tensor,
    step: Tensor,
    sample_ids: Tensor,
    z: Tensor | None,
    history: Tensor | None,
    guidance: Tensor | None,
    mask: Tensor | None,
    known: Tensor | None,
    add_noise: bool,
    scale_input: bool,
    clamp_low: float | None,
    clamp_high: float | None,
    x_out: Tensor,
    history_out: Tensor | None,
    input_out: Tensor | None,
) -> None:
    if x.numel() == 0:
        return
    _kernel()(
        x.contiguous(),
        n if n.dtype in _NETWORK_TYPES else n.float(),
        row,
        seed,
        step,
        sample_ids.contiguous(),
        z if z is None else _plain(z),
        history if history is None else _plain(history),
        guidance if guidance is None else _plain(guidance),
        mask if mask is None else _plain(mask),
        known if known is None else _plain(known),
        x_out,
        history_out,
        input_out,
        add_noise=add_noise,
        scale_input=scale_input,
        clamp=None if clamp_low is None else (clamp_low, clamp_high),
    )


def _plain(tensor: Tensor) -> Tensor:
    """As the kernel takes what belongs to the state: contiguous, and float32 unless a mask."""
    if tensor.dtype not in (torch.float32, torch.bool):
        tensor = tensor.float()
    return tensor.contiguous()


LIBRARY.impl("sampler_update", _launch, KERNEL)
torch.library.register_fake("ncsn_fast::sampler_update", lambda *_: None, lib=LIBRARY)
_op = torch.ops.ncsn_fast.sampler_update.default


def sampler_update(
    x: Tensor,
    n: Tensor,
    row: Tensor,
    *,
    seed: Word,
    step: Word,
    sample_ids: Tensor,
    add_noise: bool = True,
    z: Tensor | None = None,
    history: Tensor | None = None,
    guidance: Tensor | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    scale_input: bool = False,
    clamp: tuple[float, float] | None = None,
    input_dtype: torch.dtype | None = None,
    input_format: torch.memory_format = torch.contiguous_format,
    out: StepResult | None = None,
    backend: str = "auto",
) -> StepResult:
    """One step of any sampler on x (N, *shape) with the network's output n at x.

    Args:
        x: (N, *shape) float32 state.
        n: (N, *shape) network output in float32, float16 or bfloat16, in any memory format.
        row: (9,) float32 on x's device, the coefficients ``reference.ROW``.
        seed, step, sample_ids: which noise; see :func:`ncsn_fast.noise.normal`. The known region
            of the state after this step is noised with ``step + 1``.
        add_noise: False where d = 0, to save the work.
        z: (N, *shape), noise to use instead.
        history: (N, *shape), for methods with memory.
        guidance: (N, *shape), an extra drift.
        mask, known: (N, *shape) bool and float32, the region imposed after the step.
        scale_input: whether the network's next input is c_in·x rather than x.
        clamp: (low, high), limits of the new state.
        input_dtype, input_format: of the network's next input; torch.channels_last needs four
            dimensions. By default it is the state itself, where it is not scaled.
        out: the tensors to write, contiguous but for the network's input; they may be x and
            history themselves. Default: new ones.
        backend: see :func:`ncsn_fast.use_backend`.

    Raises:
        ValueError: where shapes or devices differ, or the backend cannot run.
    """
    given = (n, z, history, guidance, mask, known)
    _check(x, given, sample_ids)
    if out is not None and (out.x.shape != x.shape or not out.x.is_contiguous()):
        raise ValueError(f"out.x is {tuple(out.x.shape)}: it has to be contiguous and of x's shape")
    if backends.choose(backend, x.device, backends.obstacle(x, *given)) != "torch":
        if out is None:
            out = _outputs(x, history is not None, scale_input, input_dtype, input_format)
        low, high = (None, None) if clamp is None else clamp
        seed, step = noise.word_tensor(seed, x.device), noise.word_tensor(step, x.device)
        # Being an operation of PyTorch's costs more Python than all of this; only who traces it
        # needs that.
        run = _launch if type(x) is Tensor and not torch.compiler.is_compiling() else _op
        run(
            x, n, row, seed, step, sample_ids, z, history, guidance, mask, known,
            add_noise, scale_input, low, high,
            out.x, out.history, None if out.network_input is out.x else out.network_input,
        )  # fmt: skip
        return out
    key: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "dtype": x.dtype}
    shape = x.shape[1:]
    if z is None and add_noise:
        z = noise.normal(shape, stream=noise.SAMPLER, step=step, **key)
    known_z = None
    if mask is not None:
        known_z = noise.normal(shape, stream=noise.KNOWN, step=step + 1, **key)
    result = reference.sampler_update(
        x,
        n,
        row,
        z,
        history=history,
        guidance=guidance,
        mask=mask,
        known=known,
        known_z=known_z,
        scale_input=scale_input,
        clamp=clamp,
    )
    network_input = result.network_input.to(input_dtype or x.dtype, memory_format=input_format)
    return _into(out, StepResult(result.x, result.history, network_input))


def _check(x: Tensor, given: tuple[Tensor | None, ...], sample_ids: Tensor) -> None:
    shape, device = x.shape, x.device
    for tensor in given:
        if tensor is not None and (tensor.shape != shape or tensor.device != device):
            names = ("n", "z", "history", "guidance", "mask", "known")
            name = names[next(i for i, one in enumerate(given) if one is tensor)]
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} on {tensor.device}, x {tuple(shape)} on "
                f"{device}: shape and device have to agree"
            )
    if sample_ids.shape[0] != shape[0]:
        raise ValueError(f"{len(sample_ids)} sample_ids for {shape[0]} samples: one id per sample")
    if (given[4] is None) != (given[5] is None):
        raise ValueError("mask and known belong together: give both or none")


def _outputs(
    x: Tensor,
    keeps_history: bool,
    scale_input: bool,
    input_dtype: torch.dtype | None,
    input_format: torch.memory_format,
) -> StepResult:
    """New tensors for the kernel to write."""
    new = torch.empty_like(x, memory_format=torch.contiguous_format)
    history = torch.empty_like(new) if keeps_history else None
    dtype = input_dtype or x.dtype
    if not scale_input and dtype == x.dtype and input_format == torch.contiguous_format:
        return StepResult(new, history, new)
    return StepResult(new, history, torch.empty_like(new, dtype=dtype, memory_format=input_format))


def _into(out: StepResult | None, result: StepResult) -> StepResult:
    """The result, in the caller's tensors where there are any."""
    if out is None:
        return result
    for target, value in zip(out, result, strict=True):
        if target is not None and value is not None:
            target.copy_(value)
    return out


__all__ = ["sampler_update"]
