"""What lies in a checkpoint file: the layouts of the official code, of its relatives, and ours."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.checkpoints.tensor_file import (
    CheckpointError,
    below,
    check_is_file,
    read_safetensors,
)

KNOWN_LAYOUTS = """\
  - a list [model, optimizer] (NCSN), [model, optimizer, epoch, step] or
    [model, optimizer, epoch, step, ema] (NCSNv2, AdversarialConsistentScoreMatching)
  - the weights alone, a dict of tensors (state_dict), as .pth or .safetensors
  - a dict with the weights under "model_state", "state_dict" or "model"
  - .safetensors files of ncsn_fast: weights, or a training checkpoint"""
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


@dataclass(frozen=True)
class Contents:
    """Weights found in a file, under the network's own names.

    Attributes:
        weights: what to load, without ``sigmas``.
        sigmas: noise levels, where the file holds them.
        source: in words, where the weights come from.
        settings: config and sampling, in files of ncsn_fast.
    """

    weights: dict[str, Tensor]
    sigmas: Tensor | None
    source: str
    settings: dict[str, Any] | None = None


def read_contents(path: str | os.PathLike[str], *, ema: bool) -> Contents:
    """Read the weights of a checkpoint of any known layout, on the CPU.

    Args:
        ema: prefer the averaged weights where the file has them.

    Raises:
        FileNotFoundError, CheckpointError
    """
    check_is_file(path)
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None
    if _is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        if metadata is not None:
            return _our_contents(path, tensors, metadata, ema)
        model, average, layout = tensors, None, "safetensors file of weights"
    else:
        model, average, layout = _recognise(path, _read_pickle(path))
    used_average = ema and average is not None
    weights = _without_prefix(model)
    if ema and average is not None:
        weights |= _without_prefix(average)
    sigmas = weights.pop("sigmas", None)
    return Contents(weights, sigmas, f"{layout}, {_which(used_average)}")


def _our_contents(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, Any], ema: bool
) -> Contents:
    kind = metadata.get("kind")
    used_average = False
    if kind == "training":
        weights = below("model.", tensors)
        average = below("ema.", tensors)
        used_average = ema and bool(average)
        if used_average:
            weights |= average
        weights.setdefault("sigmas", tensors.get("sigmas", torch.empty(0)))
    elif kind == "network":
        weights = dict(tensors)
    else:
        raise CheckpointError(f"{path} holds {kind or 'values'}, not a network")
    sigmas = weights.pop("sigmas", None)
    if sigmas is None or sigmas.numel() == 0 or not isinstance(metadata.get("config"), dict):
        raise CheckpointError(f"{path} has no noise levels or no configuration of a network")
    if "dtype" in metadata:  # stored rounded
        if metadata["dtype"] not in DTYPES:
            raise CheckpointError(f"{path} is of the unknown data type {metadata['dtype']!r}")
        weights = {key: value.to(DTYPES[metadata["dtype"]]) for key, value in weights.items()}
    source = f"ncsn_fast {kind} checkpoint, {_which(used_average)}"
    return Contents(weights, sigmas, source, metadata)


def _which(average: bool) -> str:
    return "averaged (EMA) weights" if average else "weights as trained"


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = dict(weights)
    for prefix in PREFIXES:
        if plain and all(key.startswith(prefix) for key in plain):
            plain = below(prefix, plain)
    return plain


def _is_safetensors(path: str | os.PathLike[str]) -> bool:
    if Path(path).suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    # An eight-byte length, then a JSON object: no pickle and no zip file looks like that.
    return len(start) == 9 and start[8:] == b"{" and start[6:8] == b"\0\0"


def _read_pickle(path: str | os.PathLike[str]) -> Any:
    """What torch.save wrote, as far as it consists of tensors and plain values."""
    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            _check_parts(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        names = re.findall(r"(?:GLOBAL|Unsupported class|REDUCE on) ([\w.]+)", str(error))
        if names:
            raise CheckpointError(_needs_python(path, names[0])) from error
        raise _damaged(path, "its pickle cannot be read") from error
    except Exception as error:  # torch.load meets damage with a dozen kinds of exception
        raise _damaged(path, str(error).split(". ")[0]) from error


def _check_parts(path: str | os.PathLike[str]) -> None:
    """Compare the checksums inside a file of torch.save, which torch.load itself does not do."""
    broken = []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            try:
                with archive.open(name) as part:
                    while part.read(1 << 20):
                        pass
            except zipfile.BadZipFile:
                broken.append(name)
    # All of them wrong: saved without checksums (torch.serialization.set_crc32_options).
    if broken and len(broken) < len(names):
        raise _damaged(path, f"the checksum of its part {broken[0]} does not match")


def _damaged(path: str | os.PathLike[str], why: str) -> CheckpointError:
    with open(path, "rb") as file:
        incomplete = file.read(2) == b"PK" and not zipfile.is_zipfile(path)
    why = "it ends before its table of contents" if incomplete else why
    return CheckpointError(
        f"{path} is damaged, incomplete or not a PyTorch file"
        f"{f' ({why})' if why else ''}: copy or download it again"
    )


def _needs_python(path: str | os.PathLike[str], name: str) -> str:
    return (
        f"{path} is refused: besides tensors it holds a pickled Python object ({name}), and "
        "unpickling that would run whatever code the file names. Whoever trusts the file can "
        "convert it once, where its classes are installed:\n"
        f"    states = torch.load({os.fspath(path)!r}, weights_only=False)\n"
        "    torch.save(states['model_state'], 'weights.pth')   # a list: states[0]\n"
        "and then load 'weights.pth', with the settings the object held (image_size=, activation=, "
        "sigmas=, …)"
    )


def _recognise(
    path: str | os.PathLike[str], data: Any
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None, str]:
    """Model, average and the name of the layout."""
    if isinstance(data, (list, tuple)) and data and _is_weights(data[0]):
        average = next((item for item in data[2:] if _is_weights(item)), None)
        return data[0], average, f"list of {len(data)}"
    if _is_weights(data):
        return data, None, "dict of weights"
    if isinstance(data, Mapping):
        for key in ("model_state", "state_dict", "model"):
            if _is_weights(data.get(key)):
                average = data.get("ema")
                return data[key], average if _is_weights(average) else None, f"dict, {key!r}"
    raise CheckpointError(
        f"{path} has an unknown layout. Found: {_describe(data)}.\nKnown layouts:\n{KNOWN_LAYOUTS}"
    )


def _is_weights(item: Any) -> bool:
    return (
        isinstance(item, Mapping)
        and bool(item)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in item.items())
    )


def _describe(data: Any) -> str:
    if isinstance(data, Mapping):
        kinds = [f"{key!r}: {type(value).__name__}" for key, value in list(data.items())[:8]]
        return f"a dict of {len(data)} entries ({', '.join(kinds)})"
    if isinstance(data, (list, tuple)):
        kinds = [type(item).__name__ for item in data[:8]]
        return f"a {type(data).__name__} of {len(data)} entries ({', '.join(kinds)})"
    return f"a {type(data).__name__}"


def network_of(weights: Mapping[str, Tensor], *, divided: bool) -> dict[str, Any]:
    """Which network the weights belong to: network, channels, ngf, and num_levels for NCSN v1.

    Args:
        weights: under the network's own names, without ``sigmas``.
        divided: whether a network of the v2 family divides by σ.

    Raises:
        CheckpointError: for weights of other networks, or of variants that are not supported.
    """
    if any(key.endswith("_orig") for key in weights):
        raise CheckpointError(
            "the weights are spectrally normalised (weight_orig), which is not supported: call "
            "torch.nn.utils.remove_spectral_norm on each layer where they were trained, and save "
            "them again"
        )
    begin = weights.get("begin_conv.weight")
    if begin is None or begin.ndim != 4:
        shown = ", ".join(list(weights)[:5])
        raise CheckpointError(
            f"these weights do not belong to a network of the NCSN family, which has a tensor "
            f"begin_conv.weight: found {len(weights)} tensors ({shown}, …)"
        )
    ngf, channels = begin.shape[:2]
    facts: dict[str, Any] = {"channels": channels, "ngf": ngf}
    _refuse_variants(weights, ngf)
    deeper = any(key.startswith("res5.") for key in weights)
    deepest = any(key.startswith("res31.") for key in weights)
    table = weights.get("normalizer.embed.weight")
    if table is not None:
        if deeper:
            raise CheckpointError("the weights are those of NCSNdeeper, which is not supported")
        return {**facts, "network": "NCSN", "num_levels": table.shape[0]}
    network = "NCSNv2Deepest" if deepest else "NCSNv2Deeper" if deeper else "NCSNv2"
    return {**facts, "network": network, "divided": divided}


def _refuse_variants(weights: Mapping[str, Tensor], ngf: int) -> None:
    table = weights.get("normalizer.embed.weight")
    plus = table.shape[1] == 3 * ngf if table is not None else "normalizer.alpha" in weights
    if not plus or (table is None and "normalizer.gamma" not in weights):
        raise CheckpointError(
            "the weights belong to another normalisation than InstanceNorm++, which is the only "
            "one supported"
        )
    last = "res5" if "res5.0.conv2.conv.weight" in weights else "res4"
    if f"{last}.0.conv2.conv.weight" in weights:
        raise CheckpointError(
            "the weights belong to a network without dilations (--no_dilation), which is not "
            "supported"
        )


__all__ = ["Contents", "network_of", "read_contents"]
