"""Pictures of images: grids, and panels side by side.

Images are floating-point tensors (N, C, H, W), C = 1 or 3, in [0, 1]. Values outside [0, 1] are
clamped for display only, as early states of a chain lie far outside; values that are not finite
are refused. Files are complete or absent. matplotlib's global state is never touched.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.support.files import atomic_write, check_suffix

if TYPE_CHECKING:
    from PIL import Image, ImageFont

_GRID_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# Each image is enlarged by a whole number to about this side, the whole grid to at most that.
_IMAGE_SIDE, _GRID_SIDE = 64, 1280

PAPER, INK, _LINE = 255, 30, 255
TEXT_SIZE = 18
MARGIN = 16


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
    factor = choose_scale(scale, wanted, most)
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
    font = font_of(TEXT_SIZE)
    width = max(grid.width for grid in grids)
    width = max(width, *(math.ceil(font.getlength(title)) for title in panels))
    above = line_height(font) + MARGIN // 2
    rows = [grids[i : i + across] for i in range(0, len(grids), across)]
    heights = [above + max(grid.height for grid in row) + MARGIN for row in rows]
    mode = "L" if all(grid.mode == "L" for grid in grids) else "RGB"
    size = across * (width + 2 * MARGIN), sum(heights) + MARGIN
    page = Image.new(mode, size, shade(mode, PAPER))
    for i, (title, grid) in enumerate(zip(panels, grids, strict=True)):
        beside = len(rows[i // across])
        left = i % across * (width + 2 * MARGIN) + (across - beside) * (width + 2 * MARGIN) // 2
        left, top = MARGIN + left, MARGIN + sum(heights[: i // across])
        ImageDraw.Draw(page).text((left, top), title, shade(mode, INK), font)
        page.paste(grid, (left, top + above))
    _save_image(path, page)


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
        with Image.open(path, formats=["PNG"]) as grid:
            if max(grid.size) > 4 * _GRID_SIDE:
                return None
            kept = grid.convert("L" if grid.mode == "L" else "RGB")
    except (OSError, ValueError, SyntaxError):  # the last one is what Pillow says of a broken PNG
        return None
    kept = kept.crop((0, 0, math.ceil(part * kept.width), math.ceil(part * kept.height)))
    kept = kept.reduce(-(-max(kept.size) // side))
    found = []
    for lossless in (True, False):  # enlarged pixels are smaller without loss, photographs with it
        buffer = io.BytesIO()
        kept.save(buffer, "WEBP", lossless=lossless, quality=85)
        found.append(buffer.getvalue())
    return min(found, key=len)


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


def choose_scale(scale: int | str, wanted: float, most: float) -> int:
    if scale == "auto":
        return max(1, min(round(wanted), int(most)))
    if isinstance(scale, str) or scale < 1 or scale != int(scale):
        raise ValueError(f"scale is {scale!r}: give 'auto' or a whole number from 1")
    return int(scale)


def font_of(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    # The font that matplotlib brings along has Greek letters; Pillow's own has none.
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)


def line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent


def shade(mode: str, value: int) -> int | tuple[int, int, int]:
    return value if mode == "L" else (value, value, value)


def _save_image(path: str | os.PathLike[str], image: Image.Image) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary)


__all__ = [
    "INK",
    "MARGIN",
    "PAPER",
    "TEXT_SIZE",
    "choose_scale",
    "columns_of",
    "font_of",
    "image_grid",
    "line_height",
    "save_grid",
    "save_panels",
    "shade",
    "thumbnail",
    "visible",
]
