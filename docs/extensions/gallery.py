"""How the pictures of docs/examples look, which sphinx-gallery runs for the gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

STYLE = Path(__file__).with_name("gallery.mplstyle")


def reset(conf: dict[str, Any], file: str) -> None:
    """Before each example: its pictures' style, and the same numbers whatever ran before it."""
    from matplotlib import pyplot

    pyplot.style.use(STYLE)
    torch.manual_seed(0)
