"""Pictures in a terminal: which protocol is taken, and that what is written is the picture."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from ncsn_fast.pictures.terminal import as_text, protocol_of

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
CELL = re.compile(r"(?:\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m)?▀")


def pixels_of(text):
    """The pixels that half blocks show, as a terminal reads them."""
    rows = []
    for line in text.split("\n"):
        assert line.endswith("\x1b[0m")
        cells = CELL.findall(line)
        assert CELL.sub("", line) == "\x1b[0m"
        for i, cell in enumerate(cells):
            cells[i] = [int(part) for part in cell] if cell[0] else cells[i - 1]
        cells = np.array(cells, dtype=np.uint8)
        rows += [cells[:, :3], cells[:, 3:]]
    return np.stack(rows)


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "screen", "TERM_PROGRAM": "ghostty", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-256color", "COLORTERM": "24bit"}, "blocks"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, None),
        ({}, None),
    ],
)
def test_the_protocol_is_what_the_terminal_says_of_itself(environment, protocol):
    assert protocol_of(environment) == protocol


def test_half_blocks_are_the_pixels_two_to_a_cell():
    text = as_text(Image.fromarray(PIXELS), "blocks", 5, 3)
    assert np.array_equal(pixels_of(text), PIXELS)


def test_an_odd_last_row_is_shown_and_grey_pictures_are():
    shown = pixels_of(as_text(Image.fromarray(PIXELS[:3, :, 0]), "blocks", 80, 24))
    assert np.array_equal(shown[:3], np.repeat(PIXELS[:3, :, :1], 3, axis=2))
    assert np.array_equal(shown[3], shown[2])


def test_colours_are_told_where_they_change():
    text = as_text(Image.new("RGB", (50, 2), "red"), "blocks", 80, 24)
    assert text == "\x1b[38;2;255;0;0;48;2;255;0;0m" + "▀" * 50 + "\x1b[0m"


@pytest.mark.parametrize(
    ("size", "shown"),
    [((60, 90), (20, 30)), ((60, 240), (20, 80)), ((60, 600), (8, 76)), ((20, 10), (20, 10))],
)
def test_a_large_picture_is_shrunk_to_the_columns_and_forty_lines(size, shown):
    pixels = pixels_of(as_text(Image.new("RGB", size, "red"), "blocks", 20, 24))
    assert pixels.shape[1::-1] == shown


def test_enlarged_pixels_become_pixels_again():
    enlarged = Image.fromarray(PIXELS.repeat(8, axis=0).repeat(8, axis=1))
    assert np.array_equal(pixels_of(as_text(enlarged, "blocks", 5, 3)), PIXELS)


def read(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_kitty_gets_the_picture_in_chunks():
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    text = as_text(Image.fromarray(pixels), "kitty", 80, 24)
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{head};{data}\x1b\\" for head, data in parts) == text
    first, *middle, last = (head for head, _ in parts)
    assert (first, set(middle), last) == ("a=T,f=100,q=2,m=1", {"m=1"}, "m=0")
    assert all(len(data) <= 4096 for _, data in parts)
    assert np.array_equal(read("".join(data for _, data in parts)), pixels)


def test_iterm_gets_the_picture_as_a_file():
    text = as_text(Image.fromarray(PIXELS), "iterm2", 80, 24)
    size, data = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+):([\w+/=]+)\x07", text).groups()
    assert int(size) == len(base64.b64decode(data))
    assert np.array_equal(read(data), PIXELS)
