"""How the pictures of docs/examples look, which sphinx-gallery runs for the gallery."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

STYLE = Path(__file__).with_name("gallery.mplstyle")
# A package of the theme has set up the process's log, at a level at which every chain is told.
logging.getLogger("ncsn_fast").setLevel(logging.WARNING)


def reset(conf: dict[str, Any], file: str) -> None:
    """Before each example: its pictures' style, and the same numbers whatever ran before it."""
    from matplotlib import pyplot

    pyplot.style.use(STYLE)
    torch.manual_seed(0)
