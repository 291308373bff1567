"""Networks of the official code, and of code made from it, taken over: they run as ours.

Such a network is recognised by its tensors' names and shapes and by its attributes, whatever code
base its class is of. Ours is then made around the same parameters, not around copies of them, and
compared with it: as its layers are set, and as both see a few images. What differs runs as it is,
and a line of the log says why.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ncsn_fast import noise
from ncsn_fast.device.precision import arithmetic
from ncsn_fast.inference.foreign import hidden
from ncsn_fast.inference.parts import Part, changed, lasting, parts, set_otherwise
from ncsn_fast.methods.levels import check_sigmas
from ncsn_fast.models.base import ScoreNetwork, evaluating
from ncsn_fast.models.by_name import build, network_of
from ncsn_fast.models.refinenet import RefineNet
from ncsn_fast.models.score import Score
from ncsn_fast.reference import ACTIVATIONS, per_sample
from ncsn_fast.support import checks
from ncsn_fast.support.callables import layers

_log = logging.getLogger("ncsn_fast")

Levels = Sequence[float] | np.ndarray | Tensor

# Of the largest value that a network returns for an image. Sums in another order differ by 1e-6,
# what computes something else by far more.
_LARGEST_ERROR = 1e-4
_LEVELS = "sigmas"
# Every network of this family has these two convolutions, by these names.
_FAMILY = ("begin_conv", "end_conv")
# What their code calls data in [-1, 1], which the network need not map there.
_RESCALED = ("rescaled", "centered")
# The least side of the images that the two are compared on, in pixels of the coarsest stage: there
# a dilation of 4 still reaches from one pixel to another.
_SIDES = (5, 6)
# Seen by a norm, so little noise tells whether its ε is ours.
_FLAT = 0.01


class _Origin(NamedTuple):
    """What a network was taken over from, and what that was then."""

    fn: Callable[..., Any]
    module: nn.Module
    parts: list[Part]


# No attribute: a copy of such a network has weights of its own.
_origins: WeakKeyDictionary[ScoreNetwork, _Origin] = WeakKeyDictionary()


def adopted(
    fn: Callable[..., Any], sigmas: Levels | None = None, adopt: bool = True
) -> RefineNet | None:
    """A network of ours that shares the parameters of an official one, if ``fn`` is such a one.

    Args:
        fn: the official network; or what does nothing but call it: DataParallel and its like, an
            AveragedModel, its method ``forward``.
        sigmas: (L,) the noise levels that its labels count, where it has no ``sigmas`` of its own.
        adopt: False: None for everything.

    Returns:
        The network, in eval mode, which returns what ``fn`` does; :func:`follow` keeps it so. None
        for anything else, and where something stands in the way, which the log then says.

    Raises:
        ValueError: for another ``adopt`` than True and False.
    """
    checks.choice("adopt", adopt, (True, False), "whether official networks are taken over")
    module = list(layers(fn))[-1]
    if not adopt or isinstance(module, ScoreNetwork) or not isinstance(module, nn.Module):
        return None
    if not set(_FAMILY) <= module._modules.keys():
        return None
    before = parts(module)
    try:
        net = _around(fn, module, sigmas)
        _compare(fn, module, net)
    except ValueError as error:
        _log.warning(
            "%s looks like an official network, but runs as it is: %s (adopt=False says that it "
            "shall)",
            type(module).__name__,
            error,
        )
        return None
    _origins[net] = _Origin(fn, module, lasting(parts(module), before))
    _log.info("%s runs as ncsn_fast's %s", type(module).__name__, type(net).__name__)
    return net


def taken_over(
    score: Score | Callable[..., Tensor], sigmas: Levels | None = None, adopt: bool = True
) -> Score | Callable[..., Tensor]:
    """Whatever the engine is given, with our network in the place of an official one.

    Args:
        score: an official network, which becomes one of ours; an ``nf.Score`` of one told labels,
            which becomes that of ours, with the same meaning; or anything else, which stays.
        sigmas, adopt: as for :func:`adopted`.
    """
    if isinstance(score, Score):
        if type(score) is not Score or score.condition != "label":
            return score
        levels = sigmas if score.sigmas is None else score.sigmas
        net = adopted(score.fn, levels, adopt)
        return score if net is None else replace(score, fn=net)
    net = adopted(score, sigmas, adopt)
    if net is None:
        return score
    # What leaves the division by σ to others is read as the caller reads it.
    return net if getattr(net, "divided", True) else Score(net, "score", "label", net.sigmas)


def original(net: ScoreNetwork) -> nn.Module | None:
    """The module that a network was taken over from; None of any other network."""
    origin = _origins.get(net)
    return None if origin is None else origin.module


def follow(net: ScoreNetwork) -> None:
    """Bring a network up to date that was taken over; any other is left alone.

    Parameters that were changed or replaced it has already.

    Raises:
        ValueError: where the original now computes something else, with what: it has hooks, say.
    """
    origin = _origins.get(net)
    if origin is None:
        return
    fn, module, before = origin
    try:
        _refuse(_obstacle(fn, module))
        now = _settings(module, net.config)
        other = changed(before) or next((key for key in now if now[key] != net.config[key]), None)
        if other is not None:
            raise ValueError(f"it has other parts or settings ({other})")
        _take_levels(net, module)
    except ValueError as error:
        raise ValueError(
            f"the network {type(module).__name__} was taken over, and is another one now: {error}. "
            "Make the sampler, or what was prepared, anew"
        ) from None


def _around(fn: Callable[..., Any], module: nn.Module, sigmas: Levels | None) -> RefineNet:
    """Ours, around the parameters of an official network; ValueError says why there is none."""
    _refuse(_obstacle(fn, module))
    inputs_of(module)
    weights = {name: value for name, value in module.state_dict().items() if name != _LEVELS}
    own = getattr(module, _LEVELS, None)
    config = network_of(weights, divided=own is not None)
    number = config.pop("num_levels", None)
    levels = sigmas if own is None else own
    if levels is None:
        raise ValueError("its noise levels are not known")
    levels = check_sigmas(levels)
    if number not in (None, len(levels)):
        raise ValueError(f"it is told {number} noise levels, and {len(levels)} are given")
    with torch.device("meta"):
        net = build(_settings(module, {**config, "image_size": None}), levels)
    assert isinstance(net, RefineNet)
    shapes = {name: value.shape for name, value in net.named_parameters()}
    if shapes != {name: value.shape for name, value in weights.items()}:
        raise ValueError(f"its tensors are not those of {type(net).__name__}")
    _refuse(set_otherwise(module, net))
    for name, part in net.named_modules():
        if part._parameters:  # the dictionary itself: what is replaced in it is replaced here too
            part._parameters = module.get_submodule(name)._parameters
    _take_levels(net, module)
    vars(net)["check_sides"] = partial(_check_sides, net.check_sides)
    return net.eval()


def _check_sides(ours: Callable[[int, int], None], height: int, width: int) -> None:
    """As of ours; the original may take other sides."""
    try:
        ours(height, width)
    except ValueError as error:
        raise ValueError(f"{error}, or say adopt=False, if the original takes them") from None


def inputs_of(module: nn.Module) -> list[str]:
    """The names that the two inputs of an official network have in its ``forward``.

    Raises:
        ValueError: where it takes others, which ours does not.
    """
    taken = inspect.signature(module.forward).parameters
    if len(taken) != 2 or any(one.kind is not one.POSITIONAL_OR_KEYWORD for one in taken.values()):
        named = ", ".join(map(str, taken.values()))
        raise ValueError(f"its forward takes ({named}), not an image and labels alone")
    return list(taken)


def _settings(module: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of ours with what an official network's attributes say."""
    rescaled = any(bool(getattr(module, name, False)) for name in _RESCALED)
    return {
        **config,
        "activation": _activation(getattr(module, "act", ACTIVATIONS["elu"])),
        "rescaled": rescaled,
        # Their data are rescaled first, where they are.
        "logit_transform": not rescaled and bool(getattr(module, "logit_transform", False)),
    }


