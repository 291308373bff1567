"""What the configurations of other schedulers of diffusers mean to ``NCSNScheduler``: what it takes
over, what it keeps for the way back and names in a warning, and what it refuses."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

from ncsn_fast.compat.common import flag
from ncsn_fast.compat.diffusers_settings import NO_BETAS, OWN, SIGMA_SCHEDULES, has_betas
from ncsn_fast.support import checks

_log = logging.getLogger("ncsn_fast")

# How a solver goes about it, which a method here does in its own way; and what is taken over.
_SOLVERS = {
    *("solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"),
    *("predict_x0", "disable_corrector", "solver_p", "skip_prk_steps", "interpolation_type"),
    *("predictor_order", "corrector_order", "tau_func", "eta", "flow_shift", "time_shift_type"),
    *("snr", "correct_steps", "sampling_eps", "use_karras_sigmas", "use_exponential_sigmas"),
}
# What a pipeline asks its scheduler's configuration for.
ASKED_FOR = {"correct_steps"}
# What a network is, with the value that it can only have here.
_REFUSED = {"use_flow_sigmas": False, "snr_shift_scale": 1.0}
# What images depend on, with the value at which they are as here; others are named in a warning.
_NEUTRAL = {
    "timestep_spacing": None,
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "shift_terminal": None,
}
KNOWN = OWN | _SOLVERS | _REFUSED.keys() | _NEUTRAL.keys()
# Settings that only a configuration of NCSNScheduler has.
_MARKS = {"method", "sigmas", "scaled_state", "steps_per_level", "spacing", "settings"}
# A limit of x₀ that some classes have by default, as solvers of few steps have not.
LIMIT = "clip_sample"
NOT_SCALED = (
    "NCSNScheduler.step() without scale_model_input(): the network sees the state itself, not "
    "x/√(σ² + σ_data²). For a pipeline that does not call it, as DDPMPipeline, give "
    "scaled_state=True"
)


def taken_over(config: object, given: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """The settings that a configuration means beside those that it has by their names here.

    Args:
        config: of any scheduler, its private entries included.
        given: settings that take the place of its own.
        strict: whether those have to be settings.

    Raises:
        ValueError: where no noise levels follow from it, or other ones than it can have here.
    """
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise ValueError(
            f"config is {type(config).__name__}; needed is a dict of settings by name "
            "(from_pretrained reads a folder)"
        )
    unknown = sorted(given.keys() - KNOWN)
    if unknown and strict:
        raise ValueError(
            f"NCSNScheduler has no setting {' and no '.join(unknown)}: it has "
            f"{', '.join(sorted(OWN))}"
        )
    theirs = {name: value for name, value in config.items() if not name.startswith("_")}
    both = {**theirs, **given}
    for name, neutral in _REFUSED.items():
        if not _is(both.get(name), neutral) and not (name == "snr_shift_scale" and _levels(given)):
            raise ValueError(
                f"{name} = {both[name]!r:.80}: networks of that kind have other noise levels than "
                "their betas say, which are not sampled here"
            )
    if not theirs or _MARKS & theirs.keys():
        return _replaced(given)
    left_out = unchosen(config) - given.keys()
    unlimited = {LIMIT: False} if LIMIT in left_out and theirs.get(LIMIT) else {}
    _warn({name: one for name, one in both.items() if name not in left_out}, bool(unlimited))
    return {**_meaning(theirs, given), **unlimited, **_replaced(given)}


def unchosen(config: Mapping[str, Any]) -> set[str]:
    """The settings in a configuration that are but the defaults of its class."""
    names = config.get("_use_default_values")
    return {str(name) for name in names} if isinstance(names, (list, tuple, set)) else set()


def _levels(given: Mapping[str, Any]) -> bool:
    return given.get("sigmas") is not None


def _is(value: object, neutral: object) -> bool:
    """Whether a setting has no effect; None stands for one that is not set."""
    return value is None or (isinstance(value, (bool, int, float, str)) and value == neutral)


def _replaced(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that go where others come that say the same."""
    if _levels(given):
        return {"beta_schedule": NO_BETAS, "trained_betas": None}
    return dict.fromkeys(("sigmas", "sigma_max", "sigma_min")) if has_betas(given) else {}


