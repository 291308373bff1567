"""Where in a file of others the network lies, and where its averaged weights.

Every network of this family begins with a convolution named ``begin_conv``. Whatever a training
code wraps around it, dicts, lists or prefixes of names, this name shows where a copy of the network
begins. Averaged weights are such a copy in a place that is called one (``ema``, ``swa_model.``, …);
or tensors in such a place that are paired with those of the network, by name or in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast.checkpoints.tensor_file import CheckpointError
from ncsn_fast.checkpoints.torch_file import Array

FIRST = "begin_conv."
LEVELS = "sigmas"  # the one buffer of these networks
# What DataParallel, torch.compile, FSDP and activation checkpoints put into names.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WORDS = "ema|avg|average|shadow|swa(?!p)|polyak"
_AVERAGE = re.compile(rf"(?<![a-z])({_WORDS})|(?<!sch)({_WORDS})(?![a-z])")
_MOMENT = re.compile(r"(exp|square|grad|sq|mean)_avg")  # of Adam, RMSprop and their relatives
_OPTIMIZER = re.compile(r"optim|^opts?$|^grad|momentum_buffer|sched")
# The other weights that averages keep beside their own: those to go back to.
_ASIDE = re.compile(r"^(collected_params|backup|online.*|stored.*)$")
# Single numbers that averages keep among their tensors.
_COUNTERS = ("n_averaged", "initted", "step", "steps", "decay", "num_updates", "updates")
_MOST_NESTED = 50


class Copy(NamedTuple):
    """Weights of a network.

    Attributes:
        place: where in the file, in words; "" where it is all there is.
        weights: under the network's own names.
        average: whether they are averaged.
        beside: other tensors among them, which belong to no network.
        begun: False for an average that has averaged nothing yet.
    """

    place: str
    weights: dict[str, Tensor]
    average: bool
    beside: tuple[str, ...] = ()
    begun: bool = True


class Found(NamedTuple):
    """What :func:`search` found.

    Attributes:
        trained, averages: copies of the network.
        unnamed: places that look like an average, and what is there: tensors, but no network.
        others: dicts of tensors that are no network of this family.
    """

    trained: list[Copy]
    averages: list[Copy]
    unnamed: list[tuple[str, Any]]
    others: list[Copy]


def search(data: Any) -> Found:
    """All copies of the network in what a file holds.

    Args:
        data: dicts, lists, tensors and plain values, nested.

    Raises:
        CheckpointError: where names are ambiguous, or nested without end.
    """
    found = Found([], [], [], [])
    _Search(found).visit(data, (), average=False)
    return found


def one_of(copies: list[Copy], path: Any, what: str) -> Copy | None:
    """The copy where there is one, or where all of them are equal.

    Raises:
        CheckpointError: where they differ.
    """
    for other in copies[1:]:
        if not _equal(copies[0].weights, other.weights):
            places = ", ".join(repr(copy.place) for copy in copies)
            raise CheckpointError(
                f"{path} holds {what} in several places ({places}), and they differ: save the one "
                "you want in a file of its own (torch.save)"
            )
    return copies[0] if copies else None


def paired(average: Any, model: Mapping[str, Tensor], depth: int = 5) -> dict[str, Tensor] | None:
    """The tensors of an average by the names of the network's; None where that is not clear.

    Args:
        average: in the forms of this field: a list in the order of the network's parameters (its
            tensors without the buffer of noise levels); a dict by name, also by names without
            their points; or a dict of which one entry is one of these, the others single numbers.
        model: the network's tensors by name, in the order in which it has them.
        depth: how many dicts may lie around it.
    """
    if isinstance(average, (list, tuple)):
        parameters = [name for name in model if name != LEVELS]
        fits = len(average) == len(parameters)
        in_order = dict(zip(parameters, average, strict=True)) if fits else {}
        return in_order if in_order and _fits(in_order, model) else None
    if not isinstance(average, Mapping):
        return None
    held = {k: v for k, v in average.items() if _holds_tensors(v) and not _ASIDE.match(str(k))}
    if all(isinstance(value, Tensor) and isinstance(key, str) for key, value in held.items()):
        named = _own_names(held, model)
        return named if named and _fits(named, model) else None
    inner = next(iter(held.values())) if len(held) == 1 and depth else None
    return paired(inner, model, depth - 1)


def check_fits(average: Copy, model: Mapping[str, Tensor], path: Any) -> None:
    """Refuse averaged weights that are not those of the network beside them.

    Raises:
        CheckpointError
    """
    for name, value in average.weights.items():
        if name not in model or (value.shape != model[name].shape and name != LEVELS):
            where = average.place or "the average"
            raise CheckpointError(
                f"{path}: the averaged weights in {where} do not fit the network beside them "
                f"({name} {tuple(value.shape)}): {RAW}"
            )


RAW = "take the weights as trained (ema=False, or ncsn-fast convert --weights model)"


class _Search:
    def __init__(self, found: Found) -> None:
        self._found = found
        self._seen: set[tuple[int, bool]] = set()

    def visit(self, node: Any, place: tuple[str, ...], *, average: bool) -> None:
        """Collect the copies in a container and below. What lies in two places is seen once."""
        if not isinstance(node, (Mapping, list, tuple)) or (id(node), average) in self._seen:
            return
        self._seen.add((id(node), average))
        if len(place) > _MOST_NESTED:
            raise CheckpointError(f"its contents are nested more than {_MOST_NESTED} levels deep")
        before = len(self._found.trained)
        if isinstance(node, Mapping):
            self._names(node, place, average)
        for key, value in _entries(node):
            if average:
                if not _ASIDE.match(key):
                    self.visit(value, (*place, key), average=True)
            elif self._is_average(key, value, node, before):
                self._average(value, (*place, key))
            else:
                self.visit(value, (*place, key), average=False)

    def _is_average(self, key: str, value: Any, node: Any, before: int) -> bool:
        """Whether a place of ``node`` is one of an average; ``before``: copies found before it."""
        if isinstance(node, Mapping):
            # Tensors in a dict are looked at together, by the beginnings of their names.
            return not _is_tensor(value) and looks_averaged(key)
        # Behind the network in a list, as the official [model, optimizer, epoch, step, average].
        optimizer = isinstance(value, Mapping) and {"state", "param_groups"} & set(value)
        return len(self._found.trained) > before and not optimizer

    def _average(self, node: Any, place: tuple[str, ...]) -> None:
        """What lies in a place that is called an average."""
        before = len(self._found.averages)
        self.visit(node, place, average=True)
        if len(self._found.averages) == before and _holds_tensors(node):
            self._found.unnamed.append((_words(node, place), node))

    def _names(self, node: Mapping[Any, Any], place: tuple[str, ...], average: bool) -> None:
        """The copies among the tensors of one dict."""
        tensors = {k: v for k, v in node.items() if isinstance(k, str) and _is_tensor(v)}
        names = _unwrapped(tensors, place)
        prefixes = {name[: name.index(FIRST)] for name in names if _begins(name)}
        inside: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in sorted(prefixes)}
        rest: dict[str, Tensor] = {}
        for name, value in names.items():
            prefix = max((p for p in inside if name.startswith(p)), key=len, default=None)
            own = name[len(prefix or "") :]
            if prefix is None or any(looks_averaged(part) for part in own.split(".")[:-1]):
                rest[name] = value
            else:
                inside[prefix][own] = value
        optimizer = not average and any(_OPTIMIZER.search(part.lower()) for part in place)
        beside = () if average else self._beside(rest, place, optimizer)
        if not optimizer:
            for prefix, weights in inside.items():
                self._copy(weights, rest, prefix, place, average, beside)
            if beside and not inside and not average:
                others = {name: rest[name] for name in beside}
                self._found.others.append(Copy(".".join(place), others, average=False))

    def _copy(
        self,
        weights: dict[str, Tensor],
        rest: Mapping[str, Tensor],
        prefix: str,
        place: tuple[str, ...],
        average: bool,
        beside: tuple[str, ...],
    ) -> None:
        # What averages count: in swa_utils.AveragedModel beside the weights, else one name above.
        counted = {key: weights.pop(key) for key in _COUNTERS if key in weights}
        counted |= {key: rest[key] for key in ("n_averaged", "initted") if key in rest}
        parts = prefix.split(".")[:-1]
        aside = bool(parts) and parts[-1].startswith("online")
        named = any(looks_averaged(part) for part in parts) and not aside
        if average and aside:
            return
        averaged = average or named or "n_averaged" in counted
        begun = all(bool(counted[k].any()) for k in ("n_averaged", "initted") if k in counted)
        copies = self._found.averages if averaged else self._found.trained
        copies.append(
            Copy(
                ".".join(place) + (f": {prefix}" if place and prefix else prefix),
                weights,
                averaged,
                beside,
                begun or not averaged,
            )
        )

    def _beside(
        self, rest: Mapping[str, Tensor], place: tuple[str, ...], optimizer: bool
    ) -> tuple[str, ...]:
        """Names of tensors that belong to no copy; those that are called an average are noted."""
        called: dict[str, dict[str, Tensor]] = {}
        beside = []
        for name, value in rest.items():
            parts = name.split(".")
            at = next((i for i, part in enumerate(parts) if looks_averaged(part)), None)
            if value.numel() < 2:
                continue  # a counter
            if at is None:
                beside.append(name)
            elif at == len(parts) - 1 and not optimizer:
                self._found.unnamed.append((".".join((*place, name)), value))
            else:
                prefix = ".".join(parts[: at + 1]) + "."
                called.setdefault(prefix, {})[name[len(prefix) :]] = value
        for prefix, tensors in called.items():
            self._found.unnamed.append((".".join((*place, prefix)), tensors))
        return tuple(beside)


def looks_averaged(key: str) -> bool:
    """Whether something is called an average (``ema``, ``modelEMA``, ``swa_model``, …)."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    return bool(_AVERAGE.search(_MOMENT.sub("", name)))


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in pairs:
        yield str(key)[:60], value


