"""The settings of ``NCSNScheduler``: their bounds, the noise levels and the network they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ncsn_fast.compat.common import flag
from ncsn_fast.methods.by_name import METHODS
from ncsn_fast.methods.levels import MOST_LEVELS, check_sigmas, geometric_sigmas
from ncsn_fast.methods.spacings import AUTO, SPACINGS, noise_levels
from ncsn_fast.models.score import Score
from ncsn_fast.noise import check_seed
from ncsn_fast.support import checks

try:
    from diffusers import DDPMScheduler
except ImportError as error:
    raise ImportError(
        "ncsn_fast.compat.diffusers needs diffusers: pip install diffusers"
    ) from error

# diffusers' names of what a network predicts, and what EDM's schedulers mean by the same.
PREDICTIONS = {
    "epsilon": "epsilon",
    "sample": "denoiser",
    "v_prediction": "v",
    "score": "score",
    "normalized_score": "normalized",
}
_EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "v"}
# The last two are EulerDiscreteScheduler's names.
TIMESTEPS = ("timestep", "label", "sigma", "log_sigma", "c_noise", "discrete", "continuous")
# Other schedulers refuse a schedule of this name, as they should: they would take their own betas.
NO_BETAS = "no betas"
_BETA_SCHEDULES = (NO_BETAS, "linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
SIGMA_SCHEDULES = {"karras": "karras", "exponential": "geometric"}
_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
LEARNED = ("learned", "learned_range")

Check = Callable[[str, Any], Any]


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _one_of(*allowed: object) -> Check:
    def check(name: str, value: Any) -> Any:
        checks.choice(name, value, allowed, "a scheduler's setting")
        return value

    return check


def _between(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> float:
        found = checks.number(name, value)
        if not low <= found <= high:
            raise ValueError(f"{name} = {found}: give a number from {low:g} to {high:g}")
        return found

    return check


def _whole(least: int, most: int) -> Check:
    def check(name: str, value: Any) -> int:
        if (found := checks.count(name, value, least)) > most:
            raise ValueError(f"{name} = {found}: give a whole number of at most {most:,}")
        return found

    return check


def numbers(name: str, value: Any) -> list[float]:
    """A list of numbers as configurations keep it, whatever it came in."""
    values = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is no list of numbers: {error}") from None
    if array.dtype.kind not in "iuf" or array.ndim != 1 or not 0 < len(array) <= MOST_LEVELS:
        raise ValueError(
            f"{name} is {type(value).__name__} of shape {array.shape} and type {array.dtype}: give "
            f"a list of 1 to {MOST_LEVELS:,} numbers"
        )
    return [float(one) for one in array]


def _levels(name: str, value: Any) -> list[float]:
    levels = numbers(name, value)
    check_sigmas(levels)
    return levels


def _settings(name: str, value: Any) -> dict[str, Any]:
    """Numbers, words and truth values by name; NumPy's as Python's own."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} = {value!r:.80}: give a dict of the method's settings by name")
    found = {}
    for key, one in value.items():
        plain = one.item() if isinstance(one, (np.generic, Tensor)) and one.ndim == 0 else one
        if not isinstance(plain, (int, float, str, bool, type(None))):
            raise ValueError(f"{name}[{key!r}] = {one!r:.80}: give a number, a word, or None")
        found[key] = plain
    return found


# Every setting of NCSNScheduler.
_CHECKS: dict[str, Check] = {
    "num_train_timesteps": _whole(2, MOST_LEVELS),
    "sigma_max": _optional(checks.positive),
    "sigma_min": _optional(checks.positive),
    "sigmas": _optional(_levels),
    "prediction_type": _one_of(*PREDICTIONS),
    "timestep_type": _one_of(*TIMESTEPS),
    "sigma_data": _optional(checks.positive),
    "scaled_state": flag,
    "method": _one_of(*METHODS),
    "step_size": _optional(checks.positive),
    "steps_per_level": _whole(1, MOST_LEVELS),
    "denoise": flag,
    "spacing": _one_of(AUTO, *SPACINGS),
    "rho": checks.positive,
    "settings": _optional(_settings),
    "seed": _optional(lambda name, value: check_seed(value)),
    "beta_start": _between(0, 1),
    "beta_end": _between(0, 1),
    "beta_schedule": _one_of(*_BETA_SCHEDULES),
    "trained_betas": _optional(numbers),
    "rescale_betas_zero_snr": flag,
    "sigma_schedule": _optional(_one_of(*SIGMA_SCHEDULES)),
    "clip_sample": flag,
    "clip_sample_range": checks.positive,
    "thresholding": flag,
    "dynamic_thresholding_ratio": _between(0, 1),
    "sample_max_value": checks.positive,
    "variance_type": _optional(_one_of(*_VARIANCES, *LEARNED)),
}
OWN = frozenset(_CHECKS)


