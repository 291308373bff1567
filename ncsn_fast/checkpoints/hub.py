"""Networks on the Hugging Face Hub: a folder, or a repository, with ``model.safetensors``,
``config.json`` and a card.

``model.safetensors`` is a file of :func:`save_checkpoint`, which needs nothing beside it;
``config.json`` tells people, and the hub, what is in it. Only that one file is ever fetched: it
holds numbers and no code.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from ncsn_fast.support.parsers import shortened

_log = logging.getLogger("ncsn_fast")

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MISSING = "the package huggingface_hub, which is not installed: pip install huggingface_hub"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors", ".tar", ".yaml", ".yml", ".zip")


def located(path: str | os.PathLike[str]) -> Path:
    """The file that a path stands for: itself, the weights in a folder in the hub's layout, or,
    fetched where they are not in the hub's cache, those of a network on the hub.

    Only a str that reads "user/name" can mean the hub: no Path, no name of a file of weights, and
    none in a folder that there is.

    Raises:
        FileNotFoundError: where there is neither such a file nor such a network.
    """
    local = Path(path)
    if local.is_dir() and (local / WEIGHTS).is_file():
        return local / WEIGHTS
    if local.exists() or not isinstance(path, str) or not names_network(path):
        return local
    return _fetched(path)


def names_network(path: str) -> bool:
    """Whether a name reads as that of a network on the hub, "user/name", and as no file's here."""
    if _NAME.fullmatch(path) is None or path.lower().endswith(_FILES):
        return False
    return not Path(path).parent.exists()


def _fetched(name: str) -> Path:
    nothing = f"there is no checkpoint {name}"
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise FileNotFoundError(
            f"{nothing}; to look for it on the Hugging Face Hub takes {MISSING}"
        ) from None
    _log.info("%s is no file: it is looked for on the Hugging Face Hub, or in its cache", name)
    try:
        return Path(hf_hub_download(name, WEIGHTS))
    except Exception as error:  # of a dozen kinds: no network, no such repository, no such file
        raise FileNotFoundError(
            f"{nothing}, and none that can be had from the Hugging Face Hub ({shortened(error)})"
        ) from error


__all__ = ["CARD", "CONFIG", "MISSING", "WEIGHTS", "located", "names_network"]