def _activation(function: Callable[[Tensor], Tensor]) -> str:
    """The activation that a function computes, by its values."""
    x = torch.linspace(-3, 3, 25, dtype=torch.float32, device="cpu")
    try:
        found = function(x.clone())
        for name, ours in ACTIVATIONS.items():
            if torch.allclose(found, ours(x), rtol=1e-5, atol=1e-6):
                return name
    except Exception as error:  # it is somebody else's
        raise ValueError(f"its activation fails ({error})") from error
    raise ValueError("its activation is another one")


def _take_levels(net: ScoreNetwork, module: nn.Module) -> None:
    """Its noise levels now, float32 where its weights are."""
    own, place = getattr(module, _LEVELS, None), next(module.parameters()).device
    net.sigmas = torch.as_tensor(net.sigmas if own is None else own).to(place, torch.float32)


def _obstacle(fn: Callable[..., Any], module: nn.Module) -> str | None:
    """Why an official network is not taken over, as far as that can be seen without calling it."""
    if (reason := hidden(fn)) is not None:
        return reason
    chain = list(layers(fn))
    for one in chain:
        if len(getattr(one, "device_ids", None) or ()) > 1:
            return "it runs on several devices"
        forward = getattr(one, "__name__", "") == "forward"
        if not (forward or isinstance(one, nn.Module)):
            return f"it is called by a {type(one).__name__}"
    every = nn.modules.module
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        return "all modules have hooks"
    for one in [*(one for one in chain if isinstance(one, nn.Module)), *module.modules()]:
        if one._forward_hooks or one._forward_pre_hooks:
            return "it has hooks"
        if "forward" in vars(one):
            return "its forward has been replaced"
        if "parametrizations" in one._modules:
            return "it is parametrised"
    weights = list(module.parameters())
    if (kinds := {weight.dtype for weight in weights}) != {torch.float32}:
        named = sorted(str(kind).removeprefix("torch.") for kind in kinds)
        return f"its weights are {', '.join(named)}"
    places = {str(place) for place in {weight.device for weight in weights}}
    if len(places) > 1 or "meta" in places:
        return f"its weights are on {', '.join(sorted(places))}"
    return None


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _compare(fn: Callable[..., Any], module: nn.Module, net: RefineNet) -> None:
    """ValueError where the two return different scores for the images of a probe."""
    x, labels = _probe(net)
    with torch.no_grad(), arithmetic("fp32", net.sigmas.device), evaluating(module):
        found = net(x, labels)
        _refuse(_difference(fn, x, labels, found))
        # What was written over something that is the same on these images is there for others.
        for kind in type(module).__mro__:
            written = vars(kind).get("forward", nn.Module.forward)
            if written in (nn.Module.forward, type(module).forward):
                continue
            if _difference(partial(written, module), x, labels, found) is None:
                raise ValueError(
                    f"its forward has been written over that of {kind.__name__}, which would fit"
                )


