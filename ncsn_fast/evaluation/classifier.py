"""Small classifiers of grey images, by which generated ones are judged, and their files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ncsn_fast.checkpoints.tensor_file import CheckpointError, read_tensors, write_tensors
from ncsn_fast.support.checks import printable
from ncsn_fast.support.parsers import shown

_ASSETS = Path(__file__).parents[1] / "assets"
_NAMES = ("digits", "mnist", "fashion")
CLASSIFIERS = {name: _ASSETS / f"classifier_{name}.safetensors" for name in _NAMES}
_KIND = "classifier"
# Channels and stride of each convolution: 122,000 weights, 7 million products for 28×28.
_LAYERS = ((24, 1), (32, 2), (48, 1), (64, 2), (64, 1), (64, 2))
_LEAST_SIDE, _MOST_CLASSES = 8, 1000


class Classifier(nn.Module):
    """Six 3×3 convolutions with batch norms and ReLU, the mean over positions, a linear layer.

    Args:
        shape: (C, H, W) of an image; H and W of at least 8.
        classes: the names of the classes, in the order of their labels.

    Attributes:
        shape, classes: as given.
        width: number of features.
    """

    def __init__(self, shape: Sequence[int], classes: Sequence[str]) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), tuple(classes)
        layers: list[nn.Module] = []
        channels = self.shape[0]
        for wide, stride in _LAYERS:
            conv = nn.Conv2d(channels, wide, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        self.width = channels
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, len(self.classes))

    def features(self, images: Tensor) -> Tensor:
        """(N, width) of images float32 (N, C, H, W) in [0, 1]."""
        return self.body(2 * images - 1).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """The logits (N, K) of images float32 (N, C, H, W) in [0, 1]."""
        return self.head(self.features(images))


def save_classifier(
    path: str | os.PathLike[str], net: Classifier, facts: Mapping[str, Any]
) -> None:
    """Write a classifier to one safetensors file, its weights rounded to float16.

    Args:
        path: the file; its folder must exist.
        facts: JSON values that say how it was trained and how good it is.
    """
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    about = {"kind": _KIND, "shape": list(net.shape), "classes": list(net.classes)}
    write_tensors(path, halves, {**about, "facts": dict(facts)})


def load_classifier(name: str | os.PathLike[str]) -> Classifier:
    """Read a classifier.

    Args:
        name: "digits", "mnist" or "fashion", which come along, or a file.

    Returns:
        The network in float32, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: where there is no such file.
        CheckpointError: for a file that is damaged or of another kind, a ValueError.
    """
    path = CLASSIFIERS.get(str(name), Path(name))
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no classifier {printable(name)}: give {', '.join(CLASSIFIERS)} or a file"
        )
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != _KIND:
        raise CheckpointError(
            f"{path} is no classifier (its kind: {shown(metadata.get('kind'))}): give "
            f"{', '.join(CLASSIFIERS)} or a file of benchmarks.studies.classifier"
        )
    net = Classifier(_sizes(path, metadata.get("shape")), _names(path, metadata.get("classes")))
    for key, tensor in net.state_dict().items():
        there = tensors.get(key)
        kind = None if there is None else (there.shape, there.is_floating_point())
        if kind != (tensor.shape, tensor.is_floating_point()):
            raise CheckpointError(f"{path}: its weights {key} are missing or of another shape")
        if not bool(torch.isfinite(tensors[key]).all()):
            raise CheckpointError(f"{path}: its weights {key} are not finite")
    net.load_state_dict({key: tensors[key] for key in net.state_dict()})
    return net.eval().requires_grad_(False)


def _sizes(path: Path, shape: Any) -> list[int]:
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)
    if not whole or not (1 <= shape[0] <= 4 and min(shape[1:]) >= _LEAST_SIDE):
        raise CheckpointError(f"{path}: shape {shown(shape)} is none of an image")
    return shape


def _names(path: Path, classes: Any) -> list[str]:
    named = isinstance(classes, list) and all(type(word) is str for word in classes)
    if not named or not 2 <= len(classes) <= _MOST_CLASSES:
        raise CheckpointError(f"{path}: classes {shown(classes)} are no names of classes")
    return classes


__all__ = ["CLASSIFIERS", "Classifier", "load_classifier", "save_classifier"]
