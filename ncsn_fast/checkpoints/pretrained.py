"""What networks do by themselves with the Hugging Face Hub: ``save_pretrained``, ``push_to_hub``
and ``from_pretrained``, which are methods of theirs.

The package huggingface_hub does it (its ``PyTorchModelHubMixin``), where it is installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ncsn_fast.checkpoints.hub import CARD, CONFIG, MISSING, WEIGHTS, names_network
from ncsn_fast.checkpoints.load_save import load_checkpoint, save_checkpoint
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.support.files import write_text

_CARD = """\
---
library_name: ncsn_fast
pipeline_tag: unconditional-image-generation
tags:
- ncsn
- score-based-generative-modeling
---

# {name}

{network}, {parameters:,} parameters: a score network for samples of shape {shape}, with {levels}
noise levels from {first:g} to {last:g}. With ncsn_fast and huggingface_hub installed, to sample:

```python
import ncsn_fast as nf

net = nf.load_checkpoint("{name}")
images = {sample}
```

{told}`{weights}` is a file of `nf.save_checkpoint`: it holds the weights, the noise levels and the
settings, and a checksum of them. `{config}` repeats the settings for people.
"""


def save_pretrained(
    net: ScoreNetwork, folder: str | os.PathLike[str], *, name: str | None = None
) -> Path:
    """Save a network in the hub's layout: its weights, config.json and a card (README.md).

    Args:
        folder: is made where it is not there. A README.md in it stays as it is.
        name: "user/name" on the hub, for the card; default: the folder.

    Returns:
        The folder, which :func:`load_checkpoint` takes.

    Raises:
        ValueError, OSError: as :func:`save_checkpoint`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    readable = save_checkpoint(net, folder / WEIGHTS).with_suffix(".json")
    os.replace(readable, folder / CONFIG)
    if not (folder / CARD).exists():
        write_text(folder / CARD, _card(net, str(folder) if name is None else name))
    return folder


def push_to_hub(net: ScoreNetwork, name: str, **how: Any) -> str:
    """Upload a network to the Hugging Face Hub, in the layout of :func:`save_pretrained`.

    Args:
        name: "user/name"; the repository is made where it is not there.
        how: what ``PyTorchModelHubMixin.push_to_hub`` takes: private, token, branch, create_pr,
            commit_message, …

    Returns:
        The address of the commit.

    Raises:
        ImportError: without the package huggingface_hub.
        ValueError: for another ``name``.
    """
    if not isinstance(name, str) or not names_network(name):
        raise ValueError(
            f"name = {name!r:.80}: on the hub a network is called user/name (and not like a file "
            "or folder here)"
        )
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError:
        raise ImportError(f"push_to_hub takes {MISSING}") from None

    class Pushed(PyTorchModelHubMixin):
        def _save_pretrained(self, save_directory: Path) -> None:
            save_pretrained(net, save_directory, name=name)

    return Pushed().push_to_hub(name, **how)


def from_pretrained(
    cls: type[ScoreNetwork], name: str | os.PathLike[str], **overrides: Any
) -> ScoreNetwork:
    """A network from the hub or a folder in its layout, as :func:`load_checkpoint` gives it.

    Args:
        name: "user/name" on the hub, or a folder.
        overrides: what :func:`load_checkpoint` takes.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: as :func:`load_checkpoint`, and where it is
            a network of another class.
    """
    net = load_checkpoint(name, **overrides)
    if not isinstance(net, cls):
        raise ValueError(
            f"{name} holds a {type(net).__name__}, not a {cls.__name__}: {type(net).__name__}."
            "from_pretrained loads it, and nf.load_checkpoint any"
        )
    return net


def _card(net: ScoreNetwork, name: str) -> str:
    """A description of a network, with what to type to sample from it."""
    shape = None if net.config.get("image_size", ()) is None else net.shape
    settings = net.sampling or {}
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    sized = f"nf.Sampler(net, shape=({net.config.get('channels')}, height, width), …)(16, seed=0)"
    return _CARD.format(
        name=name,
        network=type(net).__name__,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        shape="any size" if shape is None else shape,
        levels=len(net.sigmas),
        first=float(net.sigmas[0]),
        last=float(net.sigmas[-1]),
        sample="nf.sample(net, 16, seed=0)" if shape is not None and settings else sized,
        told=f"It samples by these settings: {words}. " if settings else "",
        weights=WEIGHTS,
        config=CONFIG,
    )


# The networks' room may not know that of files.
ScoreNetwork.save_pretrained = save_pretrained
ScoreNetwork.push_to_hub = push_to_hub
ScoreNetwork.from_pretrained = classmethod(from_pretrained)

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
