"""Distances between the points of a data set of any size, in blocks and in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.data.pixels import unit_interval
from ncsn_fast.data.samples import HELD_BYTES, Data, Samples, open_samples
from ncsn_fast.models.space import Space
from ncsn_fast.support.checks import count
from ncsn_fast.support.progress import Progress, ProgressWish

_BLOCK_BYTES, _BLOCK_ROWS = 256 << 20, 1024
_BINS = 2048


@dataclass(frozen=True, eq=False)
class Distances:
    """Euclidean distances between the points of a data set, in model space.

    Attributes:
        largest: between two points.
        pair: which two, indices into the data.
        core: the largest without the points farthest from the mean: one in a thousand, at least
            one. Far below ``largest`` where a few outliers decide that. NaN for two points.
        points, of: how many points were looked at, of how many there are.
        dimension: values per point, D.
        low, high: the smallest and the largest value.
        copies: points that equal another one looked at.
        counts: int64 (B,) on the CPU, pairs of points by distance, in bins from 0.
        width: of such a bin.
    """

    largest: float
    pair: tuple[int, int]
    core: float
    points: int
    of: int
    dimension: int
    low: float
    high: float
    copies: int
    counts: Tensor
    width: float

    @property
    def exact(self) -> bool:
        """Whether all points were looked at."""
        return self.points == self.of

    def __str__(self) -> str:
        if self.exact:
            return f"the largest distance between any two of all {self.of:,} points: exact"
        return (
            f"the largest distance among {self.points:,} points drawn at random from {self.of:,}: "
            "that of all may be a little larger"
        )


def measure_distances(
    data: Data,
    *,
    max_points: int = 10_000,
    seed: int = 0,
    space: Space | None = None,
    device: torch.device | str | None = None,
    progress: ProgressWish = None,
) -> Distances:
    """The distances between all points of a data set, or between random ones.

    At most ``max_points`` and 4 GiB of points are held, as they are stored (8-bit images as
    bytes); blocks of at most 256 MiB of them are compared at a time.

    Args:
        data: (N, *shape) tensor on any device or array, memory-mapped or not, floating point or
            (images) uint8; or a map-style Dataset of such samples or of (sample, label) pairs.
        max_points: of more points this many random ones are taken.
        seed: which ones.
        space: take the data from [0, 1] to this model space first; None: they are there.
        device: where to compute; default: the data's, or the CPU.
        progress: True for a bar, or a function (done, total).

    Raises:
        ValueError: for fewer than two points, data of no known kind, or values that are not finite
            or, where they are to be transformed, outside [0, 1].
    """
    max_points = count("max_points", max_points)
    samples = open_samples(data)
    if len(samples) < 2 or max_points < 2:
        raise ValueError(
            f"{len(samples)} data points, max_points = {max_points}: a distance needs at least two"
        )
    if device is None:
        device = data.device if isinstance(data, Tensor) else "cpu"
    indices = _chosen(samples, max_points, seed)
    with Progress(progress, total=2 * len(indices), unit="point") as shown:
        held = _held(samples, indices, torch.device(device), shown)
        points = _Points(held, torch.device(device), space or Space())
        return _compare(points, indices, len(samples), shown)


def _chosen(samples: Samples, max_points: int, seed: int) -> Tensor:
    """Indices of all points, or of as many random ones as there may be, ascending."""
    most = min(max_points, max(2, HELD_BYTES * len(samples) // max(1, samples.nbytes)))
    if len(samples) <= most:
        return torch.arange(len(samples), device="cpu")
    # A file that is read in order is read fast.
    picked = np.random.default_rng(seed).choice(len(samples), most, replace=False)
    return torch.from_numpy(np.sort(picked))


def _held(samples: Samples, indices: Tensor, device: torch.device, shown: Progress) -> Tensor:
    """The points of these indices as they are stored."""
    if isinstance(samples.data, Tensor) and len(indices) == len(samples):
        shown.advance(len(indices))
        return samples.data
    held = torch.empty((len(indices), *samples.shape), dtype=samples.dtype, device=device)
    for part in torch.arange(len(indices), device="cpu").split(_rows(math.prod(samples.shape))):
        held[int(part[0]) : int(part[-1]) + 1] = samples.take(indices[part])
        shown.advance(len(part))
    return held


def _rows(dimension: int) -> int:
    return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * max(1, dimension))))


class _Points:
    """Points in model space, a block at a time, around their mean.

    Centring loses no distance and keeps digits: |a|² + |b|² - 2ab cancels badly far from 0.
    """

    def __init__(self, held: Tensor, device: torch.device, space: Space) -> None:
        self._blocks = held.split(_rows(math.prod(held.shape[1:])))
        self._device, self._space = device, space
        self.dimension = math.prod(held.shape[1:])
        self.length, self.low, self.high = len(held), math.inf, -math.inf
        total = torch.zeros(self.dimension, device=device)
        seen: set[int] = set()
        for index in range(len(self._blocks)):
            block = self.block(index)
            low, high = (float(value) for value in block.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError("the data hold values that are not finite: clean them first")
            self.low, self.high = min(self.low, low), max(self.high, high)
            total += block.sum(0)
            seen.update(hash(row.tobytes()) for row in self._blocks[index].cpu().numpy())
        self.copies = self.length - len(seen)
        self._mean = total / self.length

    def __len__(self) -> int:
        return len(self._blocks)

    def block(self, index: int) -> Tensor:
        """(rows, D) float32."""
        x = self._blocks[index].to(self._device)
        x = unit_interval(x) if x.dtype == torch.uint8 else x.float()
        if not self._space.plain:
            low, high = (float(value) for value in x.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"the data hold values from {low:g} to {high:g}: rescaled and logit_transform "
                    "are for data in [0, 1]; leave them out for data in model space"
                )
            x = self._space.enter(x)
        return x.flatten(1)

    def centred(self, index: int) -> Tensor:
        return self.block(index) - self._mean

    def distance(self, one: int, other: int) -> float:
        """Between two points, in float64."""
        rows = len(self._blocks[0])
        a, b = (self.block(k // rows)[k % rows].cpu().double() for k in (one, other))
        return float((a - b).norm())


class _Pairs:
    """What is known of the pairs of points that have been looked at.

    Attributes:
        best: the largest squared distance, and of which two points.
        core: the largest squared distance of two points that are not among the farthest.
        counts: int64 (B,), pairs by distance, in bins from 0 to ``upper``.
        has_core: whether there are such points: two points alone have none.
    """

    def __init__(self, points: _Points) -> None:
        self._squares = torch.cat([points.centred(i).square().sum(1) for i in range(len(points))])
        # Those farthest from the mean; with two points nothing would be left.
        outer = max(1, points.length // 1000) if points.length > 2 else 0
        self._inner = torch.ones_like(self._squares, dtype=torch.bool)
        self._inner[self._squares.topk(outer).indices] = False
        self.has_core = outer > 0
        self.upper = 2.001 * math.sqrt(float(self._squares.max())) or 1.0
        self.counts = torch.zeros(_BINS, dtype=torch.int64, device="cpu")
        self.core, self.best = 0.0, (-1.0, 0, 0)

    def look(self, first: Tensor, second: Tensor, start: int, other: int) -> None:
        """At the pairs of two blocks, (rows, D) each, of points from these positions on."""
        rows, columns = slice(start, start + len(first)), slice(other, other + len(second))
        with torch.autocast(first.device.type, enabled=False):  # 16 bits would lose the distances
            products = first @ second.T
        found = self._squares[rows, None] + self._squares[None, columns] - 2 * products
        found.clamp_(min=0)
        value, place = found.flatten().max(0)
        if float(value) > self.best[0]:
            row, column = divmod(int(place), len(second))
            self.best = (float(value), start + row, other + column)
        both = self._inner[rows, None] & self._inner[None, columns]
        self.core = max(self.core, float(found.where(both, 0).max()))
        self.counts += _histogram(found, self.upper, diagonal=start == other)


def _compare(points: _Points, indices: Tensor, of: int, shown: Progress) -> Distances:
    pairs = _Pairs(points)
    start = 0
    for i in range(len(points)):
        first, other = points.centred(i), start
        for j in range(i, len(points)):
            second = first if i == j else points.centred(j)
            pairs.look(first, second, start, other)
            other += len(second)
        start += len(first)
        shown.advance(len(first))
    _, one, other = pairs.best
    return Distances(
        # Rounding of the products is left behind: the pair that was found is measured again.
        largest=points.distance(one, other),
        pair=(int(indices[one]), int(indices[other])),
        core=math.sqrt(pairs.core) if pairs.has_core else math.nan,
        points=points.length,
        of=of,
        dimension=points.dimension,
        low=points.low,
        high=points.high,
        copies=points.copies,
        counts=pairs.counts,
        width=pairs.upper / _BINS,
    )


def _histogram(squares: Tensor, upper: float, *, diagonal: bool) -> Tensor:
    """Pairs by distance; of a block with itself each pair once, and no point with itself."""
    if diagonal:
        squares = squares[torch.ones_like(squares, dtype=torch.bool).triu(1)]
    return torch.histc(squares.sqrt(), _BINS, 0, upper).to("cpu", torch.int64)


__all__ = ["Distances", "measure_distances"]
