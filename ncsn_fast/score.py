"""Parametrisations and conditions: any score network as a linear map to the normalised score.

Whatever a network predicts, the normalised score n = σ·s(x, σ) is n = p·x + q·output with two
numbers p, q per noise level. They are folded into the sampler's table (a, b, e, f), so that the
loop runs the network and the update and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast import checks
from ncsn_fast.levels import trusted_sigmas
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.table import Table

# What a network returns -> (p, q) for noise levels σ.
KINDS: dict[str, Callable[[Tensor], tuple[Tensor | float, Tensor | float]]] = {
    "normalized": lambda sigma: (0.0, 1.0),  # n = σ·s
    "score": lambda sigma: (0.0, sigma),  # s = ∇ log p_σ(x)
    "epsilon": lambda sigma: (0.0, -1.0),  # ε = -n, the noise in x
    "denoiser": lambda sigma: (-1 / sigma, 1 / sigma),  # D = x + σ·n, the clean image
}
# How a network is told the noise level -> its second argument.
CONDITIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "label": None,  # the index in the ladder of noise levels, int64
    "sigma": lambda sigma: sigma,
    "log_sigma": torch.log,
    "c_noise": lambda sigma: torch.log(sigma) / 4,  # EDM (Karras et al. 2022)
    "none": None,  # no second argument
}


@dataclass(frozen=True, eq=False)
class Score:
    """A score network and what it means.

    Attributes:
        fn: called as fn(x, condition, **extra) with x (B, *shape) and the condition (B,); without
            the condition where that is "none". Returns (B, *shape).
        kind: what it returns: "score", "normalized", "epsilon" or "denoiser".
        condition: how it is told the noise level: "label" (int64 index in ``sigmas``), "sigma",
            "log_sigma", "c_noise" (ln σ / 4) or "none".
        sigmas: (L,) the noise levels it was trained on; needed for "label".

    Raises:
        ValueError: for an unknown kind or condition, or levels that do not descend.
    """

    fn: Callable[..., Tensor]
    kind: str = "score"
    condition: str = "label"
    sigmas: Tensor | None = None

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise ValueError(f"a score is a function or a module, got {type(self.fn).__name__}")
        for name, value, allowed in (
            ("kind", self.kind, KINDS),
            ("condition", self.condition, CONDITIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} = {value!r} is unknown; choose one of {list(allowed)}")
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", trusted_sigmas(self.sigmas))

    @property
    def module(self) -> nn.Module | None:
        """The network behind fn, if it is a module or a method of one."""
        owner = getattr(self.fn, "__self__", self.fn)
        return owner if isinstance(owner, nn.Module) else None

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q), each of the shape of sigma, with n = p·x + q·output."""
        p, q = (torch.as_tensor(value).to(sigma) for value in KINDS[self.kind](sigma))
        return p.expand_as(sigma), q.expand_as(sigma)

    def fold(self, table: Table) -> Table:
        """The table that takes this network's output in place of the normalised score."""
        p, q = self.coefficients(torch.tensor(table.sigma, dtype=torch.float64, device="cpu"))
        a, b, e, f = torch.tensor(
            (table.a, table.b, table.e, table.f), dtype=torch.float64, device="cpu"
        )
        folded = {"a": a + b * p, "b": b * q, "e": e + f * p, "f": f * q}
        return replace(table, **{name: tuple(column.tolist()) for name, column in folded.items()})

    def normalized(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """n(x, σ) for a batch with a level per sample, as training needs it.

        Args:
            x: (B, *shape).
            sigma: (B,) noise levels.
            labels: (B,) their indices in the ladder.
        """
        transform = CONDITIONS[self.condition]
        output = self(x, transform(sigma) if transform else labels)
        if self.kind == "normalized":
            return output
        p, q = (value.view(-1, *(1,) * (x.ndim - 1)) for value in self.coefficients(sigma))
        # Where x has no part in n (p = 0) it is left out: 0·∞ would be NaN.
        return p * x + q * output if self.kind == "denoiser" else q * output

    def conditions(self, table: Table, device: torch.device | str) -> Tensor | None:
        """(rows,) what the network is told at every row; None for condition "none".

        Raises:
            ValueError: where a network that knows only labels is asked for another noise level.
        """
        if self.condition == "none":
            return None
        if self.condition == "label":
            return self._labels(table).to(device)
        transform = CONDITIONS[self.condition]
        assert transform is not None
        sigma = torch.tensor(table.sigma, dtype=torch.float64, device="cpu")
        return transform(sigma).to(device, torch.float32)

    def _labels(self, table: Table) -> Tensor:
        if self.sigmas is None:
            raise ValueError(
                'condition "label" needs the ladder that the labels count: '
                'nf.Score(fn, kind, "label", sigmas=...)'
            )
        ladder = self.sigmas.cpu().double().log()
        wanted = torch.tensor(table.sigma, dtype=torch.float64, device="cpu").log()
        # The ladder descends; searchsorted wants it ascending.
        right = torch.searchsorted(-ladder, -wanted).clamp(0, len(ladder) - 1)
        left = (right - 1).clamp(min=0)
        nearer_left = (wanted - ladder[left]).abs() < (wanted - ladder[right]).abs()
        labels = torch.where(nearer_left, left, right)
        off = ((wanted - ladder[labels]).abs() > 1e-5).nonzero()
        if len(off):
            row = int(off[0])
            raise ValueError(
                f"row {row} of the table asks for σ = {table.sigma[row]:g}, but this network knows "
                f"only its {len(ladder)} levels from {float(self.sigmas[0]):g} to "
                f"{float(self.sigmas[-1]):g} by label: use levels of its ladder, or a network that "
                "takes any σ"
            )
        return labels

    def __call__(self, x: Tensor, condition: Tensor | None, **extra: Any) -> Tensor:
        """The network's output for a batch; a single condition goes to every sample.

        Raises:
            ValueError: where the network answers in another shape, on another device, or not in
                floating-point numbers.
        """
        if self.condition == "none" or condition is None:
            output = self.fn(x, **extra)
        else:
            output = self.fn(x, condition.expand(len(x)), **extra)
        return checks.same_shape("the network", output, x.shape, x)


def as_score(
    score: Score | Callable[..., Tensor], sigmas: Sequence[float] | Tensor | None = None
) -> Score:
    """Whatever the engine is given as a :class:`Score`.

    One of our networks is taken by its normalised output (without a condition where the network
    does not see the noise level, so that any σ is legal): its ``normalized`` method is called, not
    the module, so hooks belong on ``net`` wrapped in a callable. A bare callable is
    score(x, labels).
    """
    if isinstance(score, Score):
        if score.sigmas is None and sigmas is not None:
            return replace(score, sigmas=trusted_sigmas(sigmas))
        return score
    if isinstance(score, ScoreNetwork):
        condition = "label" if score.sees_sigma else "none"
        return Score(score.normalized, "normalized", condition, score.sigmas)
    return Score(score, "score", "label", None if sigmas is None else trusted_sigmas(sigmas))


__all__ = ["CONDITIONS", "KINDS", "Score", "as_score"]
