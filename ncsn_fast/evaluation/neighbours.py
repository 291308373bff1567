"""Nearest neighbours among many points, exactly, in blocks and in bounded memory.

Points are tensors (N, ...) of any real dtype, flattened and taken to float64. Squared distances are
‖a‖² + ‖b‖² - 2a·b around a point of b, which one matrix product gives; of the neighbours that are
found the distances are measured again by differences, so that a copy lies at 0. Between 8-bit
pixels all of this is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ncsn_fast.support.progress import Progress, ProgressWish

# Blocks of at most 1024 × 4096 squared distances (32 MiB), and of at most 32 MiB of points.
_ROWS, _COLUMNS, _BLOCK_BYTES = 1024, 4096, 32 << 20
_NEAR = 0.01


class Neighbours(NamedTuple):
    """The k nearest: ``distances`` float64 (N, k), ascending, ``indices`` int64 (N, k)."""

    distances: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Nearness:
    """How near a model's samples are to its training images, beside images it never saw.

    Attributes:
        samples, held_out: mean distance to the nearest training image.
        samples_error, held_out_error: standard errors of these means.
        smallest, held_out_smallest: the smallest of these distances.
        copies, held_out_copies: share of them that is 0.
        near: share of the samples that are nearer to a training image than all but 1 % of the
            held-out images are; 0.01 of a model that repeats nothing.
    """

    samples: float
    samples_error: float
    smallest: float
    copies: float
    held_out: float
    held_out_error: float
    held_out_smallest: float
    held_out_copies: float
    near: float


def nearest(
    a: Tensor, b: Tensor, k: int = 1, *, others: bool = False, progress: ProgressWish = None
) -> Neighbours:
    """The k points of ``b`` that are nearest to each point of ``a``, any of equally near ones.

    Args:
        a, b: (N_a, ...) and (N_b, ...), finite, the same number of values per point; on one device.
        k: from 1 to N_b.
        others: leave each point's own index out, where ``a`` is ``b``.
        progress: of the points of ``a``.

    Returns:
        Euclidean distances and indices, on a's device (on the CPU where that has no float64).
    """
    device = float64_device(a)
    distances, indices = [], []
    with Progress(progress, len(a), "image") as shown:
        for start, rows, blocks in _squares(a, b, device):
            best = torch.full((len(rows), k), torch.inf, device=device, dtype=torch.float64)
            found = torch.zeros(len(rows), k, device=device, dtype=torch.int64)
            for first, squares in blocks:
                if others:
                    own = torch.arange(len(rows), device=device) + start - first
                    inside = (own >= 0) & (own < squares.shape[1])
                    squares[inside.nonzero()[:, 0], own[inside]] = torch.inf
                least = squares.topk(min(k, squares.shape[1]), dim=1, largest=False)
                values = torch.cat([best, least.values], dim=1)
                best, chosen = values.topk(k, dim=1, largest=False)
                found = torch.cat([found, least.indices + first], dim=1).gather(1, chosen)
            measured = torch.stack(
                [(rows - _flat(b[found[:, i].to(b.device)], device)).norm(dim=1) for i in range(k)],
                dim=1,
            )
            measured, order = measured.sort(dim=1)
            distances.append(measured)
            indices.append(found.gather(1, order))
            shown.advance(len(rows))
    return Neighbours(torch.cat(distances), torch.cat(indices))


def within(a: Tensor, b: Tensor, radii: Tensor) -> Tensor:
    """Whether each point of ``a`` is within the radius of any point of ``b``, its edge included.

    Args:
        a, b: as in :func:`nearest`.
        radii: float64 (N_b,).

    Returns:
        bool (N_a,); a distance that is a radius but for rounding is within it.
    """
    device = float64_device(a)
    limits = radii.to(device).square()
    found = []
    for _, rows, blocks in _squares(a, b, device):
        held = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for first, squares in blocks:
            held |= (squares <= limits[first : first + squares.shape[1]]).any(dim=1)
        found.append(held)
    return torch.cat(found)


def nearness(samples: Tensor, held_out: Tensor) -> Nearness:
    """Whether samples are copies, from distances to the nearest training image.

    Args:
        samples, held_out: (N,) and (M,), of samples and of images that were not trained on; at
            least two each.
    """
    limit = torch.quantile(held_out.double(), _NEAR)
    near = float((samples < limit).double().mean())
    return Nearness(*_told(samples), *_told(held_out), near)


def _told(distances: Tensor) -> tuple[float, float, float, float]:
    """The mean, its standard error, the smallest, and the share of zeros."""
    mean, error = distances.mean(), distances.std() / len(distances) ** 0.5
    zeros = (distances == 0).double().mean()
    return float(mean), float(error), float(distances.min()), float(zeros)


def _squares(
    a: Tensor, b: Tensor, device: torch.device
) -> Iterator[tuple[int, Tensor, Iterator[tuple[int, Tensor]]]]:
    """For each block of rows of ``a``: its first index, its points (rows, D), and for each block of
    ``b`` the first index and the squared distances, less what rounding may have added."""
    values = a[0].numel()
    most = max(1, _BLOCK_BYTES // (8 * values))
    origin = _flat(b[:1], device)
    rounding = 1 - values * torch.finfo(torch.float64).eps

    def blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        centred = rows - origin
        lengths = centred.square().sum(1, keepdim=True) * rounding
        first = 0
        for block in b.split(min(_COLUMNS, most)):
            columns = _flat(block, device) - origin
            squares = lengths + columns.square().sum(1) * rounding
            yield first, torch.addmm(squares, centred, columns.T, alpha=-2)
            first += len(block)

    start = 0
    for block in a.split(min(_ROWS, most)):
        rows = _flat(block, device)
        yield start, rows, blocks(rows)
        start += len(block)


def _flat(points: Tensor, device: torch.device) -> Tensor:
    return points.detach().to(device, torch.float64).flatten(1)


def float64_device(x: Tensor) -> torch.device:
    """Where float64 is for sure: x's GPU, else the CPU."""
    return x.device if x.device.type == "cuda" else torch.device("cpu")


__all__ = ["Nearness", "Neighbours", "float64_device", "nearest", "nearness", "within"]