def _meaning(theirs: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings for another scheduler's, by the kind that it is of."""
    if "beta_schedule" in theirs:  # IPNDMScheduler has trained_betas of another meaning
        return _of_betas(theirs, given)
    if "sigma_schedule" in theirs:
        checks.choice("sigma_schedule", theirs["sigma_schedule"], tuple(SIGMA_SCHEDULES), "EDM's")
        return {"timestep_type": "c_noise", "spacing": SIGMA_SCHEDULES[theirs["sigma_schedule"]]}
    if "correct_steps" in theirs:
        found = _of_ve(theirs)
        if given.get("method") not in (None, found["method"]):
            del found["settings"]  # those of its own method, that another does not take
        return found
    strange = sorted(theirs.keys() - OWN)
    ends = theirs.get("sigma_max") is not None and theirs.get("sigma_min") is not None
    if _levels(given) or (ends and not strange):
        return {}
    raise ValueError(
        f"the configuration of another scheduler, with {strange or sorted(theirs)}, names no betas "
        "from which noise levels would follow: give sigmas=, and prediction_type=, timestep_type= "
        "and sigma_data= as the network needs them"
    )


def _of_betas(theirs: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the schedulers of DDPM's kind mean."""
    ends = {name: theirs.get(name) for name in ("sigma_max", "sigma_min")}
    if any(end is not None for end in ends.values()) and not _levels(given):
        raise ValueError(
            f"sigma_max = {ends['sigma_max']}, sigma_min = {ends['sigma_min']} beside betas: give "
            "the noise levels as sigmas="
        )
    found = {"sigma_data": theirs.get("sigma_data", 1.0), "scaled_state": True, **ends}
    for name, spacing in (("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "geometric")):
        if theirs.get(name) is not None and flag(name, theirs[name]):
            found["spacing"] = spacing
    return found


def _of_ve(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What ScoreSdeVeScheduler does, whose network is told σ and returns the score."""
    if not 0 <= checks.number("sampling_eps", theirs.get("sampling_eps", 1e-5)) <= 1e-3:
        raise ValueError(
            f"sampling_eps = {theirs['sampling_eps']}: the smallest noise level is sigma_min here, "
            "so only up to 1e-3 is taken; give sigma_min=, and leave sampling_eps out"
        )
    return {
        "prediction_type": "score",
        "timestep_type": "sigma",
        "method": "predictor_corrector",
        "settings": {
            "snr": checks.number("snr", theirs.get("snr", 0.15)),
            "corrector_steps": checks.count("correct_steps", theirs["correct_steps"]),
        },
    }


def _warn(settings: Mapping[str, Any], unlimited: bool) -> None:
    """Name what is not followed of settings that somebody chose."""
    passed_over = [
        f"{name} = {value!r:.40}"
        for name, value in sorted(settings.items())
        if name not in OWN | _SOLVERS and not (name in _NEUTRAL and _is(value, _NEUTRAL[name]))
        if name not in _REFUSED
    ]
    if passed_over:
        say(
            f"NCSNScheduler does not follow {', '.join(passed_over)} of the other scheduler: "
            "spacing says which noise levels are visited, and method how"
        )
    if unlimited:
        say(
            "NCSNScheduler does not follow clip_sample = True, a default of the other scheduler: "
            "where images are in [-1, 1], give clip_sample=True"
        )


@functools.cache
def say(text: str) -> None:
    """Warn of this once."""
    _log.warning(text)


__all__ = ["KNOWN", "LIMIT", "NOT_SCALED", "say", "taken_over", "unchosen"]
