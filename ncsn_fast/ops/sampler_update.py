"""The sampler update: x ← a·x + b·n + c·h + d·z + w·g, h ← e·x_old + f·n, next network input.

Formula and tensors: :func:`ncsn_fast.reference.sampler_update`. Here the noise is named by
(seed, step, sample_ids), not passed, so that a kernel can make it in registers.
"""

from __future__ import annotations

from torch import Tensor

from ncsn_fast import noise, reference
from ncsn_fast.noise import Word
from ncsn_fast.ops import backends
from ncsn_fast.reference import StepResult


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
    backend: str = "auto",
) -> StepResult:
    """One step of any sampler on x (N, *shape) with the network's output n at x.

    Args:
        x: (N, *shape) float32 state.
        n: (N, *shape) network output in float32, float16 or bfloat16.
        row: (9,) float32 on x's device, the coefficients ``reference.ROW``.
        seed, step, sample_ids: which noise; see :func:`ncsn_fast.noise.normal`. The known region
            of the state after this step is noised with ``step + 1``.
        add_noise: False where d = 0, to save the work.
        z: (N, *shape), noise to use instead.
        history: (N, *shape), for methods with memory.
        guidance: (N, *shape), an extra drift.
        mask, known: (N, *shape) bool and float32, the region imposed after the step.
        scale_input: whether the network's next input is c_in·x rather than x.
        backend: see :func:`ncsn_fast.use_backend`.

    Raises:
        ValueError: where shapes or devices differ, or the backend cannot run.
    """
    others = {"n": n, "z": z, "history": history, "guidance": guidance, "mask": mask}
    for name, tensor in {**others, "known": known}.items():
        if tensor is not None and (tensor.shape != x.shape or tensor.device != x.device):
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} on {tensor.device}, x {tuple(x.shape)} on "
                f"{x.device}: shape and device have to agree"
            )
    if len(sample_ids) != len(x):
        raise ValueError(f"{len(sample_ids)} sample_ids for {len(x)} samples: one id per sample")
    if (mask is None) != (known is None):
        raise ValueError("mask and known belong together: give both or none")
    backends.resolve(backend, x.device)
    shape = x.shape[1:]
    if z is None and add_noise:
        z = noise.normal(
            shape, seed=seed, stream=noise.SAMPLER, sample_ids=sample_ids, step=step, dtype=x.dtype
        )
    known_z = None
    if mask is not None:
        known_z = noise.normal(
            shape,
            seed=seed,
            stream=noise.KNOWN,
            sample_ids=sample_ids,
            step=step + 1,
            dtype=x.dtype,
        )
    return reference.sampler_update(
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


__all__ = ["sampler_update"]
