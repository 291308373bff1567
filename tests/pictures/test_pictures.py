from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ncsn_fast.pictures import curves
from ncsn_fast.pictures import images as plots

PICTURE = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
COLOUR = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(1))


def height_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.height


# --- grids ----------------------------------------------------------------------------------------


def test_grid_has_the_size_that_is_promised() -> None:
    grid = plots.image_grid(PICTURE, columns=4, padding=2, scale=3)
    assert grid.mode == "L"
    assert grid.size == (3 * (4 * 10 - 2), 3 * (2 * 10 - 2))
    colour = plots.image_grid(COLOUR, columns=5, padding=0, scale=1)
    assert colour.mode == "RGB"
    assert colour.size == (30, 4)


def test_grid_shows_each_image_in_its_place_with_sharp_pixels() -> None:
    grid = np.asarray(plots.image_grid(COLOUR, columns=2, padding=1, scale=2))
    for index, image in enumerate(COLOUR):
        row, column = divmod(index, 2)
        top, left = 2 * 5 * row, 2 * 7 * column
        cell = grid[top : top + 8, left : left + 12]
        expected = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(cell, expected.repeat(2, axis=0).repeat(2, axis=1))
    assert (grid[:, 12:14] == 255).all()  # the line between the columns
    assert (grid[20:, 14:] == 255).all()  # the place of the sixth image


def test_grid_of_8_bit_images_is_exact() -> None:
    values = torch.arange(256).reshape(1, 1, 16, 16)
    grid = np.asarray(plots.image_grid(values / 255, scale=1))
    np.testing.assert_array_equal(grid, values[0, 0].numpy())


def test_grid_clamps_values_for_display() -> None:
    image = torch.tensor([[-3.0, 0.0], [1.0, 40.0]])[None, None]
    assert np.asarray(plots.image_grid(image, scale=1)).tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize(
    ("count", "side", "size"),
    [(1, 8, 64), (4, 8, 136), (4, 32, 130), (1, 256, 256), (400, 8, 1253), (4, 1024, 2049)],
)
def test_automatic_scale_enlarges_small_images_and_no_others(
    count: int, side: int, size: int
) -> None:
    assert plots.image_grid(torch.zeros(count, 1, side, side)).size == (size, size)


def test_a_single_row_is_not_padded_with_empty_columns() -> None:
    assert plots.image_grid(PICTURE[:2], columns=8, padding=0, scale=1).size == (16, 8)


def test_half_precision_and_tensors_with_gradients_can_be_shown() -> None:
    images = PICTURE.half().requires_grad_()
    assert plots.image_grid(images, columns=3, padding=0, scale=1).size == (24, 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(8, 8), r"shape \(8, 8\): needed is \(N, C, H, W\)"),
        (torch.zeros(2, 2, 8, 8), r"C = 1 \(grey\) or 3 \(RGB\).*images\[:, :1\]"),
        (torch.zeros(0, 1, 8, 8), r"shape \(0, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"dtype torch\.uint8.*x\.float\(\) / 255"),
        (torch.full((2, 1, 8, 8), torch.nan), r"not finite.*smaller step size"),
        (torch.full((2, 1, 8, 8), torch.inf), r"not finite"),
    ],
)
def test_grid_refuses_unusable_images(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.image_grid(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": 0}, r"columns is 0"),
        ({"padding": -1}, r"padding is -1"),
        ({"scale": 0}, r"scale is 0"),
        ({"scale": 1.5}, r"scale is 1\.5"),
        ({"scale": "large"}, r"scale is 'large': give 'auto' or a whole number"),
    ],
)
def test_grid_refuses_unusable_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.image_grid(PICTURE, **settings)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "JPEG"])
def test_save_grid_writes_the_grid(suffix: str, tmp_path: Path) -> None:
    plots.save_grid(tmp_path / f"grid.{suffix}", PICTURE, columns=3, padding=0, scale=2)
    with Image.open(tmp_path / f"grid.{suffix}") as image:
        image.load()
        assert image.size == (48, 32)
    assert [file.name for file in tmp_path.iterdir()] == [f"grid.{suffix}"]


