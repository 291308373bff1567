"""The Inception network of FID, as torch-fidelity builds it, with weights from a local file.

Nothing is downloaded. A file is known by its SHA-256; it is read as tensors and nothing else, and
the network is given these: torch-fidelity's own way of reading would run what a pickle names.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast.checkpoints.torch_file import read_torch
from ncsn_fast.device.precision import float32_mode
from ncsn_fast.support.files import sha256_of
from ncsn_fast.support.parsers import shortened

FEATURES = 2048
# The file of torch-fidelity and of pytorch-fid, made from TensorFlow's of 2015-12-05, 95,628,359
# bytes. Both names end in the beginning of this hash.
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_WHERE = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
RESIZE = "299×299, bilinear as in TensorFlow 1, not antialiased"
_PACKAGE = "torch-fidelity"
_LAYERS = ["2048", "logits_unbiased"]


class Weights(NamedTuple):
    """Which weights a network has: their ``file``, its ``sha256``, and whether that is the
    ``published`` one, without which figures are no FID of anybody else's."""

    file: str
    sha256: str
    published: bool


class Seen(NamedTuple):
    """``features`` float32 (N, 2048), of the last pooling, and ``logits`` float32 (N, 1008), of the
    classes, without bias as the Inception score takes them; on the network's device."""

    features: Tensor
    logits: Tensor


class Inception:
    """The network, in float32.

    Attributes:
        weights: which.
        package: torch-fidelity and its version.
        device: where it is.
    """

    def __init__(self, net: torch.nn.Module, weights: Weights, device: torch.device) -> None:
        self._net = net.to(device)
        self.weights, self.device = weights, device
        self.package = f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)}"

    def __call__(self, images: Tensor) -> Seen:
        """What it sees in uint8 (N, C, H, W), C = 1 (grey: three equal channels) or 3, of any size;
        they are resized inside."""
        x = images.to(self.device).expand(-1, 3, -1, -1)
        with torch.no_grad(), float32_mode("fp32", self.device):
            return Seen(*self._net(x))


def load_inception(
    path: str | os.PathLike[str], device: torch.device | str, sha256: str = PUBLISHED
) -> Inception:
    """Build the network and put the weights of a file into it.

    Args:
        path: the file, by torch.save.
        sha256: what it has to be, 64 hexadecimal digits; the published file's, unless the caller
            means another.

    Raises:
        FileNotFoundError: where there is no such file, with where it is to be had.
        ValueError: for another file than is meant, one that is damaged or holds other things than
            the network's tensors, and where torch-fidelity is not there.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no file {path}: it has to be {_WHERE} (96 MB), which is never fetched "
            "unasked; download it once, and give its place"
        )
    build = _builder()
    found = sha256_of(path)
    if found != sha256.lower():
        meant = "of the published weights of FID" if sha256 == PUBLISHED else "asked for"
        raise ValueError(
            f"{path} has the SHA-256 {found}, that {meant} is {sha256}: download {_WHERE}, or, if "
            f"other weights are meant, say so by inception_sha256={found}; the figures are then "
            "no FID that others have"
        )
    net = _filled(build, path)
    return Inception(net, Weights(os.fspath(path), found, found == PUBLISHED), torch.device(device))


def _builder() -> Any:
    """torch-fidelity's class of the network."""
    belongs = (
        f"pip install {_PACKAGE}, and the torchvision that belongs to torch {torch.__version__}"
    )
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ValueError(
            f"FID takes {_PACKAGE}, which cannot be imported ({error}): {belongs}"
        ) from (error)
    except Exception as error:  # a torchvision of another torch fails in ways of its own
        raise ValueError(
            f"FID takes {_PACKAGE}, whose import ends in {type(error).__name__}: "
            f"{shortened(error)}. Where torch is a build for CPUs torchvision has to be too: "
            f"{belongs}, from the place that torch is from"
        ) from error
    return FeatureExtractorInceptionV3


def _filled(build: Any, path: str | os.PathLike[str]) -> torch.nn.Module:
    """The network with the tensors of a file."""
    state, _ = read_torch(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds other things than named tensors: it is no file of weights")
    # It takes a file alone, and would unpickle what is in it: so it is given one of our writing.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        net: torch.nn.Module = build("inception", _LAYERS, feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        raise ValueError(f"{path} is not of FID's Inception network: {shortened(error)}") from error
    return net


__all__ = ["FEATURES", "PUBLISHED", "RESIZE", "Inception", "Seen", "Weights", "load_inception"]
