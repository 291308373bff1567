"""Pictures of images: grids, panels side by side, the chain as an animation.

Images are floating-point tensors (N, C, H, W), C = 1 or 3, in [0, 1]. Values outside [0, 1] are
clamped for display only, as early states of a chain lie far outside; values that are not finite
are refused. Files are complete or absent. matplotlib's global state is never touched.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.support import checks
from ncsn_fast.support.files import atomic_write, check_suffix

if TYPE_CHECKING:
    from PIL import Image, ImageFont

_GRID_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# Each image is enlarged by a whole number to about this side, the whole grid to at most that.
_IMAGE_SIDE, _GRID_SIDE = 64, 1280
# Frames are smaller and have fewer greys: noise does not compress, and 80 frames add up.
_FRAME_IMAGE_SIDE, _FRAME_GRID_SIDE, _FRAME_GREYS = 40, 640, 64

_PAPER, _INK, _LINE = 255, 30, 255
_TEXT_SIZE = 18
_MARGIN = 16


def image_grid(
    images: Tensor, columns: int | None = None, padding: int = 1, scale: int | str = "auto"
) -> Image.Image:
    """Lay images out in rows, first image top left, with white lines between them.

    Args:
        images: floating point (N, C, H, W), C = 1 (grey) or 3 (RGB); clamped to [0, 1].
        columns: images per row. Default: as square a grid as possible.
        padding: width of the lines, in pixels of the images (before they are enlarged).
        scale: whole number by which pixels are enlarged, without smoothing. "auto" brings small
            images to a side of about 64 pixels and keeps the grid within 1,280.

    Returns:
        A PIL image of mode "L" or "RGB"; its width is scale·(columns·(W + padding) - padding),
        its height likewise.

    Raises:
        ValueError: for a shape, data type or value that is not as above.
    """
    from PIL import Image

    pixels = _to_pixels(images)
    columns = _count_columns(len(pixels), columns)
    if padding < 0:
        raise ValueError(f"padding is {padding}: give 0 or a positive number of pixels")
    rows = -(-len(pixels) // columns)
    height, width, channels = pixels.shape[1:]
    # One line too many at the right and below, so that every cell is alike; cut off in the end.
    cells = np.full(
        (rows * columns, height + padding, width + padding, channels), _LINE, dtype=np.uint8
    )
    cells[: len(pixels), :height, :width] = pixels
    cells = cells.reshape(rows, columns, height + padding, width + padding, channels)
    grid = cells.transpose(0, 2, 1, 3, 4).reshape(
        rows * (height + padding), columns * (width + padding), channels
    )
    grid = grid[: len(grid) - padding, : grid.shape[1] - padding]
    wanted, most = _IMAGE_SIDE / max(height, width), _GRID_SIDE / max(grid.shape[:2])
    factor = _choose_scale(scale, wanted, most)
    grid = grid.repeat(factor, axis=0).repeat(factor, axis=1)
    return Image.fromarray(np.ascontiguousarray(grid[..., 0] if channels == 1 else grid))


def visible(images: Tensor) -> Tensor:
    """Images that a grid can show: (N, 1, H, C·W), the channels side by side, of such whose C is
    neither 1 nor 3, like real and imaginary parts; others (N, C, H, W) as they are."""
    if images.shape[1] in (1, 3):
        return images
    return torch.cat(list(images.split(1, dim=1)), dim=-1)


def save_grid(
    path: str | os.PathLike[str],
    images: Tensor,
    columns: int | None = None,
    padding: int = 1,
    scale: int | str = "auto",
) -> None:
    """Write ``image_grid(images, columns, padding, scale)`` to a file.

    Args:
        path: a ``.png``, ``.jpg``, ``.jpeg`` or ``.webp`` file in a folder that exists.
        images, columns, padding, scale: as for ``image_grid``.

    Raises:
        ValueError: as ``image_grid``; for another type of file, or a folder that does not exist.
    """
    check_suffix(path, _GRID_SUFFIXES)
    _save_image(path, image_grid(images, columns, padding, scale))


def save_panels(
    path: str | os.PathLike[str],
    panels: Mapping[str, Tensor],
    *,
    count: int = 64,
    columns: int | None = None,
    per_row: int | None = None,
) -> None:
    """Write titled grids side by side: generated images and real ones, for instance.

    Args:
        path: a ``.png``, ``.jpg``, ``.jpeg`` or ``.webp`` file in a folder that exists.
        panels: by their titles, floating point (N, C, H, W), C = 1 or 3, of any sizes; clamped to
            [0, 1].
        count: the first ``count`` images of each set are shown, fewer if a set has fewer: all
            grids show the same number.
        columns: images per row of each grid. Default: as square as possible.
        per_row: grids per row of the picture, fewer in the middle of the last one. Default: all.

    Raises:
        ValueError: for no panels, shapes that are not as above, values that are not finite,
            another type of file, or a folder that does not exist.
    """
    from PIL import Image, ImageDraw

    check_suffix(path, _GRID_SUFFIXES)
    if not panels:
        raise ValueError("there are no panels: give titles and their images")
    if count < 1 or (per_row is not None and per_row < 1):
        raise ValueError(f"count is {count} and per_row {per_row}: show at least one image")
    count = min(count, *map(len, panels.values()))
    grids = [image_grid(images[:count], columns) for images in panels.values()]
    across = min(len(grids), per_row or len(grids))
    font = _font(_TEXT_SIZE)
    width = max(grid.width for grid in grids)
    width = max(width, *(math.ceil(font.getlength(title)) for title in panels))
    above = _line_height(font) + _MARGIN // 2
    height = above + max(grid.height for grid in grids) + _MARGIN
    mode = "L" if all(grid.mode == "L" for grid in grids) else "RGB"
    size = across * (width + 2 * _MARGIN), -(-len(grids) // across) * height + _MARGIN
    page = Image.new(mode, size, _shade(mode, _PAPER))
    for i, (title, grid) in enumerate(zip(panels, grids, strict=True)):
        beside = min(across, len(grids) - i // across * across)
        left = i % across * (width + 2 * _MARGIN) + (across - beside) * (width + 2 * _MARGIN) // 2
        left, top = _MARGIN + left, _MARGIN + i // across * height
        ImageDraw.Draw(page).text((left, top), title, _shade(mode, _INK), font)
        page.paste(grid, (left, top + above))
    _save_image(path, page)


def save_chain_gif(
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
    """Write the states of a chain as an endless animation, the noise level written below.

    Args:
        path: a ``.gif`` file in a folder that exists.
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
            another type of file, or a folder that does not exist.
    """
    check_suffix(path, (".gif",))
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
    wanted = math.ceil(_FRAME_IMAGE_SIDE / max(trajectory.shape[-2:]))
    plain = image_grid(trajectory[0], columns, scale=1)
    factor = _choose_scale(scale, wanted, _FRAME_GRID_SIDE / max(plain.size))
    shown = _evenly_spaced(len(trajectory), max_frames)
    grids = [image_grid(trajectory[k], columns, scale=factor) for k in shown]
    frames = _frames(grids, [captions[k] for k in shown])
    durations = [round(1000 * frame_seconds)] * (len(frames) - 1) + [round(1000 * last_seconds)]
    with atomic_write(path) as temporary:
        frames[0].save(
            temporary,
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def thumbnail(path: str | os.PathLike[str], side: int, part: float = 1.0) -> bytes | None:
    """A grid that was written as a PNG, made smaller for a page.

    Args:
        side: pixels of its longer side, at most; whole numbers of pixels are averaged.
        part: the share of each side that is kept, from the top left.

    Returns:
        A WebP file; None for what is no picture, or a larger one than grids are.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as found:
            if max(found.size) > 4 * _GRID_SIDE:
                return None
            kept = found.convert("L" if found.mode == "L" else "RGB")
    except (OSError, ValueError, SyntaxError):  # the last one is what Pillow says of a broken PNG
        return None
    kept = kept.crop((0, 0, math.ceil(part * kept.width), math.ceil(part * kept.height)))
    kept = kept.reduce(-(-max(kept.size) // side))
    buffer = io.BytesIO()
    kept.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


def _to_pixels(images: Tensor) -> np.ndarray:
    """Return uint8 (N, H, W, C)."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            f"images have shape {tuple(images.shape)}: needed is (N, C, H, W) with C = 1 (grey) or "
            "3 (RGB); of other channels choose what to show, e.g. images[:, :1]"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images have dtype {images.dtype}: give floating-point values in [0, 1], "
            "e.g. x.float() / 255"
        )
    images = images.detach().cpu().float()
    if not bool(torch.isfinite(images).all()):
        raise ValueError(
            "images hold values that are not finite (NaN or infinity): the chain that made them "
            "has diverged, try a smaller step size"
        )
    # Rounded, not cut off: 8-bit images come out as they went in.
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()


def columns_of(count: int) -> int:
    """Images in a row of a grid of so many, as square as possible."""
    return math.ceil(math.sqrt(count))


def _count_columns(count: int, columns: int | None) -> int:
    if columns is None:
        return columns_of(count)
    if columns < 1:
        raise ValueError(f"columns is {columns}: give 1 or more")
    return min(columns, count)


def _choose_scale(scale: int | str, wanted: float, most: float) -> int:
    if scale == "auto":
        return max(1, min(round(wanted), int(most)))
    if isinstance(scale, str) or scale < 1 or scale != int(scale):
        raise ValueError(f"scale is {scale!r}: give 'auto' or a whole number from 1")
    return int(scale)


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
    """Write each caption below its grid, on pages that are wide enough for all of them."""
    from PIL import Image, ImageDraw

    font = _font(_TEXT_SIZE)
    text = max(math.ceil(font.getlength(caption)) for caption in captions)
    mode, width = grids[0].mode, max(grids[0].width, text) + 2 * _MARGIN
    below = _MARGIN + grids[0].height + _MARGIN // 2
    height = below + _line_height(font) + _MARGIN // 2
    steps = _FRAME_GREYS - 1
    fewer_greys = [round(round(grey / 255 * steps) / steps * 255) for grey in range(256)]
    frames = []
    for grid, caption in zip(grids, captions, strict=True):
        page = Image.new(mode, (width, height), _shade(mode, _PAPER))
        # Colours are reduced by the file format itself.
        kept = grid.point(fewer_greys) if mode == "L" else grid
        page.paste(kept, ((width - grid.width) // 2, _MARGIN))
        ImageDraw.Draw(page).text((_MARGIN, below), caption, _shade(mode, _INK), font)
        frames.append(page)
    return frames


def _evenly_spaced(count: int, limit: int) -> list[int]:
    if count <= limit:
        return list(range(count))
    return [round(k * (count - 1) / (limit - 1)) for k in range(limit)]


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    # The font that matplotlib brings along has Greek letters; Pillow's own has none.
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent


def _shade(mode: str, value: int) -> int | tuple[int, int, int]:
    return value if mode == "L" else (value, value, value)


def _save_image(path: str | os.PathLike[str], image: Image.Image) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary)


__all__ = [
    "columns_of",
    "image_grid",
    "save_chain_gif",
    "save_grid",
    "save_panels",
    "thumbnail",
    "visible",
]