def _difference(fn: Callable[..., Any], x: Tensor, labels: Tensor, found: Tensor) -> str | None:
    """In what a function's scores are not those that were found, or None."""
    try:
        expected = fn(x.clone(), labels)
    except Exception as error:  # it is somebody else's
        return f"called as fn(x, labels) it fails ({error})"
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        return "called as fn(x, labels) it returns something else than a score"
    if not bool(expected.isfinite().all()):
        return "it returns values that are not finite"
    for level, one, other in zip(labels.tolist(), found.double(), expected.double(), strict=True):
        difference, most = float((one - other).abs().max()), float(other.abs().max())
        if not difference <= _LARGEST_ERROR * most:
            return (
                f"at noise level {level} the two differ by {difference:.1e}, where {most:.1e} is "
                "the most"
            )
    return None


def _probe(net: RefineNet) -> tuple[Tensor, Tensor]:
    """Small images (N, C, H, W) and their noise levels (N,): noised to the first, a middle and the
    last, and a grey one, nearly flat."""
    last, ids = len(net.sigmas) - 1, torch.arange(4, device=net.sigmas.device)
    labels = torch.tensor([0, last // 2, last, last], device=ids.device)
    shape = (net.channels, *(side * net.reduction() for side in _SIDES))
    clean = noise.uniform(shape, seed=0, stream=noise.INITIAL, sample_ids=ids)
    z = noise.normal(shape, seed=0, stream=noise.INITIAL, sample_ids=ids, step=1)
    x = clean + per_sample(net.sigmas[labels], z) * z
    x[-1] = 0.5 + _FLAT * z[-1]
    return x, labels


__all__ = ["adopted", "follow", "inputs_of", "original", "taken_over"]
