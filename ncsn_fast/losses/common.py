"""What the losses share: which noise and level a sample of a batch gets, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast.methods.levels import trusted_sigmas
from ncsn_fast.models.score import Score, as_score
from ncsn_fast.noise import Word
from ncsn_fast.support import checks

REDUCTIONS = ("mean", "none", "mean_values")


class NoiseKey(TypedDict):
    """Which noise a batch gets; ``**key`` is taken by noise.py and by the operations alike."""

    seed: Word
    step: Word
    sample_ids: Tensor


def draw_labels(
    num_levels: int, *, seed: Word, step: Word = 0, sample_ids: Sequence[int] | Tensor
) -> Tensor:
    """The noise level that each sample has where a loss is given no labels.

    Args:
        num_levels: L.
        seed, step, sample_ids: as given to the loss.

    Returns:
        (N,) int64, uniform on [0, L), on the device of the sample ids.

    Raises:
        ValueError: for a seed, step, sample id or number of levels out of range.
    """
    return noise_source.integers(
        num_levels, seed=seed, stream=noise_source.LEVELS, sample_ids=sample_ids, step=step
    )


def check_batch(x: Tensor, reduction: str) -> None:
    """Refuse what is no batch (N, *shape) of floating-point data, and unknown reductions.

    Raises:
        ValueError: naming what was given.
    """
    checks.choice("reduction", reduction, REDUCTIONS, "no such way to put the losses together")
    if not isinstance(x, Tensor):
        raise ValueError(f"x is {type(x).__name__}: give a tensor of floating-point data")
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}: give a batch of floating-point data"
        )


def noise_key(
    x: Tensor, seed: int | None, step: int, sample_ids: Iterable[int] | Tensor | None
) -> NoiseKey:
    """The seed, a fresh one where none is given, the step, and an id per sample of x (N, *shape).

    Raises:
        ValueError: for a seed out of range, or another number of ids than N.
    """
    seed = noise_source.chosen_seed(seed)
    if sample_ids is None:
        sample_ids = torch.arange(len(x), device=x.device)
    ids = noise_source.as_sample_ids(sample_ids, device=x.device)
    if len(ids) != len(x):
        raise ValueError(f"{len(ids)} sample_ids for {len(x)} samples: give one id per sample")
    return {"seed": seed, "step": step, "sample_ids": ids}


def place(
    net: Score | Callable[..., Tensor],
    x: Tensor,
    sigmas: Sequence[float] | Tensor,
    labels: Tensor | None,
    key: NoiseKey,
    *,
    continuous: bool = False,
) -> tuple[Score, Tensor, Tensor]:
    """The network as a Score, and for each sample of x (N, *shape) its σ and its label, both (N,).

    σ has the precision of the data, but at least float32; labels are int64.

    Raises:
        ValueError: for labels or levels that do not fit the network or the batch.
    """
    levels = trusted_sigmas(sigmas).to(x.device, torch.promote_types(x.dtype, torch.float32))
    score = _score(net, levels)
    if continuous:
        _check_continuous(score, levels, labels)
    elif labels is not None:
        labels = _checked_labels(labels, len(levels), x)
        return score, levels[labels], labels
    return score, *draw_levels(levels, key, continuous=continuous)


def draw_levels(sigmas: Tensor, key: NoiseKey, *, continuous: bool) -> tuple[Tensor, Tensor]:
    """The σ of each sample and its label, both (N,): a level of the ladder, or any σ between."""
    labels = draw_labels(len(sigmas), **key)
    if not continuous:
        return sigmas[labels], labels
    u = noise_source.uniform((), stream=noise_source.LEVELS, dtype=sigmas.dtype, **key)
    # The words that make u made the labels: floor(u·L) is the part of the range σ lies in.
    return sigmas[0] * (sigmas[-1] / sigmas[0]) ** u, labels


def reduce(losses: Tensor, reduction: str, x: Tensor) -> Tensor:
    """Losses per sample, (N,), put together; see :func:`ncsn_fast.dsm_loss`."""
    if reduction == "none":
        return losses
    mean = losses.mean()
    return mean if reduction == "mean" else mean / x[0].numel()


def _score(net: Score | Callable[..., Tensor], levels: Tensor) -> Score:
    """The network as a score that was trained, by label, on these very levels."""
    score = as_score(net, levels)
    ladder = score.sigmas
    if score.condition != "label" or ladder is None:
        return score
    on_host = ladder.device.type == levels.device.type == "cpu"
    same = len(ladder) == len(levels)
    if same and on_host:
        same = torch.allclose(ladder.double(), levels.double(), rtol=1e-5, atol=0)
    if not same:
        raise ValueError(
            f"{len(levels)} sigmas from {float(levels[0]):g} for a network whose labels count "
            f"{len(ladder)} levels from {float(ladder[0]):g}: train it on its own levels"
        )
    return score


def _check_continuous(score: Score, levels: Tensor, labels: Tensor | None) -> None:
    if labels is not None:
        raise ValueError(
            "labels name levels of the ladder, continuous=True draws σ between them: give one of "
            "the two"
        )
    if score.condition == "label":
        raise ValueError(
            f"continuous=True draws σ between the levels, but this network knows only the labels "
            f"of its {len(levels)} levels: leave continuous out, or give a network that takes any "
            'σ (nf.NCSNv2, or nf.Score(fn, kind, "sigma"))'
        )
    if len(levels) < 2:
        raise ValueError("continuous=True draws σ between the ends of sigmas: give at least two")


def _checked_labels(labels: Tensor, num_levels: int, x: Tensor) -> Tensor:
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels are {type(labels).__name__}: needed is a tensor of integers")
    if labels.shape != x.shape[:1] or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: "
            f"needed are {len(x)} integers, the level of each sample"
        )
    if x.device.type == "cpu" and not bool(((labels >= 0) & (labels < num_levels)).all()):
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())}: "
            f"levels count from 0 to {num_levels - 1}"
        )
    return labels.long()


__all__ = ["NoiseKey", "check_batch", "draw_labels", "draw_levels", "noise_key", "place", "reduce"]
