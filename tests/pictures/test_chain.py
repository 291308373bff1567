"""The chain as an animation, in each of its formats; ffmpeg itself where it is."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from ncsn_fast.pictures import chain as chains
from ncsn_fast.pictures.chain import check_chain_path, save_chain

COLOUR = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(1))
PICTURE = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def chain(states: int, images: int = 4) -> torch.Tensor:
    return torch.randn(states, images, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def frames(path: Path) -> list[tuple[int, np.ndarray]]:
    """The duration in milliseconds and the grey pixels of each frame."""
    found = []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            pixels = np.asarray(frame.convert("L"))  # a WebP tells its duration when it is read
            found.append((frame.info["duration"], pixels))
    return found


def durations(path: Path) -> list[int]:
    return [duration for duration, _ in frames(path)]


def test_chain_has_a_frame_for_each_state_and_holds_the_last(tmp_path: Path) -> None:
    save_chain(tmp_path / "c.gif", chain(5), [1, 0.5, 0.2, 0.1, 0.0])
    assert durations(tmp_path / "c.gif") == [80, 80, 80, 80, 2000]
    with Image.open(tmp_path / "c.gif") as image:
        assert image.info["loop"] == 0  # for ever
        assert image.is_animated


def test_long_chains_are_thinned_and_keep_both_ends(tmp_path: Path) -> None:
    # All states are black but the first and the last, whose captions differ all the same.
    trajectory = torch.zeros(301, 1, 1, 8, 8)
    trajectory[0] = trajectory[-1] = 1
    save_chain(tmp_path / "c.gif", trajectory, max_frames=20, scale=8)
    pixels = [pixels for _, pixels in frames(tmp_path / "c.gif")]
    assert len(pixels) == 20
    white = [bool(pixels[i][48, pixels[i].shape[1] // 2] > 250) for i in (0, 1, 18, 19)]
    assert white == [True, False, False, True]


def test_the_caption_names_the_noise_level(tmp_path: Path) -> None:
    same = torch.zeros(3, 1, 1, 8, 8)
    save_chain(tmp_path / "c.gif", same, torch.tensor([1.0, 0.5, 0.0]))
    captions = [pixels[64:] for _, pixels in frames(tmp_path / "c.gif")]
    assert len(captions) == 3
    assert not np.array_equal(captions[0], captions[1])
    for caption in captions:
        assert caption.min() < 60
        assert (caption[:, -8:] == 255).all()
    assert chains._captions(3, [12.5, 0.00987, 0]) == [
        "noise level σ = 12.5",
        "noise level σ = 0.00987",
        "denoised",
    ]


def test_chain_file_of_36_digits_is_small(tmp_path: Path) -> None:
    save_chain(tmp_path / "c.gif", chain(80, images=36))
    assert (tmp_path / "c.gif").stat().st_size < 2e6


def test_colour_chains_are_written(tmp_path: Path) -> None:
    save_chain(tmp_path / "c.gif", torch.stack([COLOUR, 1 - COLOUR]), frame_seconds=0.5)
    assert durations(tmp_path / "c.gif") == [500, 2000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trajectory": PICTURE}, r"shape \(6, 1, 8, 8\): needed is \(K, N, C, H, W\)"),
        ({"trajectory": chain(3).log()}, r"not finite"),
        ({"sigmas": [1.0, 0.5]}, r"shape \(2,\) for a trajectory of 3 states"),
        ({"sigmas": [1.0, 0.5, -0.1]}, r"finite and not negative"),
        ({"sigmas": [1.0, float("nan"), 0.1]}, r"finite and not negative"),
        ({"max_frames": 1}, r"max_frames is 1: allowed is 2"),
        ({"frame_seconds": 0.0}, r"frame_seconds is 0\.0 and last_seconds 2\.0: allowed is 0\.02"),
    ],
)
def test_chain_refuses_unusable_input(
    arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        save_chain(tmp_path / "c.gif", **{"trajectory": chain(3), **arguments})
    assert not list(tmp_path.iterdir())


def test_levels_may_be_views_of_arrays(tmp_path: Path) -> None:
    save_chain(tmp_path / "c.gif", chain(3), np.array([0.0, 0.5, 1.0])[::-1])
    assert (tmp_path / "c.gif").exists()


def test_a_webp_has_the_frames_of_a_gif_in_less_room_with_all_greys(tmp_path: Path) -> None:
    trajectory = chain(20, images=9).cumsum(0) / 20
    for name in ("c.gif", "c.webp"):
        save_chain(tmp_path / name, trajectory, torch.linspace(1, 0, 20))
    assert durations(tmp_path / "c.webp") == durations(tmp_path / "c.gif")
    with Image.open(tmp_path / "c.webp") as image:
        assert image.info["loop"] == 0
    for (_, webp), (_, gif) in zip(
        frames(tmp_path / "c.webp"), frames(tmp_path / "c.gif"), strict=True
    ):
        assert np.abs(webp.astype(int) - gif).max() <= 2  # of 64 greys
    assert (tmp_path / "c.webp").stat().st_size < (tmp_path / "c.gif").stat().st_size


def test_a_webp_of_small_images_keeps_every_grey(tmp_path: Path) -> None:
    trajectory = torch.arange(128).reshape(2, 1, 1, 8, 8) / 255
    save_chain(tmp_path / "c.webp", trajectory, scale=8)
    middle = frames(tmp_path / "c.webp")[1][1]
    assert set(range(64, 128)) <= set(middle.ravel().tolist())


# --- ffmpeg ---------------------------------------------------------------------------------------

FAKE = """#!{python}
import json, pathlib, sys
pixels = sys.stdin.buffer.read()
out = sys.argv[-1].removeprefix("file:")
here = pathlib.Path(__file__).parent
(here / "seen.json").write_text(json.dumps([sys.argv[1:], len(pixels), sum(pixels)]))
{body}
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts an ffmpeg on the PATH that does what it is told; returns where it says what it saw."""

    def put(body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "ffmpeg").write_text(FAKE.format(python=sys.executable, body=body))
        (folder / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return folder / "seen.json"

    return put


WRITES = 'pathlib.Path(out).write_bytes(b"a video")'


@pytest.mark.parametrize(("images", "pixel"), [(chain(3), "gray"), (None, "rgb24")])
def test_ffmpeg_gets_the_frames_and_a_name_that_is_no_option(
    images: torch.Tensor | None, pixel: str, fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fake(WRITES)
    monkeypatch.chdir(tmp_path)
    Path("-y").mkdir()
    trajectory = torch.stack([COLOUR] * 3) if images is None else images
    save_chain("-y/c.mp4", trajectory, last_seconds=1.0)
    assert Path("-y/c.mp4").read_bytes() == b"a video"
    arguments, pixels, brightness = json.loads(seen.read_text())
    assert arguments[-1].startswith(f"file:{tmp_path}/-y/")
    after = dict(itertools.pairwise(arguments))
    assert (after["-f"], after["-pixel_format"], after["-i"]) == ("rawvideo", pixel, "pipe:0")
    assert after["-framerate"] == "12.5"
    assert after["-vf"] == "tpad=stop_mode=clone:stop_duration=0.92"
    width, height = map(int, after["-video_size"].split("x"))
    assert width % 2 == height % 2 == 0
    assert pixels == 3 * width * height * (3 if pixel == "rgb24" else 1)
    assert brightness > 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            'sys.exit("first\\nUnknown encoder libx264")',
            r"code 1: Unknown encoder libx264; ",
        ),
        ("sys.exit(3)", r"code 3: without a word; choose webp or gif$"),
        ("", r"code 0: without a word; "),  # and wrote nothing
    ],
)
def test_what_ffmpeg_says_is_told_and_the_old_file_stays(
    body: str, told: str, fake, tmp_path: Path
) -> None:
    fake(body)
    (tmp_path / "c.mp4").write_bytes(b"old")
    with pytest.raises(ValueError, match=told):
        save_chain(tmp_path / "c.mp4", chain(3))
    assert (tmp_path / "c.mp4").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "c.mp4"}


def test_an_ffmpeg_that_does_not_end_is_ended(
    fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "_ENOUGH", 0.5)
    fake("import time; time.sleep(1000)")
    with pytest.raises(ValueError, match=r"ffmpeg took more than 0\.5 s for 3 frames"):
        save_chain(tmp_path / "c.mp4", chain(3))
    assert not (tmp_path / "c.mp4").exists()


def test_without_ffmpeg_an_mp4_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"ffmpeg, which is not on the PATH: .* webp or gif"):
        check_chain_path(tmp_path / "c.mp4")
    check_chain_path(tmp_path / "c.webp")


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffmpeg")
def test_ffmpeg_makes_a_video_that_can_be_read(tmp_path: Path) -> None:
    save_chain(tmp_path / "c.mp4", chain(5), last_seconds=0.5)
    asked = "stream=codec_name,pix_fmt,width,height,nb_read_frames"
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", asked, "-of", "json"]
    told = subprocess.run(
        [*command, str(tmp_path / "c.mp4")], capture_output=True, check=True, timeout=60
    )
    (stream,) = json.loads(told.stdout)["streams"]
    assert (stream["codec_name"], stream["pix_fmt"]) == ("h264", "yuv420p")
    assert int(stream["nb_read_frames"]) in (10, 11)  # five, and the last one for 0.42 s more


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half a pict")
        raise OSError("no space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    path = tmp_path / f"c.{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="no space left"):
        save_chain(path, chain(2))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_types_of_file_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"c\.txt: its name must end in \.gif or \.webp or \.mp4"):
        save_chain(tmp_path / "c.txt", chain(2))
    with pytest.raises(ValueError, match="nowhere"):
        save_chain(tmp_path / "nowhere" / "c.gif", chain(2))
    assert not list(tmp_path.iterdir())
