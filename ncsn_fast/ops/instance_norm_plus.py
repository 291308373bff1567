"""InstanceNorm++ and an activation: y = act(γ·(h + α·t) + β) per sample and channel.

Formula and tensors: :func:`ncsn_fast.reference.instance_norm_plus`. γ, α, β are (C,) in NCSNv2 and
a row per sample in NCSN v1.

To PyTorch this is one operation that returns the statistics of x as well, for its gradient. What
they are is the business of each backend's kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device import backends
from ncsn_fast.device.backends import NETWORK_TYPES
from ncsn_fast.device.memory_format import dense
from ncsn_fast.ops import common
from ncsn_fast.ops.library import declare, native_kernel, no_second_derivative, triton_kernel

_FILE = "instance_norm"  # of Triton's kernels


def empty_statistics(x: Tensor) -> Tensor:
    """For Triton's statistics of x; ``kernels/triton/instance_norm_statistics.py`` says what they
    are."""
    return x.new_empty(x.shape[0] * (2 * x.shape[1] + 2), dtype=torch.float32)


def _empty(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, statistics, _bias, _eps, _activation, backend = rest
    if backend == "cpp":
        found = x.new_empty((4, *x.shape[:2]), dtype=torch.float32)
    else:
        found = empty_statistics(x[:0] if statistics is not None else x)
    return torch.empty_like(dense(x)), found


def _launch(
    x: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    statistics: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y, and the statistics where they are not given."""
    if backend == "cpp":
        x = common.biased(x, bias)
        three = _native_rows(x, gamma, alpha, beta)
        return native_kernel("instance_norm_plus")(x, *three, eps, activation or "")
    x = dense(x)
    y, found = _empty(x, gamma, alpha, beta, statistics, bias, eps, activation, backend)
    if x.numel():
        if statistics is None:
            triton_kernel("statistics", f"{_FILE}_statistics")(x, found, bias=bias)
            statistics = found
        apply = triton_kernel("apply", _FILE)
        how: dict[str, Any] = {"eps": eps, "activation": activation}
        apply(x, *_rows(gamma, alpha, beta), statistics, y, bias, **how)
    return y, found


def _rows(*parameters: Tensor) -> tuple[Tensor, ...]:
    """The parameters as Triton's kernels take them: no gaps within a row."""
    return tuple(one if one.stride(-1) == 1 else one.contiguous() for one in parameters)


