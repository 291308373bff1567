"""Parametrisations and conditions: any score network as a linear map to the normalised score.

The state is x = x₀ + σz throughout. Whatever a network predicts, and however its input is scaled,
the normalised score n = σ·s(x, σ) is n = p·x + q·output(c_in·x) with three numbers p, q, c_in per
noise level. They are folded into the sampler's table (c_in, a, b, e, f), so that the loop runs the
network and the update and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncsn_fast.methods.levels import (
    SAME_LEVEL,
    check_sigmas,
    counted_by_labels,
    ddpm_sigmas,
    levels_each,
    nearest_level,
    place_between,
    trusted_sigmas,
    vp_sigmas,
    vp_time,
)
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.reference import per_sample
from ncsn_fast.support import checks
from ncsn_fast.support.callables import fits, layers
from ncsn_fast.table import Table

Coefficient = Tensor | float

# What a network returns -> (p, q), given σ, c_in and σ_data.
KINDS: dict[str, Callable[[Tensor, Coefficient, float], tuple[Coefficient, Coefficient]]] = {
    "normalized": lambda sigma, c, data: (0.0, 1.0),  # n = σ·s
    "score": lambda sigma, c, data: (0.0, sigma * c),  # ∇ log p of what it sees, c_in·x
    "epsilon": lambda sigma, c, data: (0.0, -1.0),  # ε = -n, the noise in x
    "denoiser": lambda sigma, c, data: (-1 / sigma, 1 / sigma),  # D = x + σ·n, the clean image
    # v of Salimans & Ho 2022, D = c_in²x - σ·c_in·v for σ_data = 1; and minus it, the raw network
    # of EDM (Karras et al. 2022), D = c_skip·x + c_out·F. n = (D - x)/σ without the difference.
    "v": lambda sigma, c, data: (-sigma * c * c, -data * c),
    "edm": lambda sigma, c, data: (-sigma * c * c, data * c),
}
# Where x itself has no part in n (p = 0) it is left out: 0·∞ would be NaN.
_WITH_STATE = ("denoiser", "v", "edm")
_SCALED = ("v", "edm")
# How a network is told the noise level -> its second argument.
CONDITIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "label": None,  # the index in the ladder of noise levels, int64
    "timestep": None,  # the same, counted from the smallest level
    "sigma": lambda sigma: sigma,
    "log_sigma": torch.log,
    "c_noise": lambda sigma: torch.log(sigma) / 4,  # EDM
    "none": None,  # no second argument
}
_COUNTED = ("label", "timestep")
# Attributes of networks that are no score(x, labels) -> what has them, and what to say of it.
_EDM = "EDM's preconditioned networks", 'nf.Score(net, "denoiser", "sigma")'
_WRAPPER = "k-diffusion's", _EDM[1]
_DDPM = "models of DDPM's kind", "nf.Score.ddpm(fn, alphas_cumprod), fn(x, t) returning ε"
_OTHERS = {"round_sigma": _EDM, "sigma_data": _EDM, "alphas_cumprod": _DDPM}
_OTHERS |= {"sigma_to_t": _WRAPPER, "t_to_sigma": _WRAPPER}
_DIFFUSERS = "nf.Score.ddpm(lambda x, t: net(x, t).sample, scheduler.alphas_cumprod)"


@dataclass(frozen=True, eq=False)
class Score:
    """A score network and what it means.

    Where ``sigma_data`` is given the network sees x/√(σ² + σ_data²) in place of x = x₀ + σz.
    With σ_data = 1 that is the state of a VP diffusion, √ᾱ·x₀ + √(1-ᾱ)·z with σ² = (1-ᾱ)/ᾱ.

    Attributes:
        fn: called as fn(input (B, *shape), condition (B,), **extra), without the condition where
            that is "none"; returns (B, *shape).
        kind: what it returns: "score" (of its input's law), "normalized" (the score of x times σ),
            "epsilon" (z), "denoiser" (x₀), "v" (√ᾱ·z - √(1-ᾱ)·x₀), or "edm" (EDM's network without
            its preconditioning; with it, it is a "denoiser" told "sigma").
        condition: how it is told the noise level: "label" (int64 index in ``sigmas``), "timestep"
            (index counted from the smallest of ``sigmas``), "sigma", "log_sigma", "c_noise"
            (ln σ / 4), "none", or a function of σ, (B,) → (B,).
        sigmas: (L,) the noise levels it was trained on, descending; needed for "label" and
            "timestep". For "label", where they are not given, they are the network's own
            ``sigmas``, if it has such an attribute, else the sampler's.
        sigma_data: σ_data > 0 of its input's scaling; None: it sees x itself.
        input_scale: σ ↦ α > 0, (B,) → (B,), in place of σ_data: it sees α·x = α·x₀ + ασ·z.
        quantize: whether σ between two levels is told as the nearer of them. Otherwise a "label"
            refuses it, and a "timestep" (then float32) is interpolated linearly in ln σ.

    Raises:
        ValueError: for an unknown kind or condition, levels that do not descend, kinds and
            conditions that lack what they need, and a network that is recognisably another kind.
    """

    fn: Callable[..., Tensor]
    kind: str = "score"
    condition: str | Callable[[Tensor], Tensor] = "label"
    sigmas: Tensor | None = None
    sigma_data: float | None = field(default=None, kw_only=True)
    input_scale: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)
    quantize: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.fn, type):
            raise ValueError(f"a score is an object, got the class {self.fn.__name__}: make one")
        if not callable(self.fn):
            raise ValueError(f"a score is a function or a module, got {type(self.fn).__name__}")
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ValueError(f"kind = {self.kind!r:.80} is unknown; choose one of {list(KINDS)}")
        named = isinstance(self.condition, str) and self.condition in CONDITIONS
        if not callable(self.condition) and not named:
            raise ValueError(
                f"condition = {self.condition!r:.80} is unknown; choose one of {list(CONDITIONS)}, "
                "or give a function of σ"
            )
        data = None if self.sigma_data is None else checks.positive("sigma_data", self.sigma_data)
        checks.choice("quantize", self.quantize, (True, False), "whether levels are rounded")
        if self.input_scale is not None and (data or not callable(self.input_scale)):
            other = "given beside sigma_data" if data else type(self.input_scale).__name__
            raise ValueError(f"input_scale is {other}: give the function σ ↦ α, or sigma_data")
        if data is None and self.kind in _SCALED:
            raise ValueError(
                f"kind {self.kind!r} belongs to a network that sees a scaled state: give "
                "sigma_data=1 for VP / DDPM (or use nf.Score.ddpm), that of the data for EDM "
                "(nf.Score.edm)"
            )
        if self.quantize and self.condition not in _COUNTED:
            raise ValueError(
                f"quantize=True is for the conditions {_COUNTED}, which count noise levels; this "
                f"network is told {self.condition!r}"
            )
        if (self.kind, self.condition) == ("score", "label"):
            _refuse_another_kind(self.fn)
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", trusted_sigmas(self.sigmas))
        if self.condition == "label":
            object.__setattr__(self, "sigmas", counted_by_labels(self.fn, self.sigmas))
        elif self.condition == "timestep" and self.sigmas is None:
            raise ValueError(
                'condition "timestep" needs the noise levels that the timesteps count: give '
                "sigmas=, or nf.Score.ddpm(fn, alphas_cumprod)"
            )

    @classmethod
    def ddpm(
        cls,
        fn: Callable[..., Tensor],
        alphas_cumprod: Sequence[float] | np.ndarray | Tensor,
        kind: str = "epsilon",
        *,
        quantize: bool = False,
    ) -> Score:
        """A DDPM network fn(√ᾱ·x₀ + √(1-ᾱ)·z, t) (Ho et al. 2020); its σ_t² = (1-ᾱ_t)/ᾱ_t.

        Args:
            fn: (B, *shape), timesteps (B,) → (B, *shape).
            alphas_cumprod: (T,) ᾱ_t for t = 0 … T-1, falling, in (0, 1).
            kind: "epsilon" as a rule, or "v", "denoiser", "score".
            quantize: whether fn takes whole timesteps only: it then gets int64, the nearest one.

        Raises:
            ValueError: for ᾱ that are no such numbers. (Where the last is 0, zero terminal
                signal-to-noise, σ is infinite: leave that timestep out.)
        """
        levels = "timestep", ddpm_sigmas(alphas_cumprod)
        return cls(fn, kind, *levels, sigma_data=1.0, quantize=quantize)

    @classmethod
    def vp(
        cls,
        fn: Callable[..., Tensor],
        kind: str = "epsilon",
        beta_min: float = 0.1,
        beta_max: float = 20.0,
    ) -> Score:
        """A continuous VP network of score_sde (Song et al. 2021), told 999·t with t in (0, 1].

        ln(1 + σ²) = ½(β_max - β_min)t² + β_min·t. Its ``sigmas`` are those of 1,000 times from 1
        to 1e-3. (A continuous VE network there is Score(fn, "score", "sigma").)

        Args:
            fn: (B, *shape), 999·t (B,) → (B, *shape).
            kind: "epsilon": divided by -√(1-ᾱ) it is the score of the VP state there.
            beta_min, beta_max: 0 < β_min ≤ β_max.

        Raises:
            ValueError: for betas that are none such.
        """
        told = functools.partial(vp_time, beta_min=beta_min, beta_max=beta_max)
        return cls(fn, kind, told, vp_sigmas(beta_min, beta_max), sigma_data=1.0)

    @classmethod
    def edm(cls, fn: Callable[..., Tensor], sigma_data: float = 0.5) -> Score:
        """EDM's raw network F(c_in·x, c_noise) (Karras et al. 2022, table 1).

        D = c_skip·x + c_out·F with c_in = 1/√(σ² + σ_data²), c_skip = σ_data²·c_in²,
        c_out = σ·σ_data·c_in and c_noise = ln σ / 4.
        """
        return cls(fn, "edm", "c_noise", sigma_data=sigma_data)

    @property
    def module(self) -> nn.Module | None:
        """The network behind fn, if it is a module or a method of one."""
        return next((one for one in layers(self.fn) if isinstance(one, nn.Module)), None)

    @property
    def reading(self) -> str:
        """How the network is called and understood, in words."""
        told = "x" if self.condition == "none" else "x, labels"
        if self.condition not in ("none", "label"):
            told = f"x, {self.condition if isinstance(self.condition, str) else 'condition(σ)'}"
        return f"it is called as fn({told}) and read as {self.kind!r} (nf.Score says it otherwise)"

    @property
    def only_levels(self) -> bool:
        """Whether it can be told its own noise levels only, or is told the nearest of them."""
        return self.condition == "label" or self.quantize

    def frozen(self) -> tuple[Any, ...]:
        """What a captured step freezes of it beside fn."""
        return (self.kind,)

    def sharing(self, names: Iterable[str]) -> Score:
        """The same score, told the ``names`` of the inputs that are never one per sample."""
        return self

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q), each of the shape of sigma, with n = p·x + q·output."""
        given = KINDS[self.kind](sigma, self.c_in(sigma), self.sigma_data or 0.0)
        p, q = (torch.as_tensor(value).to(sigma).expand_as(sigma) for value in given)
        return p, q

    def c_in(self, sigma: Tensor) -> Coefficient:
        """The factor on x on its way into the network, of the shape of sigma; 1.0 for none."""
        if self.input_scale is not None:
            return checks.factors("input_scale()", self.input_scale(sigma), sigma)
        if self.sigma_data is None:
            return 1.0
        return (sigma.square() + self.sigma_data**2).rsqrt()

    def to_state(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """A state x₀ + σz of a sampler in the network's units, c_in·x; √ᾱ·x₀ + √(1-ᾱ)·z of VP.

        Args:
            x: (B, *shape), floating point.
            sigma: σ ≥ 0, one for all or (B,); after a last step, which goes there, 0.

        Raises:
            ValueError: for levels of another kind or shape.
        """
        level = levels_each(sigma, x).to(torch.promote_types(x.dtype, torch.float32))
        return (per_sample(self.c_in(level) * torch.ones_like(level), x) * x).to(x.dtype)

    def from_state(self, state: Tensor, sigma: float | Tensor) -> Tensor:
        """:meth:`to_state` undone: x₀ + σz of the ``state`` c_in·(x₀ + σz), (B, *shape) both."""
        ones = torch.ones_like(state, dtype=torch.promote_types(state.dtype, torch.float32))
        return (state / self.to_state(ones, sigma)).to(state.dtype)

    def fold(self, table: Table) -> Table:
        """The table that takes this network's output in place of the normalised score."""
        sigma = _column(table.sigma)
        p, q = self.coefficients(sigma)
        a, b, e, f, c_in = (_column(c) for c in (table.a, table.b, table.e, table.f, table.c_in))
        folded = {"a": a + b * p, "b": b * q, "e": e + f * p, "f": f * q}
        folded["c_in"] = c_in * self.c_in(sigma)
        return replace(table, **{name: tuple(column.tolist()) for name, column in folded.items()})

    def normalized(self, x: Tensor, sigma: Tensor, labels: Tensor, /, **extra: Any) -> Tensor:
        """n(x, σ) for a batch with a level per sample, as training needs it.

        Args:
            x: (B, *shape).
            sigma: (B,) noise levels.
            labels: (B,) their indices in the ladder.
            extra: further inputs of the network.

        Raises:
            ValueError: where "timestep" is asked for σ outside of its levels, on a CPU.
        """
        told = labels if self.condition == "label" else self._told(sigma, "sample {} is noised by")
        c_in = self.c_in(sigma)
        seen = (per_sample(c_in, x) * x).to(x.dtype) if isinstance(c_in, Tensor) else x
        output = self(seen, told, **extra)
        if self.kind == "normalized":
            return output
        p, q = (per_sample(value, x) for value in self.coefficients(sigma))
        return p * x + q * output if self.kind in _WITH_STATE else q * output

    def conditions(self, table: Table, device: torch.device | str) -> Tensor | None:
        """(rows,) what the network is told at every row of ``table``, on ``device``; None: "none".

        Raises:
            ValueError: where a network that knows only labels is asked for another noise level, or
                one that counts timesteps for one beyond them.
        """
        told = self._told(_column(table.sigma), "row {} of the table asks for")
        if told is None:
            return None
        return told.to(device, torch.float32 if told.is_floating_point() else torch.int64)

    def _told(self, sigma: Tensor, who: str) -> Tensor | None:
        """The condition for each σ, of its shape; ``who`` begins an error, {} being an index."""
        if self.condition == "none":
            return None
        if self.condition in _COUNTED:
            return self._counted(sigma, who)
        transform = self.condition if callable(self.condition) else CONDITIONS[self.condition]
        assert transform is not None
        told = transform(sigma)
        if not isinstance(told, Tensor) or told.shape != sigma.shape:
            raise ValueError(
                f"condition returned {getattr(told, 'shape', type(told).__name__)} for noise "
                f"levels of shape {tuple(sigma.shape)}: give a function of σ, (B,) → (B,)"
            )
        return told

    def _counted(self, sigma: Tensor, who: str) -> Tensor:
        """The place of each σ in the ladder, counted as the network counts it."""
        if self.sigmas is None:
            raise ValueError(
                'condition "label" needs the ladder that the labels count: '
                'nf.Score(fn, kind, "label", sigmas=...)'
            )
        unseen = self.sigmas.device.type != "cpu" and sigma.device.type == "cpu"
        levels = (check_sigmas(self.sigmas) if unseen else self.sigmas).to(sigma)
        nearest, gap = nearest_level(sigma, levels)
        only = self.condition == "label" and not self.quantize
        # A device would have to be waited for.
        if sigma.device.type == "cpu" and not torch.compiler.is_compiling():
            beyond = (sigma.log() - sigma.clamp(levels[-1], levels[0]).log()).abs()
            self._refuse_others((gap if only else beyond) > SAME_LEVEL, sigma, who)
        if only:
            return nearest
        place = place_between(sigma.log(), levels.log())
        if self.quantize:  # halfway between two levels the even place, whatever rounding does
            place = place.round(decimals=4).round().long()
        else:  # at a level it is whole: some networks round what they are told down
            place = torch.where(gap > SAME_LEVEL, place, nearest)
        return place if self.condition == "label" else len(levels) - 1 - place

    def _refuse_others(self, off: Tensor, sigma: Tensor, who: str) -> None:
        """Refuse the noise levels that a network cannot be told."""
        if self.sigmas is None or not bool(off.any()):
            return
        i = int(off.nonzero()[0])
        ends = f"from {float(self.sigmas[0]):g} to {float(self.sigmas[-1]):g}"
        asked = f"{who.format(i)} σ = {float(sigma[i]):g}"
        if self.condition == "label" and not self.quantize:
            raise ValueError(
                f"{asked}, but this network knows only its {len(self.sigmas)} levels {ends} by "
                "label: use levels of its ladder (spacing='ladder'), a network that takes any σ "
                "(nf.NCSNv2 does), or nf.Score(..., quantize=True), which tells it the nearest; "
                "where its labels count others, nf.Score(fn, kind, condition, sigmas=...)"
            )
        raise ValueError(
            f"{asked}, but this network was trained on {len(self.sigmas)} levels {ends}: stay "
            "between them"
        )

    def __call__(self, x: Tensor, condition: Tensor | None, /, **extra: Any) -> Tensor:
        """The output for inputs x, (B, *shape) both; the ``condition`` is (B,) or (1,); ``extra``.

        Raises:
            ValueError: where the network cannot be called so, or answers in another shape, on
                another device, or not in floating-point numbers; the message says what it may be.
        """
        alone = self.condition == "none"
        given = (x,) if alone or condition is None else (x, condition.expand(len(x)))
        try:
            output = self.fn(*given, **extra)
        except TypeError as error:
            if fits(self.fn, given, extra):
                raise
            raise ValueError(f"the network does not take this: {error}; {self.reading}") from error
        try:
            return checks.same_shape("the network", output, x.shape, x)
        except ValueError as error:
            raise ValueError(f"{error}; {_other_output(output, x)}{self.reading}") from None


def as_score(
    score: Score | Callable[..., Tensor], sigmas: Sequence[float] | Tensor | None = None
) -> Score:
    """Whatever the engine is given as a :class:`Score`.

    One of our networks is taken by its normalised output (without a condition where the network
    does not see the noise level, so that any σ is legal): its ``normalized`` method is called, not
    the module, so hooks belong on ``net`` wrapped in a callable. A bare callable is
    score(x, labels), with labels in its own ``sigmas``, if it has any, else in those given.
    """
    if isinstance(score, Score):
        if score.sigmas is None and sigmas is not None:
            return replace(score, sigmas=trusted_sigmas(sigmas))
        return score
    if isinstance(score, ScoreNetwork):
        condition = "label" if score.sees_sigma else "none"
        return Score(score.normalized, "normalized", condition, score.sigmas)
    kind, network = "score", list(layers(score))
    if isinstance(network[-1], ScoreNetwork):  # in a wrapper, or a method of it
        names = [getattr(one, "__name__", "") for one in network]
        divided = getattr(network[-1], "divided", True) and "normalized" not in names
        kind = "score" if divided else "normalized"
    read = Score(score, kind, "label")
    return read if read.sigmas is not None else as_score(read, sigmas)


def _refuse_another_kind(fn: Callable[..., Tensor]) -> None:
    """Refuse what is recognisably no score(x, labels), with what to say of it instead."""
    network, what = list(layers(fn))[-1], ""
    if found := [name for name in _OTHERS if hasattr(network, name)]:
        owners, recipe = _OTHERS[found[-1]]
        what = f"has {' and '.join(found)}, as {owners} have"
    if any(parent.__module__.startswith("diffusers.") for parent in type(network).__mro__):
        what, recipe = "is a model of diffusers", _DIFFUSERS
    if getattr(network, "embedding_type", None) == "fourier":
        what, recipe = "embeds σ itself (embedding_type)", 'nf.Score(net, "score", "sigma")'
    if what:
        raise ValueError(
            f"{type(network).__name__} {what}: it would be read as score(x, labels), the score of "
            f"x with labels that count noise levels. Say what it is, for example {recipe}; if it "
            "is a score by label indeed, lambda x, labels: net(x, labels)"
        )


def _other_output(output: Any, x: Tensor) -> str:
    """What an output may be that is not of x's shape, and what to do, or nothing."""
    if hasattr(output, "sample") and not isinstance(output, Tensor):
        return f"of what it returns take .sample, for example {_DIFFUSERS}; "
    if isinstance(output, (tuple, list, dict)):
        return "of what it returns take one, nf.Score(lambda x, told: net(x, told)[0], …); "
    if getattr(output, "shape", None) == (len(x), 2 * x.shape[1], *x.shape[2:]):
        return (
            "twice the channels are a mean and a variance (improved DDPM, ADM): take the first "
            f"half, nf.Score(lambda x, told: net(x, told)[:, :{x.shape[1]}], …); "
        )
    return ""


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


__all__ = ["Score", "as_score"]
