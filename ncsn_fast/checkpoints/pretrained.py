"""What networks do by themselves with the Hugging Face Hub: ``save_pretrained``, ``push_to_hub``
and ``from_pretrained``, which are methods of theirs.

The package huggingface_hub does it (its ``PyTorchModelHubMixin``), where it is installed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ncsn_fast.checkpoints.hub import CARD, CONFIG, MISSING, WEIGHTS, is_ours, names_network
from ncsn_fast.checkpoints.load_save import load_checkpoint, write_network
from ncsn_fast.methods.by_name import ANNEALED_LANGEVIN, make_table
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.refinenet import RefineNet
from ncsn_fast.support.files import write_text
from ncsn_fast.support.parsers import FileError, read_json

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

net = nf.load_checkpoint({quoted})
images = {sample}
```

{told}`{weights}` is a file of `nf.save_checkpoint`: it holds the weights, the noise levels and the
settings, and a checksum of them. `{config}` repeats the settings for people.
"""


def save_pretrained(
    net: ScoreNetwork,
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    push_to_hub: bool = False,
    **how: Any,
) -> Path | str:
    """Save a network in the hub's layout: its weights, config.json and a card (README.md).

    Args:
        net: of this package.
        folder: is made where it is not there. What was saved so before is replaced, but a README.md
            stays as it is.
        repo_id: "user/name" on the hub, for the card; default: the folder, beside which the card's
            command is to be run.
        push_to_hub: whether to upload it too, as :func:`push_to_hub` does, which takes ``how``.

    Returns:
        The folder, which :func:`nf.load_checkpoint` takes; of what was uploaded the address.

    Raises:
        ValueError: for no folder, another ``repo_id``, and where one of these files stands there
            that was not saved so.
        TypeError: for ``how`` without ``push_to_hub``.
        ValueError, OSError: as :func:`nf.save_checkpoint`.
    """
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise ValueError(f"folder = {folder!r:.80}: give the path of a folder, a str or a Path")
    if repo_id is not None or push_to_hub:
        _check_name(repo_id)
    if how and not push_to_hub:
        raise TypeError(f"save_pretrained takes {', '.join(how)} with push_to_hub=True alone")
    folder = Path(folder)
    _check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _, readable = write_network(net, folder / WEIGHTS)
    write_text(folder / CONFIG, readable)
    if not (folder / CARD).exists():
        beside = f"./{folder.resolve().name}"
        write_text(folder / CARD, _card(net, beside if repo_id is None else repo_id))
    return _push(net, str(repo_id), **how) if push_to_hub else folder


def _check_free(folder: Path) -> None:
    """Refuse a folder where others' files would be replaced."""
    theirs = [name for name in (WEIGHTS, CONFIG) if os.path.lexists(folder / name)]
    if not theirs:
        return
    try:
        if is_ours(read_json(folder / CONFIG)):
            return
    except (FileError, OSError):
        pass
    raise ValueError(
        f"{folder} has a {' and a '.join(theirs)} that save_pretrained did not write: it replaces "
        "what it wrote itself; give another folder"
    )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not names_network(name):
        raise ValueError(
            f"repo_id = {name!r:.80}: on the hub a network is called user/name (and not like a "
            "file or folder here)"
        )


def push_to_hub(net: ScoreNetwork, repo_id: str, **how: Any) -> str:
    """Upload a network to the Hugging Face Hub, in the layout of :func:`save_pretrained`.

    Args:
        net: of this package.
        repo_id: "user/name"; the repository is made where it is not there.
        how: what ``PyTorchModelHubMixin.push_to_hub`` takes: private, token, branch, create_pr,
            commit_message, …

    Returns:
        The address of the commit.

    Raises:
        ImportError: without the package huggingface_hub.
        ValueError: for another ``repo_id``.
    """
    _check_name(repo_id)
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError:
        raise ImportError(f"push_to_hub takes {MISSING}") from None

    class Pushed(PyTorchModelHubMixin):
        def _save_pretrained(self, save_directory: Path) -> None:
            save_pretrained(net, save_directory, repo_id=repo_id)

    return Pushed().push_to_hub(repo_id, **how)


_push = push_to_hub  # whose name is that of an argument


def from_pretrained(
    cls: type[ScoreNetwork], name: str | os.PathLike[str], **overrides: Any
) -> ScoreNetwork:
    """A network from the hub or a folder in its layout, as :func:`nf.load_checkpoint` gives it.

    Args:
        cls: the class that it has to be of, as ``NCSNv2.from_pretrained`` says it.
        name: "user/name" on the hub, or a folder.
        overrides: what :func:`nf.load_checkpoint` takes: revision, token, cache_dir, …

    Returns:
        The network, in eval mode.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: as :func:`nf.load_checkpoint`, and where it
            is a network of another class.
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
    settings = net.sampling or {}
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    return _CARD.format(
        name=" ".join(name.split()),
        quoted=json.dumps(name, ensure_ascii=False),
        network=type(net).__name__,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        shape="any size" if isinstance(net, RefineNet) and net.image_size is None else net.shape,
        levels=len(net.sigmas),
        first=float(net.sigmas[0]),
        last=float(net.sigmas[-1]),
        sample=_command(net),
        told=f"It samples by these settings: {words}. " if settings else "",
        weights=WEIGHTS,
        config=CONFIG,
    )


def _command(net: ScoreNetwork) -> str:
    """What draws samples, complete: by the network's settings, or by a method that needs none."""
    settings = net.sampling or {}
    try:
        make_table(settings.get("method", ANNEALED_LANGEVIN), net.sigmas, {}, settings, True)
        method = ""
    except ValueError:
        method = ', method="ancestral"'
    if isinstance(net, RefineNet) and net.image_size is None:
        shape = (net.channels, *2 * [16 * net.reduction()])
        return f"nf.Sampler(net, shape={shape}{method})(16, seed=0)  # give your images' size"
    classes = len(getattr(net, "classes", ()))
    of = f', extra={{"classes": 0}})  # of the first of {classes} classes' if classes else ")"
    return f"nf.sample(net, 16{method}, seed=0{of}"


# The networks' room may not know that of files.
ScoreNetwork.save_pretrained = save_pretrained
ScoreNetwork.push_to_hub = push_to_hub
ScoreNetwork.from_pretrained = classmethod(from_pretrained)

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
