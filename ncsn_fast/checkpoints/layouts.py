"""What lies in a checkpoint file: the layouts of the official code, of its relatives, and ours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ncsn_fast.checkpoints.copies import (
    LEVELS,
    RAW,
    Copy,
    Found,
    check_fits,
    one_of,
    paired,
    search,
)
from ncsn_fast.checkpoints.first_bytes import is_safetensors, refuse_other_files
from ncsn_fast.checkpoints.header import FLOATS, check_header, check_levels, check_weights
from ncsn_fast.checkpoints.tensor_file import (
    CheckpointError,
    below,
    check_is_file,
    read_safetensors,
)
from ncsn_fast.checkpoints.torch_file import read_torch
from ncsn_fast.support.parsers import shown

KNOWN_LAYOUTS = """\
  - a list [model, optimizer] (NCSN), [model, optimizer, epoch, step] or
    [model, optimizer, epoch, step, ema] (NCSNv2, AdversarialConsistentScoreMatching)
  - the weights alone, a dict of tensors (state_dict), as .pth or .safetensors
  - a dict with the weights under a name of its own ("model_state", "state_dict", "model", …) and,
    where there are some, averaged weights under another ("ema", "model_ema", "params_ema", …)
  - .safetensors files of ncsn_fast: weights, or a training checkpoint"""
Averaged = bool | Literal["partly"]
# What the header of a network of ours says of its weights, in words.
_WHICH: dict[Any, str] = {
    None: "weights as saved",
    False: "weights as trained",
    True: "averaged (EMA) weights",
    "partly": "averaged (EMA) weights, but some tensors, which have no average, as trained",
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}


@dataclass(frozen=True)
class Contents:
    """Weights found in a file, under the network's own names.

    Attributes:
        weights: what to load, without ``sigmas``.
        sigmas: noise levels, where the file holds them.
        place: in words, the layout and where in it they lie.
        which: in words, whether they are averaged or as trained.
        averaged: whether the weights are averaged, "partly" where only some of them are; None
            where the file does not say.
        both: whether it holds weights as trained beside averaged ones; None in files of ours with
            one set, which stands for both.
        checked: False for a file of a kind that has checksums, but without them.
        settings: config and sampling, in files of ncsn_fast.
    """

    weights: dict[str, Tensor]
    sigmas: Tensor | None
    place: str
    which: str
    averaged: Averaged | None
    both: bool | None
    checked: bool
    settings: dict[str, Any] | None = None


def read_contents(path: str | os.PathLike[str], *, ema: bool) -> Contents:
    """Read the weights of a checkpoint of any known layout, on the CPU.

    Args:
        ema: prefer the averaged weights where the file has them.

    Raises:
        FileNotFoundError, CheckpointError
    """
    check_is_file(path)
    refuse_other_files(path)
    if is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        if metadata is not None:
            return _our_contents(path, tensors, metadata, ema)
        data, checked, kind = tensors, True, "safetensors file of weights"
    else:
        data, checked = read_torch(path)
        kind = _kind_of(data)
    with naming(path):
        found = search(data)
    trained, average = _trained(path, data, found), _average(path, found, ema)
    weights, sigmas, averaged, which = _chosen(path, trained, average)
    with naming(path):
        check_weights(weights, Path(path).stat().st_size)
        if sigmas is not None:
            check_levels(sigmas)
    places = [copy.place for copy in (trained, average) if copy is not None and copy.place]
    places = [] if all(place.isdecimal() for place in places) else places
    where = f" ({', '.join(places)})" if places else ""
    return Contents(
        weights,
        sigmas,
        f"{kind}{where}",
        which,
        averaged=averaged,
        both=trained is not None and (bool(found.averages) or bool(found.unnamed)),
        checked=checked,
    )


def _our_contents(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, Any], ema: bool
) -> Contents:
    kind = metadata.get("kind")
    average: dict[str, Tensor] = {}
    if kind == "training":
        weights = below("model.", tensors)
        average = below("ema.", tensors) if ema else {}
        weights.setdefault(LEVELS, tensors.get(LEVELS, torch.empty(0)))
    elif kind == "network":
        weights = dict(tensors)
    else:
        what = "values" if kind is None else kind if type(kind) is str else shown(kind)
        raise CheckpointError(f"{path} holds {what[:100]}, not a network")
    sigmas = weights.pop(LEVELS, None)
    if sigmas is None or sigmas.numel() == 0 or not isinstance(metadata.get("config"), dict):
        raise CheckpointError(f"{path} has no noise levels or no configuration of a network")
    with naming(path):
        check_header(metadata)
        check_levels(sigmas)
        check_weights(weights | average, Path(path).stat().st_size)
    averaged: Averaged | None
    if kind == "training":
        averaged, which = _which(weights, average)
    else:
        averaged = metadata.get("averaged")
        which = _WHICH[averaged]
    if averaged and not ema:
        raise _averaged_only(path)
    weights |= {name: value for name, value in average.items() if name != LEVELS}
    if "dtype" in metadata:  # stored rounded
        dtype = metadata["dtype"]
        if type(dtype) is not str or dtype not in DTYPES:
            raise CheckpointError(f"{path} is of the unknown data type {shown(dtype)}")
        weights = {key: value.to(DTYPES[dtype]) for key, value in weights.items()}
    return Contents(
        weights,
        sigmas,
        f"ncsn_fast {kind} checkpoint",
        which,
        averaged=averaged,
        both=None if kind == "network" else bool(below("ema.", tensors)),
        checked=True,
        settings=metadata,
    )


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in what is refused of it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _trained(path: str | os.PathLike[str], data: Any, found: Found) -> Copy | None:
    """The weights as trained."""
    copy = one_of(found.trained, path, "a network")
    if copy is None and not found.averages:
        if not found.others or found.unnamed:
            unpaired = "".join(
                f" There are tensors in {place!r}, but no network to pair them with."
                for place, _ in found.unnamed
            )
            raise CheckpointError(
                f"{path} has an unknown layout. Found: {_describe(data)}.{unpaired}\n"
                f"Known layouts:\n{KNOWN_LAYOUTS}"
            )
        return found.others[0]  # whose names say why it is none of ours
    return copy


def _average(path: str | os.PathLike[str], found: Found, ema: bool) -> Copy | None:
    """The averaged weights, where they are asked for or all there is."""
    if not ema:
        if not found.trained and found.averages:
            raise _averaged_only(path, found.averages[0].place)
        return None
    model = found.trained[0].weights if found.trained else None
    size = sum(value.numel() for value in (model or {}).values())
    averages = list(found.averages)
    for place, tensors in found.unnamed:
        if isinstance(tensors, Tensor) and tensors.numel() < size // 2:
            continue  # too few numbers for an average of the network: losses, for instance
        named = None if model is None else paired(tensors, model)
        if named is None:
            raise CheckpointError(
                f"{path} holds {place!r}, which looks like averaged weights, in a form that is not "
                f"known or does not fit the network: {RAW}, or save the averaged ones alone as a "
                "state_dict"
            )
        averages.append(Copy(place, named, average=True))
    average = one_of(averages, path, "averaged weights")
    if average is not None and not average.begun:
        raise CheckpointError(
            f"{path}: the averaged weights ({average.place or 'n_averaged = 0'}) have averaged "
            f"nothing yet: {RAW}"
        )
    if average is not None and model is not None:
        check_fits(average, model, path)
    return average


def _chosen(
    path: str | os.PathLike[str], trained: Copy | None, average: Copy | None
) -> tuple[dict[str, Tensor], Tensor | None, Averaged, str]:
    """What to load, the noise levels, and which weights these are, also in words."""
    copies = [copy for copy in (trained, average) if copy is not None]
    for copy in copies:
        if copy.beside:
            names = ", ".join(name[:60] for name in copy.beside[:3])
            raise CheckpointError(
                f"{path}: beside the network ({copy.place or 'its names without a prefix'}) lie "
                f"tensors of something else ({names}, …): save the network's alone (its state_dict)"
            )
    plain = dict(trained.weights) if trained is not None else {}
    averaged = dict(average.weights) if average is not None else {}
    levels = [held.pop(LEVELS) for held in (plain, averaged) if LEVELS in held]
    if len(levels) == 2 and (
        levels[0].shape != levels[1].shape
        or not torch.allclose(levels[0].double(), levels[1].double(), rtol=1e-3, atol=0)
    ):
        raise CheckpointError(
            f"{path}: the noise levels beside the averaged weights are not those beside the "
            f"weights as trained: {RAW}"
        )
    return plain | averaged, levels[0] if levels else None, *_which(plain, averaged)


def _averaged_only(path: str | os.PathLike[str], place: str = "") -> CheckpointError:
    return CheckpointError(
        f"{path} holds averaged weights only ({place or 'all of it'}): take them (ema=True, "
        "--weights ema)"
    )


def _which(trained: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> tuple[Averaged, str]:
    """Which weights these are, also in words."""
    if not average:
        return False, _WHICH[False]
    missing = [name for name in trained if name not in average and name != LEVELS]
    if not missing:
        return True, _WHICH[True]
    return "partly", (
        f"averaged (EMA) weights, but {len(missing)} of {len(trained)} tensors, which have no "
        f"average, as trained ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''})"
    )


def _kind_of(data: Any) -> str:
    if isinstance(data, (list, tuple)):
        return f"list of {len(data)}"
    plain = isinstance(data, Mapping) and all(isinstance(v, Tensor) for v in data.values())
    return "dict of weights" if plain else "dict"


def _describe(data: Any) -> str:
    if isinstance(data, Mapping):
        kinds = [f"{str(k)[:60]!r}: {type(v).__name__}" for k, v in list(data.items())[:8]]
        return f"a dict of {len(data)} entries ({', '.join(kinds)})"
    if isinstance(data, (list, tuple)):
        kinds = [type(item).__name__ for item in data[:8]]
        return f"a {type(data).__name__} of {len(data)} entries ({', '.join(kinds)})"
    return f"a {type(data).__name__}"


__all__ = ["Averaged", "Contents", "read_contents"]