def checked(config: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    """The settings of an NCSNScheduler as its configuration keeps them: plain numbers and lists.

    Args:
        config: all of them.
        left_out: the names of those that were not given.

    Raises:
        ValueError: for one that is out of range, and for noise levels that are given twice.
    """
    found = {name: check(name, config[name]) for name, check in _CHECKS.items()}
    betas = has_betas(found)
    sources = {
        "sigmas": found["sigmas"] is not None,
        "betas (beta_schedule, trained_betas)": betas,
        "sigma_max, sigma_min": found["sigma_max"] is not None and "sigma_max" not in left_out,
    }
    if betas and sum(sources.values()) > 1:
        given = " and ".join(name for name, is_given in sources.items() if is_given)
        raise ValueError(f"{given} given, and each says the noise levels: leave all but one out")
    if betas:
        _check_vp(found)
        found["sigma_data"] = 1.0
    if betas or found["sigmas"] is not None:
        found["sigma_max"] = found["sigma_min"] = None
    if found["sigmas"] is not None:
        found["num_train_timesteps"] = len(found["sigmas"])
    if found["scaled_state"] and found["sigma_data"] is None:
        raise ValueError("scaled_state needs the scale: give sigma_data, 1 for VP / DDPM")
    return found


def _check_vp(config: Mapping[str, Any]) -> None:
    """Refuse what networks that are trained by betas are not."""
    if config["sigma_data"] not in (None, 1):
        raise ValueError(
            f"sigma_data = {config['sigma_data']:g} beside betas: those networks see x/√(σ² + 1), "
            "so leave it out"
        )
    if config["sigma_schedule"] is not None:
        raise ValueError(
            f"sigma_schedule = {config['sigma_schedule']!r} beside betas: it is for networks of "
            "EDM, which have none"
        )
    if config["timestep_type"] not in ("timestep", "discrete", "continuous"):
        raise ValueError(
            f"timestep_type = {config['timestep_type']!r} beside betas: those networks are told "
            "the timestep; for another one give the noise levels as sigmas="
        )
    betas, number = config["trained_betas"], config["num_train_timesteps"]
    if betas is not None and len(betas) != number:
        raise ValueError(
            f"trained_betas are {len(betas)}, num_train_timesteps = {number}: they have one length"
        )


def has_betas(config: Mapping[str, Any]) -> bool:
    """Whether the noise levels follow from betas."""
    named = config.get("beta_schedule", NO_BETAS) != NO_BETAS
    return named or config.get("trained_betas") is not None


def ladder(config: Mapping[str, Any]) -> Tensor:
    """The noise levels (L,) of checked settings, descending."""
    if config["sigmas"] is not None:
        return check_sigmas(config["sigmas"])
    if has_betas(config):
        return _from_betas(config)
    ends = config["sigma_max"], config["sigma_min"]
    if None in ends:
        raise ValueError(
            f"sigma_max = {ends[0]}, sigma_min = {ends[1]}: give both, or sigmas, or betas"
        )
    own = geometric_sigmas(*ends, config["num_train_timesteps"])
    if config["sigma_schedule"] != "karras":
        return own
    return check_sigmas(noise_levels(own, len(own), "karras", config["rho"]))


def _from_betas(config: Mapping[str, Any]) -> Tensor:
    """σ² = (1 - ᾱ)/ᾱ from the last timestep to the first."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    given = {name: config[name] for name in (*names, "rescale_betas_zero_snr")}
    theirs: Any = DDPMScheduler(**given)
    alphas = theirs.alphas_cumprod.double()
    if bool((alphas[:-1] > 0).all()) and float(alphas[-1]) == 0:
        # With no signal left at the last timestep σ would be infinite; twice the one before will do
        alphas[-1] = alphas[-2] / 4
    if not bool((alphas > 0).all() and (alphas < 1).all() and (alphas.diff() < 0).all()):
        raise ValueError(
            f"beta_schedule = {config['beta_schedule']!r}, beta_start = {config['beta_start']}, "
            f"beta_end = {config['beta_end']}, trained_betas: the products of 1 - β have to fall "
            "from below 1 towards 0, each β being between 0 and 1"
        )
    return check_sigmas(((1 - alphas) / alphas).sqrt().flip(0))


def score(config: Mapping[str, Any], levels: Tensor, fn: Callable[..., Tensor]) -> Score:
    """The network of checked settings, as the engine knows networks."""
    kinds = PREDICTIONS if config["sigma_schedule"] is None else _EDM_PREDICTIONS
    checks.choice("prediction_type", config["prediction_type"], tuple(kinds), "what EDM's return")
    told = config["timestep_type"]
    if told in ("discrete", "continuous"):  # by EulerDiscreteScheduler only such networks are
        continuous = told == "continuous" and config["prediction_type"] == "v_prediction"
        told = "c_noise" if continuous else "timestep"
    return Score(
        fn,
        kinds[config["prediction_type"]],
        told,
        levels,
        sigma_data=config["sigma_data"],
        quantize=told in ("timestep", "label"),
    )


__all__ = [
    "LEARNED",
    "NO_BETAS",
    "OWN",
    "SIGMA_SCHEDULES",
    "checked",
    "has_betas",
    "ladder",
    "numbers",
    "score",
]
