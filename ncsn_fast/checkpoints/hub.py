"""Networks on the Hugging Face Hub: a folder, or a repository, with ``model.safetensors``,
``config.json`` and a card.

``model.safetensors`` is a file of :func:`save_checkpoint`, which needs nothing beside it;
``config.json`` tells people, and whoever is about to fetch the weights, what is in it. Only these
two are ever fetched: they hold numbers and no code.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ncsn_fast.checkpoints.tensor_file import CheckpointError
from ncsn_fast.support.parsers import LARGEST_TEXT, FileError, read_json, shortened

_log = logging.getLogger("ncsn_fast")

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MISSING = "the package huggingface_hub, which is not installed: pip install huggingface_hub"
# What huggingface_hub may be told of where to look: all that load_checkpoint takes of it.
HUB = ("revision", "token", "cache_dir", "local_files_only")
# Bytes: ten times the weights of any network that was published.
_LARGEST_WEIGHTS = 8 << 30
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# As files of weights, of arrays and of settings end, and parts and copies of them.
_FILES = re.compile(
    r".*\.(bin|ckpt?|chk|pkl|pickle|pth?|pt2|th|safetensors?|tar|tgz|gz|xz|bz2|zip|7z|ya?ml|json"
    r"|jsonl|toml|txt|csv|np[yz]|mat|h5|hdf5|onnx|pb|tflite|gguf|msgpack|model|weights|params|state"
    r"|bak|old|orig|tmp|part|png|jpe?g|gif|py|md|log)",
    re.IGNORECASE,
)


class Found(NamedTuple):
    """Where a network is, and what it is called: a file, or "user/name@commit" on the hub."""

    file: Path
    called: str


def located(path: str | os.PathLike[str], how: Mapping[str, Any] | None = None) -> Found:
    """The file that a path stands for: itself, the weights in a folder in the hub's layout, or
    those of a network on the hub, from its cache where that has what the hub has now, or where the
    hub cannot be reached.

    Only a str that reads "user/name" can mean the hub: no Path, no name of a file, and none in a
    folder that there is.

    Args:
        how: of ``HUB``, as huggingface_hub takes them.

    Raises:
        FileNotFoundError: where there is neither such a file nor such a network.
        CheckpointError: where what is on the hub is no network of ours, or too large.
        ValueError: for a revision of what is a file here.
    """
    local, how = Path(path), how or {}
    if local.is_dir() and (local / WEIGHTS).is_file():
        local = local / WEIGHTS
    elif not local.exists() and isinstance(path, str) and names_network(path):
        return _fetched(path, how)
    if how.get("revision") is not None:
        raise ValueError(f"revision = {how['revision']!r:.80}: {path} is a file here, of no other")
    return Found(local, local.name)


def names_network(path: str) -> bool:
    """Whether a name reads as that of a network on the hub, "user/name", and as no file's here."""
    if _NAME.fullmatch(path) is None or _FILES.fullmatch(path):
        return False
    return not Path(path).parent.exists()


def is_ours(config: Any) -> bool:
    """Whether a config.json is one of :func:`save_pretrained`."""
    ours = isinstance(config, dict) and config.get("kind") == "network" and "sha256" in config
    return ours and isinstance(config.get("config"), dict)


def _fetched(name: str, how: Mapping[str, Any]) -> Found:
    nothing = f"there is no checkpoint {name}"
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise FileNotFoundError(
            f"{nothing}; to look for it on the Hugging Face Hub takes {MISSING}"
        ) from None
    _log.warning("%s is no file here: the Hugging Face Hub, or its cache, is asked for it", name)
    try:
        file = _weights(name, how)
    except (CheckpointError, FileError) as error:
        raise CheckpointError(f"{name}, on the Hugging Face Hub: {error}") from error
    except Exception as error:  # of a dozen kinds: no network, no such repository, no such file
        raise FileNotFoundError(
            f"{nothing}, and none that can be had from the Hugging Face Hub ({shortened(error)})"
        ) from error
    return Found(file, f"{name}@{file.parent.name}")


class _NotCachedError(Exception):
    """A file is not in the cache, and the hub is out of reach, or shall not be asked."""


def _weights(name: str, how: Mapping[str, Any]) -> Path:
    """The file of weights, once config.json has said that they are ours.

    Where that cannot be had, weights in the cache may say so themselves: nothing is fetched.
    """
    try:
        config = read_json(_file(name, CONFIG, LARGEST_TEXT, how))
    except _NotCachedError as missing:
        try:
            return _file(name, WEIGHTS, _LARGEST_WEIGHTS, {**how, "local_files_only": True})
        except _NotCachedError:
            raise missing from None
    if not is_ours(config):
        raise CheckpointError(f"its {CONFIG} is none of ncsn_fast")
    return _file(name, WEIGHTS, _LARGEST_WEIGHTS, how)


def _file(name: str, file: str, largest: int, how: Mapping[str, Any]) -> Path:
    """A file of a repository, which is not fetched where it is too large."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    out_of_reach = None
    if not how.get("local_files_only"):
        try:
            url = hf_hub_url(name, file, revision=how.get("revision"))
            size = get_hf_file_metadata(url, token=how.get("token")).size
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception as error:  # the hub cannot be reached, or shall not be
            how, out_of_reach = {**how, "local_files_only": True}, error
        else:
            # A mirror may not say. A text is measured again as it is read.
            if size is None and file != CONFIG:
                raise CheckpointError(f"its {file} is of unknown size: fetch it yourself")
            if size is not None and size > largest:
                raise CheckpointError(f"its {file} has {size} bytes, of at most {largest}")
    try:
        return Path(hf_hub_download(name, file, **how))
    except Exception as error:
        if how.get("local_files_only"):
            raise _NotCachedError(str(out_of_reach or error)) from error
        raise


__all__ = [
    "CARD",
    "CONFIG",
    "HUB",
    "MISSING",
    "WEIGHTS",
    "Found",
    "is_ours",
    "located",
    "names_network",
]
