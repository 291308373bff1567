"""Where the samples of a data set lie while a network is trained on them, and what they are.

Samples are taken by index, so that a batch is the same wherever they lie: on the network's device,
in the host's memory, in a memory-mapped file or in a Dataset that reads them when asked.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

Data = Tensor | np.ndarray | Dataset[Any]

# A Dataset of at most this size is read once and held; of a larger one only some samples go into
# the fingerprint. A constant, so that a run is resumed on a machine with other memory.
HELD_BYTES = 4 << 30
_SPREAD = 64
_BLOCK_BYTES = 64 << 20
_DARK = 0.25  # of white
_NOT_TAKEN = "the data are a {}, needed is a tensor, an array or a map-style Dataset"
_log = logging.getLogger("ncsn_fast")


class Samples(ABC):
    """N samples of one shape, uint8 (8-bit images) or float32.

    Attributes:
        data: what holds them.
        shape: of one sample.
        dtype: torch.uint8 or torch.float32.
        where: in words.
        hashed_whole: whether every sample goes into the fingerprint.
    """

    data: Data
    where: str
    hashed_whole = True

    def __init__(self, length: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._length, self.shape, self.dtype = length, shape, dtype

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        return len(self) * math.prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def take(self, indices: Tensor) -> Tensor:
        """The samples of these indices, int64 (B,) on the CPU: (B, *shape), where they lie."""

    def blocks(self) -> Iterator[Tensor]:
        """Indices of all samples, a block of memory at a time."""
        number = max(1, _BLOCK_BYTES * len(self) // self.nbytes)
        return iter(torch.arange(len(self), device="cpu").split(number))

    def spread(self) -> Iterator[Tensor]:
        """Indices of at most 64 samples, evenly spread, one at a time."""
        number = min(_SPREAD, len(self))
        return iter((torch.arange(number, device="cpu") * len(self) // number).split(1))


class _TensorSamples(Samples):
    def __init__(self, data: Tensor) -> None:
        data = data.detach()
        self.data: Tensor = data if data.dtype == torch.uint8 else data.float()
        super().__init__(len(data), tuple(data.shape[1:]), self.data.dtype)
        self.where = f"held on {data.device}"

    def take(self, indices: Tensor) -> Tensor:
        if self.data.is_cuda:  # from pinned memory a copy does not make the host wait
            indices = indices.pin_memory().to(self.data.device, non_blocking=True)
        return self.data.index_select(0, indices)


class _ArraySamples(Samples):
    def __init__(self, data: np.ndarray) -> None:
        self.data: np.ndarray = data
        dtype = torch.uint8 if data.dtype == np.uint8 else torch.float32
        super().__init__(len(data), data.shape[1:], dtype)
        self.where = "held on cpu as a NumPy array"
        if isinstance(data, np.memmap):
            self.where = f"memory-mapped from {data.filename}"

    def take(self, indices: Tensor) -> Tensor:
        return _from_numpy(self.data[indices.numpy()])


class _DatasetSamples(Samples):
    """Reads a sample when it is asked for, and refuses one that does not fit."""

    def __init__(self, data: Dataset[Any], length: int, shape: tuple[int, ...]) -> None:
        self.data: Dataset[Any] = data
        self.where = "read from the Dataset"
        item = data[0]
        first = _as_tensor(item, 0)
        super().__init__(length, shape, _check_kind(first, shape, "sample 0 is", shape))
        self.hashed_whole = self.nbytes <= HELD_BYTES
        pairs = isinstance(item, tuple | list) and len(item) > 1
        if pairs and getattr(item[-1], "shape", ()) == shape != ():
            _log.warning(
                "the Dataset gives %d values of the shape of a sample each time it is asked: of "
                "them the first is taken",
                len(item),
            )
        if not torch.equal(first, _as_tensor(data[0], 0)):
            _log.warning(
                "the Dataset gives another sample 0 each time it is asked: batches will not repeat "
                "for the same seed, and the run cannot be resumed; leave random transforms to "
                "flip and dequantize"
            )

    def take(self, indices: Tensor) -> Tensor:
        return torch.stack([self._read(index) for index in indices.tolist()])

    def _read(self, index: int) -> Tensor:
        try:
            item = self.data[index]
        except Exception as error:  # whatever a user's Dataset raises
            raise RuntimeError(f"sample {index} of the data set cannot be read: {error}") from error
        sample = _as_tensor(item, index)
        if _check_kind(sample, self.shape, f"sample {index} is", self.shape) != self.dtype:
            raise ValueError(
                f"sample {index} of the data set is {sample.dtype}, sample 0 is {self.dtype}: "
                "give all of them as uint8, or all as floats"
            )
        sample = sample.cpu().to(self.dtype)
        _check_values(sample, self.shape, f"sample {index}")
        return sample


def open_samples(data: Data, shape: tuple[int, ...] | None = None) -> Samples:
    """The samples of a tensor, array or Dataset, where they lie.

    Args:
        shape: of one sample; None takes that of the data.

    Raises:
        ValueError: if there are none, or they are not of this shape, floating point or (images)
            uint8.
    """
    if remedy := _remedy(data, shape):
        raise ValueError(f"{_NOT_TAKEN.format(type(data).__name__)}: {remedy}")
    if isinstance(data, Tensor | np.ndarray):
        length = len(data) if data.ndim else 0
    elif isinstance(data, Sized) and not isinstance(data, IterableDataset):
        length = len(data)
    else:
        raise ValueError("the data set has no length: give a tensor or a map-style Dataset")
    if length == 0:
        raise ValueError("the data set is empty")
    shape = _shape(data) if shape is None else shape
    if not isinstance(data, Tensor | np.ndarray):
        return _DatasetSamples(data, length, shape)
    _check_kind(data, (length, *shape), "the data are", shape)
    return _TensorSamples(data) if isinstance(data, Tensor) else _ArraySamples(data)


def _shape(data: Any) -> tuple[int, ...]:
    """Of one sample of data that are not empty."""
    if isinstance(data, Tensor | np.ndarray):
        if data.ndim < 2:
            raise ValueError(f"data have shape {tuple(data.shape)}: give (N, *shape of one sample)")
        return tuple(data.shape[1:])
    return tuple(_as_tensor(data[0], 0).shape)


def _remedy(data: object, shape: tuple[int, ...] | None) -> str | None:
    """What to give instead of something that is no data set, but near to one."""
    if isinstance(data, DataLoader):
        return "give loader.dataset; order and size of the batches are settings of the run"
    if isinstance(data, str | os.PathLike):
        return "open it first, as numpy.load does, or use ncsn-fast train --data"
    if isinstance(data, Mapping):
        return f"give one of its entries ({', '.join(map(str, list(data)[:5]))})"
    if isinstance(data, Tensor) and data.is_nested:
        return "bring its parts to one shape and torch.stack them"
    if isinstance(data, Tensor) and data.layout != torch.strided:
        return "call to_dense() on it"
    if isinstance(data, Tensor) and data.is_meta:
        return "on the device meta there are no values"
    if isinstance(data, np.ma.MaskedArray):
        return "say what the masked values are, as data.filled(0) does"
    if isinstance(data, list | tuple) and data and getattr(data[0], "shape", ())[1:] == shape:
        return "of (images, labels) give the images, of batches torch.cat(batches)"
    if isinstance(data, Sized) and not hasattr(data, "__getitem__"):
        return "batch k of a run needs its samples by index"
    return None


def place(samples: Samples, device: torch.device) -> tuple[Samples, str]:
    """Bring samples to where they are best taken from.

    A GPU holds what fits into half of its free memory. On the CPU tensors and arrays, mapped or
    not, stay as they are. A Dataset of at most 4 GiB that does not go to a GPU is held on the CPU.

    Args:
        samples: of :func:`open_samples`.
        device: the network's.

    Returns:
        The samples and, in words, where they lie and why.
    """
    target, why = _decide(samples, device)
    if target is not None:
        samples = _TensorSamples(_load(samples, target))
    return samples, f"{samples.where} ({_size(samples.nbytes)}): {why}"


def fingerprint(samples: Samples, *, whole: bool) -> str:
    """SHA-256 of the samples, whose values are checked on the way, a block at a time.

    Args:
        samples: wherever they lie.
        whole: hash all of them; else number, shape and data type, and 64 samples evenly spread.

    Raises:
        ValueError: for values that are not finite or, in images, outside [0, 1].
    """
    digest = hashlib.sha256()
    if not whole:
        digest.update(f"{len(samples)} {samples.shape} {samples.dtype}".encode())
    for indices in samples.blocks() if whole else samples.spread():
        block = samples.take(indices).cpu().contiguous()
        _check_values(block, samples.shape, "the data")
        digest.update(block.numpy().data)
    return digest.hexdigest()


def remarks(samples: Samples) -> list[str]:
    """What may not be meant and is not seen before the network is trained, in sentences.

    Nothing of it is an error: one image is a data set, and so is the night sky.
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