def _native_rows(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """The parameters as the CPU's kernels take them: all of one shape, contiguous, float32."""
    if any(one.ndim == 2 for one in parameters):
        return [one.expand(x.shape[:2]).float().contiguous() for one in parameters]
    return [one.float().contiguous() for one in parameters]


def _empty_gradient(upstream: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = x.new_empty((x.shape[0], 3, x.shape[1]), dtype=torch.float32)
    return torch.empty_like(dense(x)), rows


def _launch_gradient(
    upstream: Tensor,
    x: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    statistics: Tensor,
    eps: float,
    activation: str | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and of each sample's γ, α and β, (N, 3, C)."""
    if backend == "cpp":
        three = _native_rows(x, gamma, alpha, beta)
        given = upstream, x, *three, statistics, eps, activation or ""
        gradient, rows = native_kernel("instance_norm_plus_backward")(*given)
        return gradient, rows.transpose(0, 1).contiguous()
    x = dense(x)
    gradient, rows = _empty_gradient(upstream, x)
    if not x.numel():
        return gradient, rows.zero_()
    triton_kernel("gradient", f"{_FILE}_gradient")(
        x, common.laid_out_like(x, upstream), *_rows(gamma, alpha, beta), statistics,
        gradient, rows, eps=eps, activation=activation,
    )  # fmt: skip
    return gradient, rows


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, given = inputs[:5]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1] if given is None else given)
    ctx.how = inputs[6:]


def _backward(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradient, rows = _pick_gradient(upstream, *saved)(upstream, *saved, *ctx.how)
    of_parameters = (
        (row if parameter.ndim == 2 else row.sum(0)).to(parameter.dtype)
        for row, parameter in zip(rows.unbind(1), saved[1:4], strict=True)
    )
    return gradient, *of_parameters, None, None, None, None, None


_pick = declare(
    "instance_norm_plus(Tensor x, Tensor gamma, Tensor alpha, Tensor beta, Tensor? statistics, "
    "Tensor? bias, float eps, str? activation, str backend) -> (Tensor, Tensor)",
    _launch,
    _empty,
    backward=_backward,
    save=_save,
)
_pick_gradient = declare(
    "instance_norm_plus_gradient(Tensor upstream, Tensor x, Tensor gamma, Tensor alpha, "
    "Tensor beta, Tensor statistics, float eps, str? activation, str backend) -> (Tensor, Tensor)",
    _launch_gradient,
    _empty_gradient,
    backward=no_second_derivative("instance_norm_plus"),
)


def instance_norm_plus(
    x: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    eps: float = 1e-5,
    activation: str | None = None,
    statistics: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """InstanceNorm++ followed by an activation; differentiable.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16, C ≥ 2, in any memory format.
        gamma, alpha, beta: (C,) or (N, C) float32.
        eps: added to both variances.
        activation: a name of ``reference.ACTIVATIONS``, or None for none.
        statistics: of x, (N·(2C + 2),) float32, as :func:`ncsn_fast.ops.residual_add` returns them;
            saves reading x once.
        bias: (C,), the norm is that of x + bias; on a GPU no pass adds it. Not with statistics.
        backend: see :func:`ncsn_fast.use_backend`.

    Returns:
        (N, C, H, W) of x's dtype and memory format.

    Raises:
        ValueError: for one channel, parameters of other shapes or devices, an unknown activation,
            or where the backend cannot run.
    """
    parameters = (gamma, alpha, beta)
    _check(x, parameters, activation, statistics)
    common.check_bias(bias, x)
    if bias is not None and statistics is not None:
        raise ValueError("bias and statistics are given: residual_add has to be given the bias")
    half = x.dtype == torch.float16
    chosen = backends.choose(backend, x.device, _obstacle(x, parameters), half=half)
    if chosen != "triton" or common.wants_gradient(x, *parameters, bias):
        x, bias = common.biased(x, bias), None
    if chosen == "torch":
        return reference.instance_norm_plus(x, *parameters, eps, activation)
    if chosen == "cpp":
        statistics = None  # it has its own
    run = _pick(x, *parameters)
    return run(x, *parameters, statistics, bias, eps, activation, chosen)[0]


def _check(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    activation: str | None,
    statistics: Tensor | None,
) -> None:
    common.check_images("x", x)
    common.check_activation(activation)
    samples, channels = x.shape[:2]
    for name, tensor in zip(("gamma", "alpha", "beta"), parameters, strict=True):
        if tensor.shape not in ((channels,), (samples, channels)) or tensor.device != x.device:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} on {tensor.device}: needed is ({channels},), or "
                f"({samples}, {channels}) with a row per sample, on {x.device}"
            )
    if statistics is None:
        return
    wanted = statistics.shape == (samples * (2 * channels + 2),)
    wanted = wanted and statistics.dtype == torch.float32 and statistics.device == x.device
    if not wanted or not statistics.is_contiguous():
        raise ValueError(
            f"statistics are {statistics.dtype} {tuple(statistics.shape)} on {statistics.device}, "
            f"which is not what residual_add returns for a sum {tuple(x.shape)} on {x.device}: "
            "give those of x, or none"
        )


def _obstacle(x: Tensor, parameters: tuple[Tensor, ...]) -> str | None:
    """Why the kernels cannot take this.

    A shape at which they are measured to be slower than PyTorch would belong here; none is known.
    """
    if x.shape[1] < 2:
        return "the variance over channels is undefined for one channel"
    for parameter in parameters:
        if parameter.dtype not in NETWORK_TYPES:
            return f"kernels take parameters of 16 or 32 bits, this is {parameter.dtype}"
    return common.obstacle(x)


__all__ = ["empty_statistics", "instance_norm_plus"]
