"""deepinv's denoisers and its linear physics (deepinv.github.io)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast.guidance.operators.base import Array, Operator, as_given
from ncsn_fast.models.score import Score
from ncsn_fast.support import checks
from ncsn_fast.support.per_sample import cut


def score(denoiser: Any) -> Score:
    """A denoiser D(x, σ) of deepinv as a Score.

        sampler = nf.Sampler(score(DRUNet()), (3, 64, 64), sigmas, "dpmpp_2m", steps=20)

    Args:
        denoiser: a module called as denoiser(x, sigma) for sigma (B,), images in [0, 1].

    Returns:
        What a Sampler takes.

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

    It computes in float32, where the physics is, also under autocast. The noise model stays
    outside.

        scan = Physics(dinv.physics.MRI(mask=mask, img_size=(2, 64, 64)), (2, 64, 64))
        guidance = nf.posterior.gaussian_likelihood(scan, physics(image), 0.05)

    Physics that is not linear is ``nf.guidance.Nonlinear(physics.A, shape, measured)``.

    Args:
        physics: with ``A(x)`` and ``A_adjoint(y)``, real tensors; it is copied.
        shape: of one sample x.
        parameters: its parameters that differ from sample to sample, by name, (n, …), as they are
            given to ``A(x, mask=masks)``. With some it belongs to one thread.

    Raises:
        ValueError: for other physics, where it measures something else than a real tensor, for a
            parameter that makes no difference to what it measures, and what
            :meth:`nf.operators.Operator.verify` refuses.
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
        super().__init__(sizes, sizes, per_sample=list(parameters), **parameters)
        tensors = [one for one in vars(physics).get("_buffers", {}).values() if one is not None]
        device = tensors[0].device if tensors else torch.device("cpu")
        few = self.of(cut(self.inputs, slice(0, 2), self.samples))
        generator = torch.Generator("cpu").manual_seed(0)
        x = torch.randn((few.samples, *sizes), generator=generator, device="cpu").to(device)
        kind = type(physics).__name__
        try:
            measured = few._measure(x)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{kind}.A of real numbers {tuple(x.shape)}"
                f"{''.join(f', {name}=' for name in parameters)} fails: {error}. What is not linear"
                ", or of complex images, is nf.guidance.Nonlinear(function, shape, measured)"
            ) from error
        if not isinstance(measured, Tensor) or not measured.is_floating_point():
            raise ValueError(
                f"{kind} measures {getattr(measured, 'dtype', type(measured))}: "
                "needed are real tensors; complex numbers are two channels"
            )
        self.measured = tuple(measured.shape[1:])
        for name in parameters:
            if not few._heeds(name, x, measured):
                raise ValueError(
                    f"{kind}.A measures the same whatever {name} is: its parameters are "
                    f"{_parameters(physics)}"
                )
        try:
            self.verify(device)
        except ValueError as error:
            raise ValueError(f"{kind} is no linear physics with its adjoint: {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        return self._call("A", self.check("forward", x, self.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._call("A_adjoint", self.check("adjoint", y, self.measured))

    def _call(self, name: str, x: Tensor) -> Any:
        single = x.float()
        parameters = {one: self.constant(one, single) for one in self.inputs}
        with as_given(single):
            result = getattr(self._physics, name)(single, **parameters)
        whole = isinstance(result, Tensor) and result.is_floating_point()
        return result.to(x.dtype) if whole else result

    def _measure(self, x: Tensor) -> Any:
        with torch.no_grad():
            return self._call("A", x)

    def _heeds(self, name: str, x: Tensor, measured: Tensor) -> bool:
        """Whether another value of a parameter is measured otherwise, or refused."""
        given = self.constant(name, x)
        for other in (torch.zeros_like(given), 1 - given):
            try:
                found = self.of({**self.inputs, name: other})._measure(x)
            except (RuntimeError, ValueError):
                return True
            if not torch.equal(found, measured):
                return True
        return False


def _parameters(physics: Any) -> list[str]:
    """The names that A has for what it takes beside x, and those of the physics' own tensors."""
    _, *arguments = inspect.signature(physics.A).parameters.values()
    named = {one.name for one in arguments if one.kind is not one.VAR_KEYWORD}
    own = vars(physics).get("_buffers", {})
    return sorted(named | {name for name in own if not name.startswith("_")})


__all__ = ["Physics", "score"]
