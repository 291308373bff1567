"""Networks of the official code, and of code made from it, taken over: they run as ours.

Such a network is recognised by its tensors' names and shapes and by its attributes, whatever code
base its class is of. Ours is then made around the same parameters, not around copies of them, and
compared with it: both are shown two images, one at its largest noise level and one at its
smallest. What differs runs as it is, and a line of the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ncsn_fast import noise
from ncsn_fast.device.precision import arithmetic
from ncsn_fast.inference.foreign import hidden
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
# What their code calls data that the network need not map from [0, 1] to [-1, 1].
_MAPPED = ("rescaled", "logit_transform", "centered")


class _Origin(NamedTuple):
    """What a network was taken over from, and what that was then."""

    fn: Callable[..., Any]
    module: nn.Module
    parts: list[nn.Module]


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
    try:
        net = _around(fn, module, sigmas)
        _compare(fn, net)
    except ValueError as error:
        _log.warning(
            "%s looks like an official network, but runs as it is: %s (adopt=False says that it "
            "shall)",
            type(module).__name__,
            error,
        )
        return None
    _origins[net] = _Origin(fn, module, list(module.modules()))
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


def follow(net: ScoreNetwork) -> None:
    """Bring a network up to date that was taken over; any other is left alone.

    Parameters that were changed or replaced it has already.

    Raises:
        ValueError: where the original now computes something else: it has hooks, say.
    """
    origin = _origins.get(net)
    if origin is None:
        return
    fn, module, parts = origin
    try:
        _refuse(_obstacle(fn, module))
        if list(module.modules()) != parts or _settings(module, net.config) != net.config:
            raise ValueError("it has other parts or settings")
        _take_levels(net, module)
    except ValueError as error:
        raise ValueError(
            f"the network {type(module).__name__} was taken over, and is another one now: {error}. "
            "Make the sampler, or what was prepared, anew"
        ) from None


def _around(fn: Callable[..., Any], module: nn.Module, sigmas: Levels | None) -> RefineNet:
    """Ours, around the parameters of an official network; ValueError says why there is none."""
    _refuse(_obstacle(fn, module))
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
    for name, part in net.named_modules():
        if part._parameters:  # the dictionary itself: what is replaced in it is replaced here too
            part._parameters = module.get_submodule(name)._parameters
    _take_levels(net, module)
    return net.eval()


def _settings(module: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of ours with what an official network's attributes say."""
    mapped = any(bool(getattr(module, name, False)) for name in _MAPPED)
    activation = _activation(getattr(module, "act", ACTIVATIONS["elu"]))
    return {**config, "activation": activation, "rescaled": mapped, "logit_transform": False}


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
    for one in [*(one for one in chain if isinstance(one, nn.Module)), *module.modules()]:
        if one._forward_hooks or one._forward_pre_hooks:
            return "it has hooks"
        if "forward" in vars(one):
            return "its forward has been replaced"
        if "parametrizations" in one._modules:
            return "it is parametrised"
    kinds = {str(weight.dtype).removeprefix("torch.") for weight in module.parameters()}
    if kinds != {"float32"}:
        return f"its weights are {', '.join(sorted(kinds))}"
    places = {str(weight.device) for weight in module.parameters()}
    if len(places) > 1 or "meta" in places:
        return f"its weights are on {', '.join(sorted(places))}"
    return None


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _compare(fn: Callable[..., Any], net: RefineNet) -> None:
    """ValueError where the two return different scores at the largest or the smallest level."""
    place, ends = net.sigmas.device, [0, len(net.sigmas) - 1]
    labels = torch.tensor(ends, device=place)
    x = _probe(net, labels)
    with torch.no_grad(), arithmetic("fp32", place), evaluating(list(layers(fn))[-1]):
        try:
            expected = fn(x.clone(), labels)
        except Exception as error:  # it is somebody else's
            raise ValueError(f"called as fn(x, labels) it fails ({error})") from error
        found = net(x, labels)
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        raise ValueError("called as fn(x, labels) it returns something else than a score")
    if not bool(expected.isfinite().all()):
        raise ValueError("it returns values that are not finite")
    for level, one, other in zip(ends, found.double(), expected.double(), strict=True):
        difference, most = float((one - other).abs().max()), float(other.abs().max())
        if not difference <= _LARGEST_ERROR * most:
            raise ValueError(
                f"at noise level {level} the two differ by {difference:.1e}, where {most:.1e} is "
                "the most"
            )


def _probe(net: RefineNet, labels: Tensor) -> Tensor:
    """Small images (N, C, H, W) at the noise levels ``labels`` (N,)."""
    shape, ids = (net.channels, *2 * [2 * net.reduction()]), torch.arange(len(labels))
    ids = ids.to(labels.device)
    clean = noise.uniform(shape, seed=0, stream=noise.INITIAL, sample_ids=ids)
    z = noise.normal(shape, seed=0, stream=noise.INITIAL, sample_ids=ids, step=1)
    return clean + per_sample(net.sigmas[labels], z) * z


__all__ = ["adopted", "follow", "taken_over"]
