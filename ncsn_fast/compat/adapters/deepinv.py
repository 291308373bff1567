"""deepinv's denoisers and its linear physics (deepinv.github.io)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast.guidance.operators.base import Array, Operator
from ncsn_fast.models.score import Score
from ncsn_fast.support import checks


def score(denoiser: Any) -> Score:
    """A denoiser D(x, σ) of deepinv as a Score.

        sampler = nf.Sampler(score(DRUNet()), (3, 64, 64), sigmas, "dpmpp_2m", steps=20)

    Args:
        denoiser: a module called as denoiser(x, sigma) for sigma (B,), images in [0, 1].

    Raises:
        ValueError: for what is no module.
    """
    if not isinstance(denoiser, nn.Module):
        raise ValueError(
            f"denoiser is a {type(denoiser).__name__}: give a denoiser of deepinv, a module called "
            "as denoiser(x, sigma)"
        )
    return Score(denoiser, "denoiser", "sigma")


class Physics(Operator):
    """Linear physics of deepinv as an operator: ``A`` is its forward, ``A_adjoint`` its adjoint.

    It computes in float32, where the physics is. The noise model stays outside.

        scan = Physics(dinv.physics.MRI(mask=mask, img_size=(2, 64, 64)), (2, 64, 64))
        guidance = nf.posterior.gaussian_likelihood(scan, physics(image), 0.05)

    Args:
        physics: with ``A(x)`` and ``A_adjoint(y)``, real tensors; it is copied.
        shape: of one sample x.
        parameters: its parameters that differ from sample to sample, by name, (n, …), as they are
            given to ``A(x, mask=masks)``. With some it belongs to one thread.

    Raises:
        ValueError: for other physics, and where it measures something else than a real tensor.
    """

    def __init__(self, physics: Any, shape: Iterable[int], **parameters: Array) -> None:
        if not all(callable(getattr(physics, name, None)) for name in ("A", "A_adjoint")):
            raise ValueError(
                f"physics is a {type(physics).__name__}: give linear physics of deepinv, with A "
                "and A_adjoint"
            )
        # Its parameters are set by every call that is given some.
        self._physics = getattr(physics, "clone", lambda: copy.deepcopy(physics))()
        sizes = checks.sample_shape(shape)
        names = list(parameters)
        super().__init__(sizes, sizes, per_sample=names, **parameters)
        tensors = [one for one in vars(physics).get("_buffers", {}).values() if one is not None]
        device = tensors[0].device if tensors else torch.device("cpu")
        with torch.no_grad():
            measured = self._call("A", torch.zeros(self.samples, *sizes, device=device))
        if not isinstance(measured, Tensor) or not measured.is_floating_point():
            raise ValueError(
                f"{type(physics).__name__} measures {getattr(measured, 'dtype', type(measured))}: "
                "needed are real tensors; complex numbers are two channels"
            )
        self.measured = tuple(measured.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self._call("A", self.check("forward", x, self.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._call("A_adjoint", self.check("adjoint", y, self.measured))

    def _call(self, name: str, x: Tensor) -> Any:
        single = x.float()
        parameters = {one: self.constant(one, single) for one in self.inputs}
        result = getattr(self._physics, name)(single, **parameters)
        whole = isinstance(result, Tensor) and result.is_floating_point()
        return result.to(x.dtype) if whole else result


__all__ = ["Physics", "score"]
