"""A training run as data: what it keeps in its folder, and what has to agree to go on with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.checkpoints.load_save import save_checkpoint
from ncsn_fast.checkpoints.tensor_file import CheckpointError, below, read_tensors, write_tensors
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.conv_forms import DIRECT, NAMES
from ncsn_fast.support.checks import count
from ncsn_fast.support.files import check_space, check_writable, leftovers
from ncsn_fast.support.locks import folder_lock
from ncsn_fast.support.parsers import shortened

CHECKPOINT, MODEL, BEST = "checkpoint.safetensors", "model.safetensors", "best.safetensors"
_OF_A_RUN = (CHECKPOINT, MODEL)
_KEPT = "model_*.safetensors"  # by their steps
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class RunState:
    """A training run after a step. The tensors are the run's own, not copies of them.

    Attributes:
        step: optimiser steps done.
        network: the network's ``config``; ``sampling``: its settings, or None.
        settings: JSON values that have to agree for another run to continue this one.
        sigmas: (L,) float32, the noise levels.
        weights: the network's ``state_dict()``.
        average: that of the network with the averaged weights; empty without an average.
        moments: of each parameter that Adam has changed, by its name: ``step`` () float32,
            ``exp_avg`` and ``exp_avg_sq``, both of the parameter's shape.
        loss_sum: () float32, of the mean losses of the steps since ``loss_since``.
        level_sums: (2, L) float32, sums and numbers of the losses of each level.
        loss_since: the step from which on ``loss_sum`` counts.
        scaler: the state of the GradScaler; empty where there is none.
        convolutions: in which forms they run, see ``training/forms.py``.
        log: the digest of the log, by which damage to it is seen; None: not known.
    """

    step: int
    network: Mapping[str, Any]
    sampling: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    sigmas: Tensor
    weights: Tensors
    average: Tensors
    moments: Mapping[str, Tensors]
    loss_sum: Tensor
    level_sums: Tensor
    loss_since: int
    scaler: Mapping[str, Any]
    convolutions: str
    log: str | None

    def on_cpu(self) -> RunState:
        """The same run with its tensors on the CPU."""
        return replace(
            self,
            sigmas=self.sigmas.cpu(),
            weights=_on_cpu(self.weights),
            average=_on_cpu(self.average),
            moments={name: _on_cpu(moments) for name, moments in self.moments.items()},
            loss_sum=self.loss_sum.cpu(),
            level_sums=self.level_sums.cpu(),
        )

    def metadata(self) -> dict[str, Any]:
        """What of it is no tensor, as the header of a checkpoint."""
        return {
            "kind": "training",
            "config": self.network,
            "sampling": self.sampling,
            "step": self.step,
            "loss_since": self.loss_since,
            "scaler": self.scaler,
            "training": self.settings,
            "convolutions": self.convolutions,
            "log": self.log,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names that they have in a checkpoint."""
        moments = {
            f"optimizer.{key}.{name}": value
            for name, state in self.moments.items()
            for key, value in state.items()
        }
        return {
            **{f"model.{name}": value for name, value in self.weights.items()},
            **{f"ema.{name}": value for name, value in self.average.items()},
            **moments,
            "sigmas": self.sigmas,
            "loss_sum": self.loss_sum,
            "level_sums": self.level_sums,
        }


def _on_cpu(tensors: Tensors) -> Tensors:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


