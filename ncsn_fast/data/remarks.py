"""What somebody may not have meant by a data set, and would not see before the network is trained.

Nothing of it is an error: one image is a data set, and so is the night sky.
"""

from __future__ import annotations

import torch

from ncsn_fast.data.samples import Samples

_DARK = 0.25


def remarks(samples: Samples) -> list[str]:
    """Sentences about the number and the values of samples; none where all is as usual.

    Usually the first block of samples is enough; all are looked at while they are equal or dark. A
    Dataset that is too large to be held is not read for this.
    """
    if not samples.hashed_whole:
        return []
    largest, equal = _look(samples)
    found = []
    if equal:
        what = (
            "there is one sample"
            if len(samples) == 1
            else f"all {len(samples):,} samples are equal"
        )
        found.append(f"{what}: a network learns to repeat it, and nothing else")
    if told := dark(largest, samples.dtype, len(samples.shape) == 3):
        found.append(told)
    return found


def dark(largest: float, dtype: torch.dtype, images: bool = True) -> str:
    """What is to be said of images whose largest value is this, "" if nothing.

    Args:
        largest: from 0 to 255 for uint8, else from 0 to 1.
    """
    white = 255 if dtype == torch.uint8 else 1
    if not images or largest > _DARK * white:
        return ""
    if largest == 0:
        return "all pixels are 0: the images are black"
    return (
        f"the largest value is {largest:g}, where white is {white}: if it should be white, divide "
        f"the images by {largest:g} as floating-point numbers, or they are learned as dark ones"
    )


def _look(samples: Samples) -> tuple[float, bool]:
    """The largest value and whether all samples are equal, as far as that takes no long look."""
    largest, equal, first = -torch.inf, True, None
    bright = _DARK * (255 if samples.dtype == torch.uint8 else 1)
    for indices in samples.blocks():
        block = samples.take(indices)
        first = block[:1] if first is None else first
        equal = equal and bool((block == first).all())
        largest = max(largest, float(block.max()))
        if not equal and (largest > bright or len(samples.shape) != 3):
            break
    return largest, equal


__all__ = ["dark", "remarks"]
