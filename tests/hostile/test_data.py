"""Pictures and folders of strangers: small ones that would take gigabytes, mazes, disguises."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hostile import inputs
from hostile.measured import cost_of_reading
from PIL import Image

from ncsn_fast.data.load import load_pixels

MOST_SECONDS, MOST_MIB = 1.0, 200
SIDE = 9000  # within Pillow's limit: it would decode 81 million pixels


def flat(kind, **settings):
    file = io.BytesIO()
    Image.new("L", (SIDE, SIDE)).save(file, kind, **settings)
    return file.getvalue()


def png(*chunks):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(20)))
    more = b"".join(itertools.starmap(chunk, chunks))
    return b"\x89PNG\r\n\x1a\n" + head + more + rows + chunk(b"IEND", b"")


def zeros(size):
    return b"a\0\0" + zlib.compress(bytes(size), 9)


def chained_tiff(pages):
    """A TIFF whose pages lie in a ring."""
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(
        file, "TIFF", save_all=True, append_images=[Image.new("L", (4, 4))] * (pages - 1)
    )
    whole = file.getvalue()
    first = struct.unpack("<I", whole[4:8])[0]
    end = whole.rfind(bytes(4))
    return whole[:end] + struct.pack("<I", first) + whole[end + 4 :]


BOMBS = {
    "a single colour, png": lambda: flat("PNG"),
    "a single colour, tiff": lambda: flat("TIFF", compression="tiff_adobe_deflate"),
    "a single colour, gif": lambda: flat("GIF"),
    "a text": lambda: png((b"zTXt", zeros(1 << 28))),
    "many texts": lambda: png(*[(b"zTXt", zeros(1 << 20))] * 200),
    "a colour profile": lambda: png((b"iCCP", zeros(1 << 28))),
    "pages in a ring": lambda: chained_tiff(3),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_picture_is_refused_in_bounded_time_and_memory(kind):
    found = cost_of_reading("picture, png", BOMBS[kind]())
    assert found.told.startswith("ValueError"), found
    assert "x.png" in found.told
    assert len(found.told) < 1000
    assert found.seconds < MOST_SECONDS, found
    assert found.mib < MOST_MIB, found


def test_a_maze_of_links_is_walked_once(tmp_path):
    """Every folder leads to every other: paths without end, but one picture in each."""
    rooms = [tmp_path / f"room{i}" for i in range(12)]
    for i, room in enumerate(rooms):
        room.mkdir()
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(room / "a.png")
    for room, other in itertools.permutations(rooms, 2):
        (room / other.name).symlink_to(other)
    assert load_pixels(tmp_path)[:, 0, 0, 0].tolist() == [0, 1, 10, 11, *range(2, 10)]


@pytest.mark.parametrize("content", ["network", "samples"])
def test_other_files_in_the_place_of_a_picture_are_named(content, tmp_path):
    (tmp_path / "a.png").write_bytes(getattr(inputs, content)())
    with pytest.raises(ValueError, match=r"a\.png is no image"):
        load_pixels(tmp_path)