class RunFolder:
    """The folder of a run, which nobody else writes to.

    Args:
        path: the folder.
        locked: whether the caller holds its lock for as long as this is used, and has looked
            whether it holds another run.
    """

    def __init__(self, path: Path, locked: bool) -> None:
        self.path, self._locked, self._known = path, locked, locked
        self._seen: tuple[object, ...] | None = None  # the stamp of what lies in the folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else writes to the folder, nor has done so since it was looked at here.

        Raises:
            ValueError: where somebody does, or has.
        """
        if self._locked:
            yield
            return
        with folder_lock(self.path):
            if self._seen is not None:
                check_untouched(self.path, self._seen)
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def look(self, here: RunState, resume: bool, kept: int) -> RunState:
        """The run in the folder where it goes on, else ``here`` itself; the lock is held.

        Args:
            here: the run as it would begin.
            kept: how many of its models will be kept.

        Raises:
            ValueError: where the folder is not for this run.
            OSError: where the run could not be saved there.
        """
        self._seen = stamp(self.path)
        found = here
        if resume:
            found = read(self.path)
            check_same_run(found, here, str(self.path / CHECKPOINT))
        elif not self._known:
            check_new(self.path)
        check_can_be_saved(here, self.path, kept)
        return found

    def save(self, state: RunState, model: ScoreNetwork, *, keep: bool) -> None:
        """Write a step of the run (:func:`save`).

        Raises:
            ValueError, OSError: as :meth:`lock` and :func:`save`.
        """
        with self.lock():
            check_untouched(self.path, self._seen or stamp(self.path))
            try:
                save(state, self.path, model, keep=keep)
            finally:
                self._seen = stamp(self.path)


def save(state: RunState, folder: Path, model: ScoreNetwork, *, keep: bool) -> None:
    """Write the model of this step if it is to be kept, checkpoint.safetensors, and
    model.safetensors.

    In this order, because of a process that is killed in between: a model that is kept is never
    made anew, so it comes before the checkpoint that says that its step is done. model.safetensors
    can be made anew from the checkpoint, so it comes last.

    Args:
        model: the network to sample from, of averaged weights where there are some.

    Raises:
        OSError: where the disk does not take them; the files of before stay.
    """
    if keep:
        kept = folder / _KEPT.replace("*", f"{state.step:07d}")
        save_checkpoint(model, kept, averaged=bool(state.average))
    write_tensors(folder / CHECKPOINT, state.tensors(), state.metadata())
    save_checkpoint(model, folder / MODEL, averaged=bool(state.average))


def read(folder: Path) -> RunState:
    """The state in checkpoint.safetensors, its tensors on the CPU.

    Raises:
        ValueError: where there is none.
        CheckpointError: where the file is damaged, or no checkpoint of a training run.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise ValueError(f"there is no {path} to resume from: start anew without resume=True")
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "training":
        raise CheckpointError(f"{path} is not a training checkpoint: it cannot be resumed")
    try:
        return _state(tensors, metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not as a training run writes it ({type(error).__name__}: {error}): go back "
            "to an earlier one"
        ) from error


def _state(tensors: Tensors, metadata: Mapping[str, Any]) -> RunState:
    """What lies in a checkpoint; raises KeyError, TypeError or ValueError where that is wrong."""
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in below("optimizer.", tensors).items():
        moment, _, parameter = key.partition(".")
        moments.setdefault(parameter, {})[moment] = value
    maps = {name: metadata[name] for name in ("config", "training", "scaler")}
    wrong = [name for name, value in maps.items() if not isinstance(value, Mapping)]
    if wrong:
        raise TypeError(f"{', '.join(wrong)} should hold names and values")
    forms = metadata.get("convolutions", NAMES[DIRECT])  # older versions had no others
    if not isinstance(forms, str):
        raise TypeError("convolutions should be a text")
    return RunState(
        step=count("step", metadata["step"], 0),
        network=maps["config"],
        sampling=metadata["sampling"],
        settings=maps["training"],
        sigmas=tensors["sigmas"],
        weights=below("model.", tensors),
        average=below("ema.", tensors),
        moments=moments,
        loss_sum=tensors["loss_sum"],
        level_sums=tensors["level_sums"],
        loss_since=count("loss_since", metadata["loss_since"], 0),
        scaler=maps["scaler"],
        convolutions=forms,
        log=metadata.get("log"),  # older versions wrote none
    )


def check_same_run(there: RunState, here: RunState, path: str) -> None:
    """Refuse to go on with another run than the one that the checkpoint at ``path`` is of, or that
    the process of this name has.

    Raises:
        ValueError: where its settings, data, network or noise levels differ.
    """
    differ: dict[str, tuple[Any, Any]] = {
        name: (there.settings.get(name), value)
        for name, value in here.settings.items()
        if there.settings.get(name) != value
    }
    if there.network != here.network:
        one, other = there.network, here.network
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        differ["network"] = ({k: one.get(k) for k in keys}, {k: other.get(k) for k in keys})
    # Levels chosen from the data on another machine may differ in their last bit.
    sigmas, ours = there.sigmas, here.sigmas.cpu()
    if len(sigmas) != len(ours) or not torch.allclose(sigmas, ours, rtol=1e-5, atol=0):
        differ["noise levels"] = (sigmas.tolist(), ours.tolist())
    for name, what in (("data", "images"), ("classes", "labels")):
        if name in differ:  # of which a digest is known
            there_, here_ = differ[name]
            differ[name] = (there_ and f"other {what}", here_ and f"these {what}")
    if differ:
        told = "; ".join(
            f"{k}: {shortened(a)} there, {shortened(b)} here" for k, (a, b) in differ.items()
        )
        raise ValueError(f"{path} belongs to another run ({told}): use the same settings")
    kinds, found = _kinds(here), _kinds(there)
    wrong = sorted(name for name in {*kinds, *found} if kinds.get(name) != found.get(name))
    wrong += [f"optimizer.{name}" for name in there.moments if not _is_adam(there, name)]
    if wrong or bool(there.scaler) != bool(here.scaler):
        raise CheckpointError(
            f"{path} does not hold the tensors of this run ({wrong[0] if wrong else 'scaler'}): "
            "go back to an earlier one"
        )