# --- panels ---------------------------------------------------------------------------------------


def panels(*images: torch.Tensor, titles: tuple[str, ...] = ("generated", "real")) -> Any:
    return dict(zip(titles, images, strict=True))


def test_panels_show_both_sets_and_their_titles(tmp_path: Path) -> None:
    generated, real = torch.zeros(9, 1, 8, 8), torch.full((20, 1, 8, 8), 0.5)
    plots.save_panels(tmp_path / "c.png", panels(generated, real))
    page = np.asarray(Image.open(tmp_path / "c.png")).astype(int)
    half = page.shape[1] // 2
    # Nine images of 64 × 64 on either side, since the smaller set has nine.
    assert (page[60:, :half] == 0).sum() > 7 * 64 * 64
    assert (page[:, half:] == 128).sum() == 9 * 64 * 64
    for title in (page[16:36, :half], page[16:36, half:]):
        assert title.min() < 60
    border = np.concatenate([page[:8].ravel(), page[-8:].ravel(), page[:, :8].ravel()])
    assert (border == 255).all()


def test_panels_show_no_more_than_count_images(tmp_path: Path) -> None:
    both = panels(PICTURE, PICTURE)
    plots.save_panels(tmp_path / "c.png", both, count=2, columns=1)
    two = height_of(tmp_path / "c.png")
    plots.save_panels(tmp_path / "c.png", both, count=3, columns=1)
    assert height_of(tmp_path / "c.png") - two == 72


