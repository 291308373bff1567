"""The values of the official configurations: one table, which is read and written by.

It says what their values are called here, and what they are where a file leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from ncsn_fast.support.checks import printable

_REQUIRED: Any = object()


class Key(NamedTuple):
    """One value of a configuration.

    Attributes:
        place: "section.key".
        kind: int, float, bool or str.
        setting: our name for it; None: it is not for us to choose, and written as ``absent``.
        absent: what a file without it means, where it may be without.
        versions: of the code, 1 (NCSN) and 2 (NCSNv2), in whose files it is written.
    """

    place: str
    kind: type
    setting: str | None = None
    absent: Any = _REQUIRED
    versions: tuple[int, ...] = (1, 2)


# In the order in which they are written.
KEYS = (
    Key("training.batch_size", int, "batch_size"),
    Key("training.n_epochs", int, absent=500_000),
    Key("training.n_iters", int, "steps"),
    Key("training.snapshot_freq", int, "checkpoint_every", 5000),
    Key("training.anneal_power", float, "anneal_power", 2.0),
    Key("training.algo", str, absent="dsm", versions=(1,)),
    Key("training.ngpu", int, absent=1, versions=(1,)),
    Key("training.snapshot_sampling", bool, absent=True, versions=(2,)),
    Key("training.log_all_sigmas", bool, absent=False, versions=(2,)),
    Key("data.dataset", str, "dataset", ""),
    Key("data.image_size", int, "image_size"),
    Key("data.channels", int, "channels"),
    Key("data.logit_transform", bool, "logit_transform", False),
    Key("data.random_flip", bool, "flip", False),
    Key("data.category", str, "category", None, (2,)),
    Key("data.uniform_dequantization", bool, absent=False, versions=(2,)),
    Key("data.gaussian_dequantization", bool, absent=False, versions=(2,)),
    Key("data.rescaled", bool, "rescaled", False, (2,)),
    Key("data.num_workers", int, absent=4, versions=(2,)),
    Key("model.sigma_begin", float, "sigma_max"),
    Key("model.sigma_end", float, "sigma_min"),
    Key("model.num_classes", int, "num_levels"),
    Key("model.sigma_dist", str, "sigma_dist", "geometric"),
    Key("model.ngf", int, "ngf"),
    Key("model.batch_norm", bool, absent=False, versions=(1,)),
    Key("model.ema", bool, "averaged", False, (2,)),
    Key("model.ema_rate", float, "ema", 0.999, (2,)),
    Key("model.spec_norm", bool, absent=False, versions=(2,)),
    Key("model.normalization", str, absent="InstanceNorm++", versions=(2,)),
    Key("model.nonlinearity", str, "activation", "elu", (2,)),
    Key("optim.weight_decay", float, absent=0.0),
    Key("optim.optimizer", str, absent="Adam"),
    Key("optim.lr", float, "learning_rate"),
    Key("optim.beta1", float, "beta1", 0.9),
    Key("optim.beta2", float, "beta2", 0.999),
    Key("optim.amsgrad", bool, absent=False),
    Key("optim.eps", float, "eps", 1e-8, (2,)),
    Key("sampling.batch_size", int, absent=100),
    Key("sampling.data_init", bool, absent=False),
    Key("sampling.step_lr", float, "step_size", None),
    Key("sampling.n_steps_each", int, "steps_per_level", None),
    Key("sampling.consistent", bool, "consistent", False),
    Key("sampling.nsigma", int, "nsigma", None),
    # Of AdversarialConsistentScoreMatching: whether a step's noise comes before its score; how the
    # levels of sampling are spaced, where not as those of the network.
    Key("sampling.noise_first", bool, "noise_first", False),
    Key("sampling.sigma_dist", str, "spacing", None),
    Key("sampling.ckpt_id", int, absent=None),  # checkpoint.pth
    Key("sampling.final_only", bool, absent=True),
    Key("sampling.fid", bool, absent=False),
    Key("sampling.denoise", bool, "denoise", True),
    Key("sampling.num_samples4fid", int, absent=10_000),
    Key("sampling.inpainting", bool, absent=False),
    Key("sampling.interpolation", bool, absent=False),
    Key("sampling.n_interpolations", int, absent=15),
)
# Sections and keys of the published configurations that say nothing of networks, training and
# sampling as they are here: logs, speed, other programs, discriminators.
_ASIDE_SECTIONS = ("adversarial", "biggan", "device", "dtype", "fast_fid", "seed", "test")
_ASIDE = {
    *("model.dropout", "model.name", "optim.adv_beta1", "optim.adv_beta2", "optim.betas"),
    *("optim.momentum", "sampling.clamp", "sampling.verbose", "training.log_freq"),
    *("training.snapshot_sampling_freq", "training.num_workers", "sampling.save_freq"),
    "model.unet",  # refused where it is true
}
# Keys that are known, and change what is done only with another value than this.
_NEUTRAL = dict.fromkeys(
    ("sampling.data_init", "sampling.inpainting", "sampling.interpolation", "model.batch_norm"),
    False,
)
_BY_PLACE = {key.place: key for key in KEYS}
_BY_SETTING = {key.setting: key for key in KEYS if key.setting is not None}


def passed_over(config: Mapping[str, Any]) -> list[str]:
    """The sections and keys of a configuration that nothing here reads, in words.

    Those are left out that are known to make no difference. Where one is nearly a key that is read,
    that is told: it may be misspelt.
    """
    sections = {place.partition(".")[0] for place in _BY_PLACE}
    found = []
    for section, values in config.items():
        if section not in sections:
            found += [] if section in _ASIDE_SECTIONS else [_told(str(section), sections)]
        elif isinstance(values, Mapping):
            for key, value in values.items():
                place = f"{section}.{key}"
                if place not in _BY_PLACE and place not in _ASIDE:
                    found.append(_told(place, set(_BY_PLACE)))
                elif value is not None and value != _NEUTRAL.get(place, value):
                    found.append(f"{place}: {printable(str(value)[:20].lower())}")
    return found


def _told(name: str, known: set[str]) -> str:
    name = printable(name[:80])
    close = get_close_matches(name, known, 1, 0.8)
    return name + (f" (is {close[0]} meant?)" if close else "")


def value_of(config: Mapping[str, Any], place: str, default: Any = _REQUIRED) -> Any:
    """The value at a place of a configuration, as the kind that belongs there.

    Args:
        config: nested plain values.
        place: of ``KEYS``.
        default: where the configuration does not say; else what ``KEYS`` say.

    Raises:
        ValueError: for a value of another kind, and for none where one is needed.
    """
    name, _, key = place.partition(".")
    kind = _BY_PLACE[place].kind
    default = _BY_PLACE[place].absent if default is _REQUIRED else default
    if default is not _REQUIRED and name not in config:
        return default
    value = section_of(config, name).get(key)
    if value is None:
        if default is _REQUIRED:
            raise ValueError(f"the configuration has no value {place}")
        return default
    if kind in (bool, str):
        if type(value) is not kind:
            raise ValueError(f"{place} is {value!r}, where a {_kind_name(kind)} is expected")
        return value
    return number_of(value, kind, place)


def settings_of(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The values of a configuration that belong to our settings of these names.

    Raises:
        ValueError: as :func:`value_of`.
    """
    return {name: value_of(config, _BY_SETTING[name].place) for name in names}


