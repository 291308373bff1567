"""The network whose weights a run begins with, where these are not drawn at random."""

from __future__ import annotations

from ncsn_fast.checkpoints.load_save import load_checkpoint
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.training.config import TrainRun

# What weights mean nothing without; the image's size and the classes may be others.
_SAME = ("network", "ngf", "activation", "rescaled", "logit_transform")
_OF_CLASSES = ".embed.weight"


def pretrained_of(run: TrainRun, channels: int) -> ScoreNetwork | None:
    """The network that ``run.pretrained`` names, on the CPU.

    Args:
        channels: of the run's images.

    Raises:
        ValueError, OSError: for a file that cannot be read, and a network of other settings.
    """
    if run.pretrained is None:
        return None
    net = load_checkpoint(run.pretrained)
    wanted = {name: getattr(run, name) for name in _SAME} | {"channels": channels, "divided": True}
    there = {"divided": True, **net.config}
    differs = [name for name, value in wanted.items() if there.get(name) != value]
    if differs:
        told = ", ".join(f"{name} {there.get(name)}, not {wanted[name]}" for name in differs)
        raise ValueError(
            f"the network of {run.pretrained} cannot be what this run begins with: it has {told}. "
            "Give the run its settings, or leave pretrained out"
        )
    return net


def begin_from(net: ScoreNetwork, pretrained: ScoreNetwork) -> None:
    """Give a new network the weights of another; it keeps its own noise levels.

    What the other was told of its classes is taken over where the classes are the same: a network
    of other classes begins as one that has been told of none.

    Raises:
        ValueError: where tensors are of other shapes, as those of NCSN are for other levels.
    """
    weights = pretrained.state_dict()
    if getattr(net, "classes", ()) != getattr(pretrained, "classes", ()):
        weights = {k: v for k, v in weights.items() if not k.endswith(_OF_CLASSES)}
    own = net.state_dict()
    weights = {**{k: v for k, v in own.items() if k.endswith(_OF_CLASSES)}, **weights}
    if "sigmas" in own:
        weights["sigmas"] = own["sigmas"]
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the pretrained weights do not fit the network of this run: {error}"
        ) from error


__all__ = ["begin_from", "pretrained_of"]