def _kinds(state: RunState) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Type and shape of the tensors that every checkpoint of a run holds."""
    tensors = replace(state, moments={}).tensors()
    return {name: (value.dtype, value.shape) for name, value in tensors.items()}


def _is_adam(state: RunState, name: str) -> bool:
    """Whether these are the moments of a parameter of the run."""
    moments, weight = state.moments[name], state.weights.get(name)
    if weight is None or set(moments) != {"step", "exp_avg", "exp_avg_sq"}:
        return False
    shapes = {moments[key].shape for key in ("exp_avg", "exp_avg_sq")}
    return shapes == {weight.shape} and moments["step"].numel() == 1


def check_new(folder: Path, *, begun: bool = False) -> None:
    """Refuse a folder for a new run that holds another.

    Args:
        begun: whether the run itself was stopped there before its first checkpoint. Its first save
            may have kept a model by then, which it writes again.

    Raises:
        ValueError: where it does.
    """
    kept = [] if begun else sorted(folder.glob(_KEPT))
    for path in (*(folder / name for name in (*_OF_A_RUN, BEST)), *kept):
        if path.exists() and begun:
            raise ValueError(
                f"{folder} holds {path.name}, but no {CHECKPOINT} to go on from: put that back, or "
                "start in another folder"
            )
        if path.exists():
            raise ValueError(
                f"{folder} holds a trained network already ({path.name}): go on with the run by "
                "resume=True, or choose another folder"
            )


def stamp(folder: Path) -> tuple[object, ...]:
    """What tells whether another run has been saved in a folder."""
    found = [path.stat() if (path := folder / name).exists() else None for name in _OF_A_RUN]
    return tuple(of and (of.st_ino, of.st_size, of.st_mtime_ns) for of in found)


def check_untouched(folder: Path, seen: tuple[object, ...]) -> None:
    """Refuse to replace what another run has saved in a folder since its stamp was ``seen``.

    Raises:
        ValueError: where one has.
    """
    # What was only taken away is written again.
    if any(now not in (None, old) for now, old in zip(stamp(folder), seen, strict=True)):
        raise ValueError(
            f"another trainer has saved in {folder} since this one looked at it: make a new one "
            "with resume=True, or choose another folder"
        )


def check_can_be_saved(state: RunState, folder: Path, kept: int) -> None:
    """Refuse now what could not be saved later.

    Args:
        kept: how many models of the run will be kept.

    Raises:
        TypeError: where the state holds what is not JSON.
        ValueError: where the folder does not exist.
        OSError: where it cannot be written, or its disk is too full for the run's files.
    """
    json.dumps(state.metadata())
    for name in (*_OF_A_RUN, BEST, "log.jsonl", "levels.json"):
        check_writable(folder / name)
    weights = sum(value.numel() * value.element_size() for value in state.weights.values())
    # Weights, average and two moments; the model; the best; and each file beside its successor.
    needed = (2 * (4 + 1 + 1) + kept) * weights
    # What is there already makes room for what comes.
    old = [path for name in (*_OF_A_RUN, BEST) if (path := folder / name).exists()]
    replaced = sum(path.stat().st_size for path in (*old, *leftovers(folder)))
    check_space(folder, needed, "the files of this run", replaced=replaced)


__all__ = [
    "BEST",
    "CHECKPOINT",
    "MODEL",
    "RunFolder",
    "RunState",
    "check_can_be_saved",
    "check_new",
    "check_same_run",
    "check_untouched",
    "read",
    "save",
    "stamp",
]