def _decide(samples: Samples, device: torch.device) -> tuple[torch.device | None, str]:
    """The device to copy the samples to, None to leave them, and why."""
    if isinstance(samples.data, Tensor) and samples.data.device == device:
        return None, "where the network is"
    why = "used from there"
    if device.type != "cpu":
        budget = _free_bytes(device) / 2
        if samples.nbytes <= budget:
            return device, f"fits into half of the free memory of {device}"
        why = f"more than half of the free memory of {device}, {_size(budget)}"
    if not isinstance(samples, _DatasetSamples):
        return None, why
    if samples.hashed_whole:
        return torch.device("cpu"), f"a Dataset of at most {_size(HELD_BYTES)}"
    return None, f"a Dataset of more than {_size(HELD_BYTES)}"


def _free_bytes(device: torch.device) -> float:
    """Free memory of a GPU; of other devices it is not known."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def _load(samples: Samples, device: torch.device) -> Tensor:
    held = torch.empty((len(samples), *samples.shape), dtype=samples.dtype, device=device)
    for indices in samples.blocks():
        held[int(indices[0]) : int(indices[-1]) + 1] = samples.take(indices)
    return held


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


def _size(nbytes: float) -> str:
    unit, name = (1 << 30, "GiB") if nbytes >= 1 << 30 else (1 << 20, "MiB")
    return f"{nbytes / unit:.3g} {name}"


def _as_tensor(item: Any, index: int) -> Tensor:
    """The sample of an item of a Dataset: the item, or the first of (sample, label)."""
    sample = item[0] if isinstance(item, tuple | list) and item else item
    if isinstance(sample, Tensor):
        return sample.detach()
    if isinstance(sample, np.ndarray) and _kept_as(sample) is not None:
        return _from_numpy(sample)
    kind = f"{type(sample).__name__} {getattr(sample, 'dtype', '')}".strip()
    instead = "for images of PIL: torchvision.transforms.ToTensor()"
    if isinstance(sample, Mapping):
        instead = (
            f"its entries are {', '.join(map(str, list(sample)[:5]))}: give a Dataset whose items "
            "are the images alone, or torch.stack of them"
        )
    raise ValueError(
        f"the data set gives {kind}, needed are tensors or arrays of values in [0, 1] or of uint8 "
        f"(sample {index}; {instead})"
    )


def _from_numpy(array: np.ndarray) -> Tensor:
    dtype = np.uint8 if array.dtype == np.uint8 else np.float32
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def _kept_as(samples: Tensor | np.ndarray) -> torch.dtype | None:
    """uint8 for uint8, float32 for floating point, None for what is not taken."""
    if isinstance(samples, Tensor):
        eight_bit, floating = samples.dtype == torch.uint8, samples.is_floating_point()
    else:
        eight_bit = samples.dtype == np.uint8
        floating = np.issubdtype(samples.dtype, np.floating)
    if eight_bit:
        return torch.uint8
    return torch.float32 if floating else None


def _check_kind(
    x: Tensor | np.ndarray, wanted: tuple[int, ...], what: str, sample: tuple[int, ...]
) -> torch.dtype:
    """Refuse what has another shape or data type; return the type it is kept in."""
    kept, points = _kept_as(x), len(sample) != 3
    if kept is None or tuple(x.shape) != wanted or (kept == torch.uint8 and points):
        mend = ""
        if "complex" in str(x.dtype):
            mend = ": give real and imaginary part as channels, torch.cat([x.real, x.imag], 1)"
        raise ValueError(
            f"{what} {x.dtype} of shape {tuple(x.shape)}; the network takes floating-point "
            f"{'' if points else 'or uint8 '}samples of shape {sample}{mend}"
        )
    return kept


def _check_values(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    if x.dtype == torch.uint8:
        return
    low, high = (float(value) for value in torch.aminmax(x))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"values of {what} are not finite: clean them first")
    if len(shape) == 3 and not (low >= 0 and high <= 1):
        raise ValueError(
            f"values of {what} lie in [{low:g}, {high:g}]: give images in [0, 1] (divide 8-bit "
            "images by 255, or give uint8; of x in [-1, 1] give (x + 1) / 2, which a network with "
            "rescaled=True sees as x); transforms of the network are applied later"
        )


__all__ = [
    "HELD_BYTES",
    "Data",
    "Samples",
    "dark",
    "fingerprint",
    "open_samples",
    "place",
    "remarks",
]
