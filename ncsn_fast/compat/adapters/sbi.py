"""sbi's neural posterior score estimation, NPSE (github.com/sbi-dev/sbi)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast import noise
from ncsn_fast.compat.adapters.times import Clock
from ncsn_fast.models.score import Score
from ncsn_fast.reference import per_sample
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support import checks


class _Estimator(nn.Module):
    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def scales(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of the states at some times, (B,) each."""
        alpha, std = self.estimator.mean_t_fn(times), self.estimator.std_fn(times)
        return alpha.reshape(times.shape), std.reshape(times.shape)

    def forward(self, theta: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        alpha, std = (per_sample(one, theta) for one in self.scales(time))
        found: Tensor = self.estimator.score(alpha * theta, condition, time)
        return std * found


def score(posterior: Any) -> Score:
    """The score of the parameters given observations, as an NPSE has learned it.

    Its network takes the observations as the input ``condition``, (n, *condition_shape), one for
    each sample, or (1, *condition_shape) for all: extra={"condition": x}. Chains that begin far out
    want the start that :func:`sample` has.

    Args:
        posterior: what ``NPSE(...).build_posterior()`` makes, or its ``vector_field_estimator``.

    Returns:
        A Score told the time, with ``sigmas`` of 1,000 times of the estimator's.

    Raises:
        ValueError: for an estimator that has no score, or no law of its states.
    """
    estimator: Any = getattr(posterior, "vector_field_estimator", posterior)
    needed = ("score", "mean_t_fn", "std_fn", "t_min", "t_max")
    if not isinstance(estimator, nn.Module) or not all(hasattr(estimator, one) for one in needed):
        raise ValueError(
            f"posterior is a {type(posterior).__name__}: give what NPSE(...).build_posterior() "
            "returns, or its vector_field_estimator"
        )
    network, ends = _Estimator(estimator), (estimator.t_min, estimator.t_max)
    clock = Clock(network.scales, *(float(end) for end in ends))  # type: ignore[arg-type]
    return Score(network, "normalized", clock, clock.sigmas)


def sample(
    posterior: Any,
    n: int,
    observations: Tensor,
    *,
    method: str = "dpmpp_2m",
    steps: int = 40,
    seed: int | None = None,
    **settings: Any,
) -> Tensor:
    """n parameters for each of some observations, all in one batch.

    What ``posterior.sample_batched((n,), observations)`` draws, by another method; samples outside
    of the prior's support are kept. Where the estimator was trained on standardised parameters they
    are given back their units.

    Args:
        posterior: as of :func:`score`.
        n: how many for each observation, at least 1.
        observations: (M, *condition_shape).
        method, steps, settings: as of :class:`nf.Sampler`.
        seed: in [0, 2⁶⁴); None draws one from torch's default generator.

    Returns:
        (n, M, *shape) float32.

    Raises:
        ValueError: for observations of another shape, and as of :class:`nf.Sampler`.
    """
    network = score(posterior)
    estimator: Any = getattr(posterior, "vector_field_estimator", posterior)
    shape, given = tuple(estimator.input_shape), tuple(estimator.condition_shape)
    n = checks.count("n", n)
    if not isinstance(observations, Tensor) or observations.shape[1:] != given:
        raise ValueError(
            f"observations of shape {tuple(getattr(observations, 'shape', ()))}: give a tensor "
            f"(M, {', '.join(map(str, given))})"
        )
    sampler = Sampler(network, shape, method=method, steps=steps, **settings)
    many, seed = n * len(observations), noise.chosen_seed(seed)
    # Its law of the first states, which has the mean and spread of the parameters in it.
    z = sampler.first_noise(seed, torch.arange(many, device=sampler.device))
    told = network.conditions(sampler.table, z.device)
    assert told is not None
    alpha, _ = _Estimator(estimator).scales(told[:1])
    initial = (estimator.mean_base + estimator.std_base * z) / alpha
    condition = observations.repeat(n, *(1,) * len(given))
    theta = sampler(many, seed=seed, initial=initial, extra={"condition": condition})
    if getattr(estimator, "compose_enabled", False):
        theta = estimator.from_z(theta)
    return theta.view(n, len(observations), *shape)


__all__ = ["sample", "score"]
