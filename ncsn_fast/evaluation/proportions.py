"""Class proportions of two sets of images, and whether they differ by more than chance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Comparison(NamedTuple):
    """Pearson's test that two sets are drawn from the same proportions.

    Attributes:
        chi_square: Σ over both sets and all classes of (found - expected)² / expected.
        degrees: of freedom, the number of classes that are there less 1.
        p_value: how often chance alone gives a χ² as large; below 0.001 they differ.
        deviations: of each class, the difference of its shares in standard errors; 0 of one that
            neither set has.
    """

    chi_square: float
    degrees: int
    p_value: float
    deviations: list[float]


def compare_counts(a: Tensor, b: Tensor) -> Comparison:
    """Whether two sets of images have the same class proportions.

    Args:
        a, b: int64 (K,), how many images of each class; at least one image each.

    Raises:
        ValueError: for other shapes, negative numbers or no images.
    """
    for name, counts in (("a", a), ("b", b)):
        if counts.ndim != 1 or counts.shape != a.shape or counts.is_floating_point():
            raise ValueError(
                f"{name} has {counts.dtype} {tuple(counts.shape)}: give a count of each class"
            )
        if int(counts.min()) < 0 or int(counts.sum()) < 1:
            raise ValueError(f"{name} = {counts.tolist()}: give counts of at least one image")
    found = torch.stack([a, b]).cpu().double()
    found = found[:, found.sum(0) > 0]
    sizes, share = found.sum(1, keepdim=True), found.sum(0) / found.sum()
    chi_square = ((found - sizes * share).square() / (sizes * share)).sum()
    degrees = found.shape[1] - 1
    # Of χ² with d degrees of freedom: P(X > x) = Q(d / 2, x / 2). Of one class alone: 1.
    half = torch.tensor(max(degrees, 1) / 2, dtype=torch.float64)
    error = (share * (1 - share) * (1 / sizes).sum()).sqrt()
    deviations = torch.zeros(len(a), dtype=torch.float64)
    there = (a + b).cpu() > 0
    deviations[there] = torch.where(error > 0, (found / sizes).diff(dim=0)[0].neg() / error, 0)
    return Comparison(
        float(chi_square),
        degrees,
        float(torch.special.gammaincc(half, chi_square / 2)),
        deviations.tolist(),
    )


def standard_errors(counts: Tensor) -> Tensor:
    """√(p(1 - p) / n) of each class's share p of n images: float64 (K,) of int64 (K,)."""
    share = counts.double() / counts.sum()
    return (share * (1 - share) / counts.sum()).sqrt()


__all__ = ["Comparison", "compare_counts", "standard_errors"]
