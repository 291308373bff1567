"""A picture as characters for a terminal.

kitty's graphics protocol and iTerm2's inline images take a PNG file in base64; every other terminal
with 24-bit colours gets half blocks: the upper half of a cell has the colour of the letter, the
lower half that of its background, so that a cell is two pixels.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Protocol = Literal["kitty", "iterm2", "blocks"]
_CHUNK = 4096  # characters, the most that kitty takes at once
_LEAST_LINES = 40  # of a picture, as a terminal can be scrolled


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """How the terminal of these environment variables shows pictures; None: not that it says."""
    terminal, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    # Inside tmux and screen the variables of the terminal around them are still there.
    if not terminal.startswith(("tmux", "screen")):
        if terminal == "xterm-kitty" or program in ("ghostty", "WezTerm"):
            return "kitty"
        if program == "iTerm.app":
            return "iterm2"
    colours = environment.get("COLORTERM") in ("truecolor", "24bit")
    return "blocks" if colours and terminal != "dumb" and not environment.get("NO_COLOR") else None


def as_text(picture: Image.Image, protocol: Protocol, columns: int, lines: int) -> str:
    """The characters that draw a picture.

    Args:
        picture: of any mode and size.
        protocol: what the terminal understands.
        columns, lines: its size in cells. Half blocks are the picture shrunk by a whole number, to
            at most these columns and these lines, or 40 lines where it has fewer. The others show
            it as large as it is.

    Returns:
        Lines that end with the terminal's own colours again, without a last line feed.
    """
    if protocol == "blocks":
        return _half_blocks(picture, columns, max(lines, _LEAST_LINES))
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    if protocol == "iterm2":
        return f"\x1b]1337;File=inline=1;size={len(file.getvalue())}:{data}\x07"
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    # a=T: take it and show it, f=100: a PNG, q=2: answer nothing, m=1: more follows.
    heads = ["a=T,f=100,q=2,"] + [""] * (len(chunks) - 1)
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(
        f"\x1b_G{head}m={follows};{chunk}\x1b\\"
        for head, follows, chunk in zip(heads, more, chunks, strict=True)
    )


def _half_blocks(picture: Image.Image, columns: int, lines: int) -> str:
    factor = math.ceil(max(picture.width / columns, picture.height / (2 * lines)))
    pixels = np.asarray(picture.convert("RGB").reduce(factor))
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    return "\n".join(
        _line(upper.tolist(), lower.tolist())
        for upper, lower in zip(pixels[::2], pixels[1::2], strict=True)
    )


def _line(upper: list[list[int]], lower: list[list[int]]) -> str:
    """A row of cells, their colours told where they change."""
    line, before = [], None
    for cell in zip(upper, lower, strict=True):
        if cell != before:
            line.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*cell[0], *cell[1]))
        line.append("▀")
        before = cell
    return "".join(line) + "\x1b[0m"


__all__ = ["Protocol", "as_text", "protocol_of"]
