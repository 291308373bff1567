"""Inputs that may come one per sample: tensors as long as the batch. All else goes to each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def one_each(value: object, n: int) -> bool:
    """Whether a value is a tensor (n, …), one entry for each of n samples."""
    return isinstance(value, Tensor) and value.shape[:1] == (n,)


def cut(values: Mapping[str, Any], part: slice, n: int) -> dict[str, Any]:
    """The inputs of some of n samples: what comes one each is cut, the rest stays as it is."""
    return {name: value[part] if one_each(value, n) else value for name, value in values.items()}


__all__ = ["cut", "one_each"]
