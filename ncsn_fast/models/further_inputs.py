"""Further inputs of a network, such as classes, as a caller gives them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.ncsnv2 import NCSNv2
from ncsn_fast.support import per_sample


def further_inputs(
    network: ScoreNetwork | None,
    extra: Mapping[str, object] | None,
    shared: Mapping[str, object] | None,
    n: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a call gives a network besides its images, checked; classes of ours as numbers.

    Args:
        network: of this package, whose inputs are known; None for another.
        extra: by name, one per sample or one for all; None for none.
        shared: by name, what all samples get as it is; None for none.
        n: how many samples.

    Raises:
        ValueError: for entries of another number, for names that the network does not have, and
            for classes that it does not know.
    """
    extra, shared = ({} if given is None else given for given in (extra, shared))
    per_sample.check("extra", extra, n, shared)
    told, whole = dict(extra), dict(shared)
    if network is None:
        return told, whole
    parameters = [*inspect.signature(network.normalized).parameters.values()][2:]
    known = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
    if len(known) == len(parameters) and (unknown := sorted({*told, *whole} - {*known})):
        takes = " and ".join(map(repr, known)) or "no further inputs"
        raise ValueError(
            f"{type(network).__name__} has no input {unknown[0]!r}: of extra= and shared= it takes "
            f"{takes}"
        )
    if isinstance(network, NCSNv2) and network.classes and told.get("classes") is not None:
        told["classes"] = network.numbers_of(told["classes"], n)
    return told, whole


__all__ = ["further_inputs"]
