"""sbi's neural posterior score estimation, NPSE (github.com/sbi-dev/sbi)."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast import noise
from ncsn_fast.compat.adapters.times import Clock
from ncsn_fast.methods.by_name import check_taken, make_table
from ncsn_fast.models.base import evaluating
from ncsn_fast.models.score import Score
from ncsn_fast.sampling.sampler import Sampler
from ncsn_fast.support import checks
from ncsn_fast.table import Table

# Methods of which a step needs nothing of the one before it.
_SINGLE = ("ancestral", "euler", "heun", "predictor_corrector", "reverse_diffusion")


class _Estimator(nn.Module):
    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def scales(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of the states at some times, (B,) each."""
        alpha, std = self.estimator.mean_t_fn(times), self.estimator.std_fn(times)
        return alpha.reshape(times.shape), std.reshape(times.shape)

    def forward(self, theta: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        found: Tensor = self.estimator.score(theta, condition, time)
        return found


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
        ValueError: for an estimator that has no score of samples with a time each, as that of an
            FMPE has none, or no law of its states.
    """
    estimator: Any = getattr(posterior, "vector_field_estimator", posterior)
    needed = ("score", "mean_t_fn", "std_fn", "t_min", "t_max", "input_shape", "condition_shape")
    if not isinstance(estimator, nn.Module) or not all(hasattr(estimator, one) for one in needed):
        raise ValueError(
            f"posterior is a {type(posterior).__name__}: give what NPSE(...).build_posterior() "
            "returns, or its vector_field_estimator"
        )
    network, ends = _Estimator(estimator), (estimator.t_min, estimator.t_max)
    _check(network)
    clock = Clock(network.scales, *(float(end) for end in ends))  # type: ignore[arg-type]
    return Score(network, "score", clock, clock.sigmas, input_scale=clock.scale)


def _check(network: _Estimator) -> None:
    """Refuse an estimator that has no score of samples that are told a time each."""
    estimator: Any = network.estimator
    shape, kind = tuple(estimator.input_shape), type(estimator).__name__
    # So that times are not broadcast along a dimension.
    n = next(n for n in count(2) if n not in shape)
    like = next(network.parameters(), torch.zeros(()))
    theta, given = like.new_zeros(n, *shape), like.new_zeros(n, *estimator.condition_shape)
    time = like.new_full((n,), float(estimator.t_min + estimator.t_max) / 2)
    try:
        with torch.no_grad(), evaluating(network):
            checks.same_shape(f"{kind}.score", network(theta, time, given), theta.shape, theta)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{kind}.score of {n} samples with a time each fails: {error}. The estimators of NPSE "
            "have one, FMPE's has not"
        ) from error


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
    first = estimator.mean_base + estimator.std_base * z
    initial = network.from_state(first, sampler.table.sigma[0])
    condition = observations.repeat(n, *(1,) * len(given))
    theta = sampler(many, seed=seed, initial=initial, extra={"condition": condition})
    if getattr(estimator, "compose_enabled", False):
        theta = estimator.from_z(theta)
    return theta.view(n, len(observations), *shape)


class _Predictor:
    """A method of this engine as sbi's loop runs it, beside sbi's own class: a step between two
    times at each call, on states of its own, of the potential's score."""

    def __init__(self, potential_fn: Any, method: str = "ancestral", **settings: Any) -> None:
        super().__init__(potential_fn)  # type: ignore[call-arg]
        checks.choice("method", method, _SINGLE, "a step needs nothing of the one before it")
        if fixed := sorted(settings.keys() & {"steps", "spacing", "rho"}):
            raise ValueError(f"{', '.join(fixed)}: which times are visited is said to sbi, steps=")
        check_taken(method, settings)
        self._potential, self._method, self._settings = potential_fn, method, settings
        self._estimator = _Estimator(potential_fn.vector_field_estimator)
        self._rows(2.0, 1.0)  # what the method refuses it refuses now

    def predict(self, theta: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        """States (…, *shape) at the time t1, () both, taken to t0."""
        (first, alpha), (last, kept) = (self._level(t) for t in (t1, t0))
        x, history = theta / alpha, torch.zeros_like(theta)
        table = self._rows(first, last)
        for row in range(len(table)):
            time, seen = (t1, alpha) if table.sigma[row] == table.sigma[0] else (t0, kept)
            score = self._potential.gradient(seen * x, time).to(theta.device)
            n = table.sigma[row] * seen * score
            z = torch.randn_like(x) if table.d[row] else 0.0
            new = table.a[row] * x + table.b[row] * n + table.c[row] * history + table.d[row] * z
            x, history = new, table.e[row] * x + table.f[row] * n
        return kept * x

    def _level(self, time: Tensor) -> tuple[float, float]:
        """σ/α and α at a time."""
        alpha, std = (float(one) for one in self._estimator.scales(time.reshape(1)))
        if not alpha > 0:
            raise ValueError(f"at t = {float(time):g} states are noise alone: begin below it")
        return std / alpha, alpha

    def _rows(self, first: float, last: float) -> Table:
        """A step from one level to another, or to 0: what leads on from there is left out."""

        def table(*sigmas: float) -> Table:
            levels = torch.tensor(sigmas, dtype=torch.float64)
            return make_table(self._method, levels, self._settings, {})

        return table(first, last)[: -len(table(last))] if last else table(first)


def register(name: str = "ncsn_fast") -> None:
    """Give sbi's own sampling loop the methods of this engine, as a predictor.

        sbi.register()
        posterior.sample((100,), predictor="ncsn_fast", predictor_params={"method": "heun"})

    Its parameters are ``method`` ("ancestral", the default, "euler", "heun", "predictor_corrector"
    or "reverse_diffusion") and settings of that as of :class:`nf.Sampler`, but ``steps``,
    ``spacing`` and ``rho``: sbi says which times are visited. Noise is torch's, and the loop runs
    as sbi has it, also on compositions of observations and for FMPE. (:func:`sample` has every
    method, and levels of its own: on sbi's times, evenly spaced, 50 steps of "ancestral" leave 0.91
    of a Gaussian's standard deviation, 200 leave 0.99.)

    Args:
        name: what it is called there.

    Raises:
        ImportError: without sbi.
    """
    from sbi.samplers.score.predictors import Predictor, register_predictor

    register_predictor(name)(type("NCSNPredictor", (_Predictor, Predictor), {}))


__all__ = ["register", "sample", "score"]