def section_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a configuration; ValueError where there is none."""
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ValueError(
            f"the configuration has no section {name!r}, its keys are: "
            f"{', '.join(map(str, config)) or 'none'}. An NCSN configuration has data:, model: "
            "and others"
        )
    return section


def number_of(value: Any, kind: type, name: str) -> Any:
    """A value as an int or a float; ValueError, with its name, where it is none."""
    # YAML 1.1 reads 1e-5 (no point) as a string.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
            if np.isfinite(number) and (kind is float or number.is_integer()):
                return int(number) if kind is int else number
        except ValueError:
            pass
    raise ValueError(f"{name} is {value!r}, where a {_kind_name(kind)} is expected")


def written(settings: Mapping[str, Any], version: int) -> dict[str, dict[str, Any]]:
    """The configuration that says these settings, and as published what is not for us to choose.

    Args:
        settings: by our names, see ``KEYS``; a section of which none is given is left out.
        version: of the code that is to read it, 1 (NCSN) or 2 (NCSNv2).
    """
    sections: dict[str, dict[str, Any]] = {}
    told = {key.place.partition(".")[0] for key in KEYS if key.setting in settings}
    for place, _, setting, absent, versions in KEYS:
        section, _, key = place.partition(".")
        if section in told and version in versions and (setting is None or setting in settings):
            value = absent if setting is None else settings[setting]
            sections.setdefault(section, {})[key] = value
    return sections


def _kind_name(kind: type) -> str:
    names: dict[Any, str] = {int: "whole number", float: "number", bool: "true or false"}
    return names.get(kind, "word")


__all__ = ["number_of", "passed_over", "section_of", "settings_of", "value_of", "written"]
