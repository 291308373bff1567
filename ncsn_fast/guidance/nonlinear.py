"""Measurements that are no linear function of the image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ncsn_fast.guidance.operators.base import Array, kept
from ncsn_fast.support import checks

Linear = Callable[[Tensor], Tensor]


class Nonlinear:
    """A differentiable measurement A(x), for guidance through the network.

        phase = nf.guidance.Nonlinear(lambda x: x.square().sum(1), (2, 16, 16), (16, 16))
        guidance = nf.guidance.dps(phase, y)

    Args:
        function: (N, *shape) → (N, *measured), of torch's operations, each sample by itself.
        shape: of one sample x.
        measured: of one measurement.
        inputs: further arguments of the function, tensors or arrays (n, …) with one entry for each
            sample, or (1, …): copied, and cut with the samples.

    Attributes:
        shape, measured, inputs: as given, the inputs as tensors.

    Raises:
        ValueError: for what is no function, no shape, or inputs of different numbers of samples.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        shape: Iterable[int],
        measured: Iterable[int],
        **inputs: Array,
    ) -> None:
        if not callable(function):
            raise ValueError(
                f"the measurement is a {type(function).__name__}: give a function of x (N, *shape)"
            )
        self._function = function
        self.shape = checks.sample_shape(shape)
        self.measured = checks.sample_shape(measured)
        self.inputs = {name: kept(name, value) for name, value in inputs.items()}
        if single := [name for name, value in self.inputs.items() if value.ndim == 0]:
            raise ValueError(
                f"{single[0]} is one number: give (1, …) for all samples, (n, …) for one each, or "
                "put it into the function"
            )
        lengths = {name: len(value) for name, value in self.inputs.items()}
        if len(set(lengths.values()) - {1}) > 1:
            raise ValueError(
                f"the inputs of the measurement are for different numbers of samples, {lengths}: "
                "give n entries each, or one for all"
            )

    @property
    def samples(self) -> int:
        """How many samples it is for; 1: any number."""
        return max((len(value) for value in self.inputs.values()), default=1)

    def of(self, inputs: Mapping[str, Tensor]) -> Nonlinear:
        """The measurement of some of the samples, whose part of the inputs is given."""
        part = copy.copy(self)
        part.inputs = {**self.inputs, **inputs}
        return part

    def forward(self, x: Tensor) -> Tensor:
        """A(x): (N, *shape) → (N, *measured)."""
        given = {
            name: value.to(x.dtype if value.is_floating_point() else value.dtype)
            for name, value in self.inputs.items()
        }
        # Tensors of inference mode cannot be saved for a derivative.
        return self._function(
            x, **{name: v.clone() if v.is_inference() else v for name, v in given.items()}
        )

    def linearized(self, x: Tensor) -> tuple[Tensor, Linear, Linear]:
        """A(x) (N, *measured), and its derivative there: u ↦ A'u and v ↦ A'ᵀv.

        Nothing is kept for another backward pass than that of A itself.

        Raises:
            ValueError: where the measurement has no derivative.
        """
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            measured = self.forward(at)
        if not (isinstance(measured, Tensor) and measured.requires_grad):
            raise ValueError(
                "the measurement has no derivative: it detaches, rounds, or leaves torch; give one "
                "made of torch's differentiable operations"
            )

        def adjoint(v: Tensor) -> Tensor:
            (back,) = torch.autograd.grad(measured, at, v, retain_graph=True)
            return back

        def forward(u: Tensor) -> Tensor:
            return torch.func.jvp(self.forward, (x.detach(),), (u,))[1]

        return measured.detach(), forward, adjoint


__all__ = ["Nonlinear"]