def _begins(name: str) -> bool:
    return name.startswith(FIRST) or f".{FIRST}" in name


def _unwrapped(tensors: Mapping[str, Tensor], place: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors by their names without what wrappers put into them."""
    plain: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in plain:
            where = f" in {'.'.join(place)}" if place else ""
            raise CheckpointError(
                f"two tensors{where} are called {name} once the wrappers' names "
                f"({', '.join(sorted(WRAPPERS))}) are taken off: save the weights of one network"
            )
        plain[name] = value
    return plain


def _own_names(held: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """By the network's names, where the average has them behind a prefix or without points."""
    names = _unwrapped(held, ())
    first = next(iter(names), "")
    by_name = {name: name for name in model}
    without_points = {name.replace(".", ""): name for name in model}
    for own in (by_name, without_points):
        for key in own:
            # What stands before the name of the first has to stand before all of them.
            prefix = first[: -len(key)] if first.endswith(key) else None
            if prefix is not None and all(
                name.startswith(prefix) and name[len(prefix) :] in own for name in names
            ):
                return {own[name[len(prefix) :]]: value for name, value in names.items()}
    return None


def _fits(named: Mapping[str, Any], model: Mapping[str, Tensor]) -> bool:
    return all(isinstance(v, Tensor) and v.shape == model[k].shape for k, v in named.items())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_nested


def _holds_tensors(node: Any) -> bool:
    """Whether more than single numbers are in there."""
    seen, left = set(), [node]
    while left:
        one = left.pop()
        if isinstance(one, Array) or (_is_tensor(one) and one.numel() > 1):
            return True
        if isinstance(one, (Mapping, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            left += one.values() if isinstance(one, Mapping) else one
    return False


def _words(node: Any, place: tuple[str, ...]) -> str:
    inner = [key for key, value in _entries(node) if isinstance(value, (list, tuple, Mapping))]
    inner = [key for key in inner if not _ASIDE.match(key)] if isinstance(node, Mapping) else []
    return ".".join((*place, *inner[:1])) if len(inner) == 1 else ".".join(place)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


__all__ = [
    "LEVELS",
    "RAW",
    "Copy",
    "Found",
    "check_fits",
    "looks_averaged",
    "one_of",
    "paired",
    "search",
]