def test_panels_make_room_for_long_titles(tmp_path: Path) -> None:
    titles = ("a title much longer than one small image", "real")
    plots.save_panels(tmp_path / "c.png", panels(PICTURE[:1], PICTURE[:1], titles=titles))
    page = np.asarray(Image.open(tmp_path / "c.png"))
    assert (page[:, page.shape[1] // 2 - 8 : page.shape[1] // 2 + 8] == 255).all()
    assert (page[:, -16:] == 255).all()


def test_panels_of_other_sizes_and_colours_stand_below_each_other(tmp_path: Path) -> None:
    grey = torch.full((4, 1, 8, 8), 0.5)
    red = torch.zeros(4, 3, 16, 16)
    red[:, 0] = 1
    titles = ("a", "b", "c")
    plots.save_panels(tmp_path / "c.png", panels(grey, grey, red, titles=titles), per_row=2)
    with Image.open(tmp_path / "c.png") as image:
        assert image.mode == "RGB"
        page = np.asarray(image).astype(int)
    above, below = page[: len(page) // 2], page[len(page) // 2 :]
    assert (above == 128).all(-1).sum() == 2 * 4 * 64 * 64
    is_red = (below == [255, 0, 0]).all(-1)
    assert is_red.sum() == 4 * 64 * 64
    columns = is_red.any(0).nonzero()[0]  # alone in its row, in the middle
    assert abs((columns[0] + columns[-1]) / 2 - page.shape[1] / 2) < 16


def test_panels_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no panels"):
        plots.save_panels(tmp_path / "c.png", {})
    for wrong in ({"count": 0}, {"per_row": 0}):
        with pytest.raises(ValueError, match="show at least one image"):
            plots.save_panels(tmp_path / "c.png", panels(PICTURE, PICTURE), **wrong)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_loss_plot_is_a_valid_file(suffix: str, tmp_path: Path) -> None:
    steps = list(range(1, 101))
    curves.save_loss_plot(tmp_path / f"loss.{suffix}", steps, [10 / step for step in steps])
    content = (tmp_path / f"loss.{suffix}").read_bytes()
    if suffix == "png":
        with Image.open(tmp_path / "loss.png") as image:
            image.load()
            assert image.size == (960, 540)
    else:
        assert {"svg": b"<svg", "pdf": b"%PDF"}[suffix] in content[:2000]


def test_loss_plot_takes_tensors_single_values_and_values_that_are_not_positive(
    tmp_path: Path,
) -> None:
    curves.save_loss_plot(tmp_path / "a.png", torch.arange(9), torch.linspace(1, -1, 9))
    curves.save_loss_plot(tmp_path / "b.png", [100], [3.0])
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert np.asarray(image.convert("L")).min() < 60


@pytest.mark.parametrize(("last", "scale"), [(0.01, "log"), (0.9, "linear"), (-1.0, "linear")])
def test_loss_plot_has_labels_two_curves_and_a_fitting_scale(
    last: float, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    save = Figure.savefig

    def keep(self: Figure, file: Path) -> None:
        drawn.append(self)
        save(self, file)

    monkeypatch.setattr(Figure, "savefig", keep)
    losses = np.linspace(1, last, 100) + 0.005 * (-1) ** np.arange(100)
    curves.save_loss_plot(tmp_path / "loss.png", range(100), losses, ylabel="loss per pixel")
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == scale
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimiser step", "loss per pixel")
    assert axes.get_title() == "Training loss"
    raw, smooth = (line.get_ydata() for line in axes.lines)
    np.testing.assert_array_equal(raw, losses)
    # Straight but for the ripple, of which a mean over five values leaves a fifth.
    assert np.abs(np.diff(smooth[2:-2], 2)).max() < 0.3 * np.abs(np.diff(raw, 2)).max()


def test_running_mean_is_the_mean_of_the_neighbours() -> None:
    values = np.array([9.0, 1.0, 2.0, 6.0, 4.0, 2.0])
    # The first value stands alone, the last has neighbours on one side only.
    expected = [9.0, 4.0, 3.0, 4.0, 4.0, 3.0]
    np.testing.assert_allclose(curves.running_mean(values, 3), expected)
    np.testing.assert_array_equal(curves.running_mean(values, 1), values)


@pytest.mark.parametrize(
    ("steps", "losses", "message"),
    [
        ([], [], r"steps have shape \(0,\)"),
        ([1, 2], [1.0], r"steps have shape \(2,\) and losses \(1,\)"),
        ([1, 1], [1.0, 2.0], r"steps must ascend"),
        ([1, 2], [1.0, float("nan")], r"must be finite: leave out"),
    ],
)
def test_loss_plot_refuses_unusable_curves(
    steps: list[int], losses: list[float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        curves.save_loss_plot(tmp_path / "loss.png", steps, losses)


# --- files ----------------------------------------------------------------------------------------

WRITERS = {
    "png": lambda path: plots.save_grid(path, PICTURE),
    "webp": lambda path: plots.save_panels(path, panels(PICTURE, PICTURE)),
    "svg": lambda path: curves.save_loss_plot(path, [1, 2], [2.0, 1.0]),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_other_types_of_file_and_missing_folders_are_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"picture\.txt: its name must end in .*\.{suffix}"):
        WRITERS[suffix](tmp_path / "picture.txt")
    with pytest.raises(ValueError, match=r"nowhere"):
        WRITERS[suffix](tmp_path / "nowhere" / f"picture.{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half a pict")
        raise OSError("no space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    path = tmp_path / f"picture.{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="no space left"):
        WRITERS[suffix](path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_plotting_leaves_the_backend_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would be an error
    curves.save_loss_plot(tmp_path / "loss.png", [1, 2], [2.0, 1.0])
    assert (tmp_path / "loss.png").exists()


def test_two_channels_are_shown_side_by_side() -> None:
    images = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    shown = plots.visible(images)
    assert shown.shape == (3, 1, 4, 10)
    assert torch.equal(shown[:, 0, :, 5:], images[:, 1])
    for channels in (1, 3):
        assert plots.visible(images[:, :1].expand(-1, channels, -1, -1)).shape[1] == channels


def test_losses_may_be_views_of_arrays(tmp_path: Path) -> None:
    falling = np.array([0.0, 0.5, 1.0])[::-1]
    curves.save_loss_plot(tmp_path / "l.png", falling[::-1][::1], falling)
    assert (tmp_path / "l.png").exists()
