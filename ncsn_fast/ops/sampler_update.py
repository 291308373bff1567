"""The sampler update: x ← a·x + b·n + c·h + d·z + w·g, h ← e·x_old + f·n, next network input.

Formula and tensors: :func:`ncsn_fast.reference.sampler_update`. Here the noise is named by
(seed, step, sample_ids), not passed, so that a kernel can make it in registers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncsn_fast import noise, reference
from ncsn_fast.device import backends
from ncsn_fast.device.backends import NATIVE_TYPES, NETWORK_TYPES
from ncsn_fast.device.memory_format import overlap
from ncsn_fast.noise import Word
from ncsn_fast.ops.library import declare, native_kernel, triton_kernel
from ncsn_fast.reference import ROW, StepResult

_SCHEMA = (
    "sampler_update(Tensor x, Tensor n, Tensor row, Tensor seed, Tensor step, Tensor sample_ids, "
    "Tensor? z, Tensor? history, Tensor? guidance, Tensor? mask, Tensor? known, bool add_noise, "
    "Tensor(a!) x_out, Tensor(b!)? history_out, Tensor(c!)? input_out, str backend) -> ()"
)


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
    x_out: Tensor,
    history_out: Tensor | None,
    input_out: Tensor | None,
    backend: str,
) -> None:
    if x.numel() == 0:
        return
    if n.dtype not in (NATIVE_TYPES if backend == "cpp" else NETWORK_TYPES):
        n = n.float()
    extra = [one if one is None else _plain(one) for one in (z, history, guidance, mask, known)]
    given = x.contiguous(), n, _plain(row), seed, step, sample_ids.contiguous(), *extra
    out = x_out, history_out, input_out
    if backend == "cpp":
        native_kernel("sampler_update")(*given, add_noise, *out)
    else:
        triton_kernel("sampler_update")(*given, *out, add_noise=add_noise)


def _plain(tensor: Tensor) -> Tensor:
    """As the kernel takes what belongs to the state: contiguous, and float32 unless a mask."""
    if tensor.dtype not in (torch.float32, torch.bool):
        tensor = tensor.float()
    return tensor.contiguous()


_pick = declare(_SCHEMA, _launch, lambda *_: None)


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
        scale_input: whether the network's next input is c_in·x rather than the state itself.
        out: the contiguous tensors to write, of x's dtype; they may be x and history themselves.
            The network's input is out.x unless it is scaled. Default: new ones.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        As of :func:`ncsn_fast.reference.sampler_update`.

    Raises:
        ValueError: where shapes or devices differ, or the backend cannot run.
    """
    given = (n, z, history, guidance, mask, known)
    _check(x, given, row, sample_ids)
    if out is not None:
        _check_out(out, x, given, scale_input)
    chosen = backends.choose(backend, x.device, backends.obstacle(x, row, *given))
    if chosen != "torch":
        result = out or _outputs(x, history is not None, scale_input)
        seed, step = noise.seed_tensor(seed, x.device), noise.step_tensor(step, x.device)
        run = _pick(x)
        run(
            x, n, row, seed, step, sample_ids, z, history, guidance, mask, known,
            add_noise, result.x, result.history, result.network_input if scale_input else None,
            chosen,
        )  # fmt: skip
        if out is not None and run is _launch:
            written = [tensor for tensor in out if tensor is not None]
            torch.autograd.graph.increment_version(written)
        return result
    key: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "dtype": x.dtype}
    shape = x.shape[1:]
    if z is None and add_noise:
        z = noise.normal(shape, stream=noise.SAMPLER, step=step, backend="torch", **key)
    known_z = None
    if mask is not None:
        known_z = noise.normal(shape, stream=noise.KNOWN, step=step + 1, backend="torch", **key)
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
    )
    return _into(out, result._replace(network_input=result.network_input.contiguous()))


def _check(x: Tensor, given: tuple[Tensor | None, ...], row: Tensor, sample_ids: Tensor) -> None:
    shape, device = x.shape, x.device
    for tensor in given:
        if tensor is not None and (tensor.shape != shape or tensor.device != device):
            names = ("n", "z", "history", "guidance", "mask", "known")
            name = names[next(i for i, one in enumerate(given) if one is tensor)]
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} on {tensor.device}, x {tuple(shape)} on "
                f"{device}: shape and device have to agree"
            )
    if sample_ids.shape != shape[:1] or sample_ids.device != device:
        raise ValueError(
            f"sample_ids are {tuple(sample_ids.shape)} on {sample_ids.device} for {shape[0]} "
            f"samples on {device}: one id per sample, beside them"
        )
    if row.shape != (len(ROW),) or row.device != device:
        raise ValueError(
            f"row is {tuple(row.shape)} on {row.device}: needed are {len(ROW)} coefficients on "
            f"{device}"
        )
    if (given[4] is None) != (given[5] is None):
        raise ValueError("mask and known belong together: give both or none")
    if given[4] is not None and given[4].dtype != torch.bool:
        raise ValueError(f"mask is {given[4].dtype}: it has to be bool")


def _check_out(
    out: StepResult, x: Tensor, given: tuple[Tensor | None, ...], scale_input: bool
) -> None:
    """Refuse outputs that a kernel would write beside, or over what it still reads."""
    if (out.history is None) != (given[2] is None):
        raise ValueError("out.history belongs to history: give both or none")
    for name, tensor in zip(StepResult._fields, out, strict=True):
        if tensor is None:
            continue
        if tensor.shape != x.shape or tensor.device != x.device:
            raise ValueError(
                f"out.{name} is {tuple(tensor.shape)} on {tensor.device}: it has to be "
                f"{tuple(x.shape)} on {x.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"out.{name} has strides {tensor.stride()}: it has to be contiguous")
        if tensor.dtype != x.dtype:
            raise ValueError(f"out.{name} is {tensor.dtype}, x is {x.dtype}")
        if any(other is not None and overlap(tensor, other) for other in (x, *given)):
            raise ValueError(
                f"out.{name} shares memory with an input that is laid out otherwise: give another"
            )
    if scale_input and out.network_input is out.x:
        raise ValueError("out.network_input is out.x, but the input is to be scaled: give another")
    if not scale_input and out.network_input is not out.x:
        raise ValueError(
            "out.network_input is not out.x, though the input is not scaled: give out.x"
        )


def _outputs(x: Tensor, keeps_history: bool, scale_input: bool) -> StepResult:
    """New tensors for the kernel to write."""
    new = torch.empty_like(x, memory_format=torch.contiguous_format)
    history = torch.empty_like(new) if keeps_history else None
    return StepResult(new, history, torch.empty_like(new) if scale_input else new)


def _into(out: StepResult | None, result: StepResult) -> StepResult:
    """The result, in the caller's tensors where there are any."""
    if out is None:
        return result
    for target, value in zip(out, result, strict=True):
        if target is not None and value is not None:
            target.copy_(value)
    return out


__all__ = ["sampler_update"]
