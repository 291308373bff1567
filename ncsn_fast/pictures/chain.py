"""The states of a chain as an animation: GIF, WebP, or MP4 where ffmpeg is."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast.pictures.images import (
    INK,
    MARGIN,
    PAPER,
    TEXT_SIZE,
    choose_scale,
    font_of,
    image_grid,
    line_height,
    shade,
)
from ncsn_fast.support import checks
from ncsn_fast.support.files import atomic_write, check_suffix

if TYPE_CHECKING:
    from PIL import Image

# Smaller than other grids, as 80 frames add up.
_IMAGE_SIDE, _GRID_SIDE = 40, 640
_GREYS_OF_A_GIF = 64  # it keeps every grey of noise, which does not compress
_QUALITY = 85  # of a WebP of images that are not enlarged
_ENOUGH = 300  # s, for a few seconds of video


class Film(NamedTuple):
    """What is shown: frames of one size, how long each stays and how long the last one, in
    seconds, and by what whole number the images on them are enlarged."""

    frames: list[Image.Image]
    each: float
    last: float
    factor: int


def save_chain(
    path: str | os.PathLike[str],
    trajectory: Tensor,
    sigmas: Sequence[float] | Tensor | None = None,
    *,
    columns: int | None = None,
    scale: int | str = "auto",
    max_frames: int = 80,
    frame_seconds: float = 0.08,
    last_seconds: float = 2.0,
) -> None:
    """Write the states of a chain as an animation, the noise level written below.

    Args:
        path: a ``.gif``, ``.webp`` or ``.mp4`` file in a folder that exists. The first two repeat
            for ever; the last one takes ffmpeg on the PATH, with libx264.
        trajectory: floating point (K, N, C, H, W), K states of N images; clamped to [0, 1].
        sigmas: K noise levels σ ≥ 0, one for each state; None writes the number of the state.
        columns: images per row. Default: as square a grid as possible.
        scale: whole number by which pixels are enlarged. "auto" brings small images to a side of
            about 40 pixels and keeps the grid within 640.
        max_frames: of a longer trajectory that many states are shown, evenly spaced, among them
            the first and the last.
        frame_seconds: time each frame stays; a GIF knows hundredths of a second.
        last_seconds: time the last frame stays.

    Raises:
        ValueError: for shapes or settings that are not as above, values that are not finite,
            another type of file, a folder that does not exist, an MP4 without ffmpeg, or where that
            fails, with its last words.
    """
    check_chain_path(path)
    if trajectory.ndim != 5 or not len(trajectory):
        raise ValueError(
            f"trajectory has shape {tuple(trajectory.shape)}: needed is (K, N, C, H, W), K ≥ 1"
        )
    if max_frames < 2:
        raise ValueError(f"max_frames is {max_frames}: allowed is 2 or more")
    if min(frame_seconds, last_seconds) < 0.02:
        raise ValueError(
            f"frame_seconds is {frame_seconds} and last_seconds {last_seconds}: allowed is 0.02 "
            "or more, as viewers slow down faster animations"
        )
    captions = _captions(len(trajectory), sigmas)
    wanted = math.ceil(_IMAGE_SIDE / max(trajectory.shape[-2:]))
    plain = image_grid(trajectory[0], columns, scale=1)
    factor = choose_scale(scale, wanted, _GRID_SIDE / max(plain.size))
    shown = _evenly_spaced(len(trajectory), max_frames)
    grids = [image_grid(trajectory[k], columns, scale=factor) for k in shown]
    frames = _frames(grids, [captions[k] for k in shown])
    film = Film(frames, frame_seconds, last_seconds, factor)
    with atomic_write(path) as temporary:
        _WRITERS[Path(path).suffix.lower()](temporary, film)


def check_chain_path(path: str | os.PathLike[str]) -> None:
    """Refuse now an animation that could not be written after the work.

    Raises:
        ValueError: for another type of file, or an MP4 where ffmpeg is not on the PATH.
    """
    check_suffix(path, tuple(_WRITERS))
    if Path(path).suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(
            f"cannot write {path}: an MP4 takes ffmpeg, which is not on the PATH: install it, or "
            "choose webp or gif"
        )


def _write_gif(path: Path, film: Film) -> None:
    steps = _GREYS_OF_A_GIF - 1
    fewer_greys = [round(round(grey / 255 * steps) / steps * 255) for grey in range(256)]
    # Colours are reduced by the file format itself.
    frames = [frame.point(fewer_greys) if frame.mode == "L" else frame for frame in film.frames]
    _write_images(path, film._replace(frames=frames), optimize=False)


def _write_webp(path: Path, film: Film) -> None:
    # Enlarged pixels repeat: without loss they take a sixth of what they do with some.
    _write_images(path, film, lossless=film.factor > 1, quality=_QUALITY, method=4)


def _write_images(path: Path, film: Film, **settings: Any) -> None:
    first, *others = film.frames
    durations = [round(1000 * film.each)] * len(others) + [round(1000 * film.last)]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, **settings)


def _write_mp4(path: Path, film: Film) -> None:
    frames, each, last, _ = film
    width, height = frames[0].size
    command = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-y", "-f", "rawvideo"]
    command += ["-pixel_format", "gray" if frames[0].mode == "L" else "rgb24"]
    command += ["-video_size", f"{width}x{height}", "-framerate", f"{1 / each:g}", "-i", "pipe:0"]
    command += ["-vf", f"tpad=stop_mode=clone:stop_duration={max(0.0, last - each):g}"]
    command += ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    # Whatever the name is, it is neither an option nor an address.
    command.append(f"file:{path.absolute()}")
    pixels = b"".join(frame.tobytes() for frame in frames)
    try:
        ended = subprocess.run(
            command, input=pixels, capture_output=True, timeout=_ENOUGH, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"ffmpeg took more than {_ENOUGH} s for {len(frames)} frames: choose webp or gif"
        ) from None
    if ended.returncode != 0 or not path.stat().st_size:
        told = ended.stderr.decode(errors="replace").strip().splitlines() or ["without a word"]
        raise ValueError(
            f"ffmpeg ended with code {ended.returncode}: {told[-1]}; choose webp or gif"
        )


_WRITERS: dict[str, Callable[[Path, Film], None]] = {
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".mp4": _write_mp4,
}
# What an animation of a chain may be, by the endings of files.
FORMATS = tuple(suffix[1:] for suffix in _WRITERS)


def _captions(count: int, sigmas: Sequence[float] | Tensor | None) -> list[str]:
    if sigmas is None:
        return [f"state {k + 1} of {count}" for k in range(count)]
    levels = checks.tensor("sigmas", sigmas).double().cpu()
    if levels.shape != (count,):
        raise ValueError(
            f"sigmas have shape {tuple(levels.shape)} for a trajectory of {count} states: "
            "give one noise level for each state"
        )
    if not bool((torch.isfinite(levels) & (levels >= 0)).all()):
        raise ValueError("sigmas must be finite and not negative")
    return [f"noise level σ = {level:.3g}" if level else "denoised" for level in levels.tolist()]


def _frames(grids: list[Image.Image], captions: list[str]) -> list[Image.Image]:
    """Write each caption below its grid, on pages that are wide enough for all of them.

    Their sides are even, which videos ask for.
    """
    from PIL import Image, ImageDraw

    font = font_of(TEXT_SIZE)
    text = max(math.ceil(font.getlength(caption)) for caption in captions)
    mode, width = grids[0].mode, max(grids[0].width, text) + 2 * MARGIN
    below = MARGIN + grids[0].height + MARGIN // 2
    height = below + line_height(font) + MARGIN // 2
    size = width + width % 2, height + height % 2
    frames = []
    for grid, caption in zip(grids, captions, strict=True):
        page = Image.new(mode, size, shade(mode, PAPER))
        page.paste(grid, ((size[0] - grid.width) // 2, MARGIN))
        ImageDraw.Draw(page).text((MARGIN, below), caption, shade(mode, INK), font)
        frames.append(page)
    return frames


def _evenly_spaced(count: int, limit: int) -> list[int]:
    if count <= limit:
        return list(range(count))
    return [round(k * (count - 1) / (limit - 1)) for k in range(limit)]


__all__ = ["FORMATS", "check_chain_path", "save_chain"]
