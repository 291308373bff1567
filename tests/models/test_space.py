from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ncsn_fast as nf
from ncsn_fast.data.pixels import horizontal_flip, unit_interval
from ncsn_fast.models.space import Space

LOGIT = Space(logit_transform=True)
UNIT = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=32)


def test_without_settings_the_images_pass_unchanged() -> None:
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Space().enter(x), x)


def test_rescaled_is_2x_minus_1() -> None:
    x = torch.tensor([0.0, 0.25, 1.0])
    assert Space(rescaled=True).enter(x).tolist() == [-1.0, -0.5, 1.0]


@pytest.mark.parametrize("space", [Space(), Space(rescaled=True)])
def test_how_far_images_are_beyond_their_range(space: Space) -> None:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert space.beyond(space.enter(images)).tolist() == [0.0, 0.0]
    images[1, 0, :2] = -0.2  # 16 of 64 values
    found = space.beyond(2 * images - 1 if space.rescaled else images)
    assert found.tolist() == pytest.approx([0.0, 0.25 * 0.04], abs=1e-6)


def test_logit_matches_its_formula() -> None:
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = [math.log(y / (1 - y)) for y in (1e-6 + (1 - 2e-6) * value for value in x.tolist())]
    found = LOGIT.enter(x)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@given(UNIT)
@settings(max_examples=50)
def test_rescaled_round_trip(values: list[float]) -> None:
    x = torch.tensor(values)
    space = Space(rescaled=True)
    back = space.leave(space.enter(x))
    torch.testing.assert_close(back, x, rtol=0, atol=6e-8)


@given(UNIT)
@settings(max_examples=50)
def test_logit_round_trip_is_within_its_margin(values: list[float]) -> None:
    x = torch.tensor(values)
    back = LOGIT.leave(LOGIT.enter(x))
    assert bool(torch.isfinite(back).all())
    # The margin of 1e-6 is not undone, and float32 resolves 1.2e-7 near 1.
    torch.testing.assert_close(back, x, rtol=0, atol=1.3e-6)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=32), st.booleans())
@settings(max_examples=50)
def test_the_inverse_stays_in_the_unit_interval(values: list[float], rescaled: bool) -> None:
    images = Space(rescaled).leave(torch.tensor(values))
    assert images.min() >= 0
    assert images.max() <= 1


@given(UNIT, st.integers(0, 2**31))
@settings(max_examples=50)
def test_uniform_dequantisation_keeps_an_8_bit_value_in_its_bin(
    values: list[float], seed: int
) -> None:
    levels = (torch.tensor(values, dtype=torch.float64) * 255).round()
    u = torch.rand(levels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = Space().enter(levels / 255, dequantize="uniform", noise=u)
    torch.testing.assert_close(x, (levels + u) / 256, rtol=0, atol=1e-15)


def test_gaussian_dequantisation_adds_a_hundredth_of_the_noise() -> None:
    x, z = torch.full((3,), 0.5), torch.tensor([-2.0, 0.0, 3.0])
    found = Space().enter(x, dequantize="gaussian", noise=z)
    torch.testing.assert_close(found, torch.tensor([0.48, 0.5, 0.53]))


def test_dequantisation_comes_before_rescaling() -> None:
    x, u = torch.tensor([1.0]), torch.tensor([0.5])
    found = Space(rescaled=True).enter(x, dequantize="uniform", noise=u)
    assert found.item() == pytest.approx(2 * 255.5 / 256 - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dequantize": "uniform"}, r"needs noise.*noise\.uniform"),
        ({"dequantize": "gaussian"}, r"needs noise.*noise\.normal"),
        ({"dequantize": "laplace", "noise": torch.zeros(2, 3)}, r"choose 'uniform' or 'gaussian'"),
        ({"noise": torch.zeros(2, 3)}, r"dequantize is None"),
        ({"dequantize": "uniform", "noise": torch.zeros(3)}, r"noise is \(3,\).*x is \(2, 3\)"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space().enter(torch.zeros(2, 3), **settings)


def test_gaussian_noise_and_the_logit_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"use dequantize='uniform' with logit_transform"):
        LOGIT.enter(torch.zeros(2, 3), dequantize="gaussian", noise=torch.zeros(2, 3))


def test_rescaled_and_logit_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"exclude each other"):
        Space(rescaled=True, logit_transform=True)
    net = nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=[1, 0.1], rescaled=True)
    net.logit_transform = True
    with pytest.raises(ValueError, match=r"exclude each other"):
        Space.of(net)


@pytest.mark.parametrize("transform", [Space.enter, Space.leave])
def test_transforms_refuse_integers_and_a_coarse_logit(transform: object) -> None:
    with pytest.raises(ValueError, match=r"uint8.*x\.float\(\) / 255"):
        transform(Space(), torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.float16"):
        transform(LOGIT, torch.zeros(2, dtype=torch.float16))


@pytest.mark.parametrize("space", [Space(), Space(rescaled=True), LOGIT])
def test_the_stretch_is_the_log_determinant_of_the_way_in(space: Space) -> None:
    x = torch.rand(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [torch.autograd.functional.jacobian(space.enter, row.flatten()) for row in x]
    expected = torch.linalg.slogdet(torch.stack(rows)).logabsdet
    torch.testing.assert_close(space.log_stretch(space.enter(x)), expected)


def test_flip_mirrors_the_selected_images_only() -> None:
    x = torch.arange(2 * 1 * 2 * 3).float().reshape(2, 1, 2, 3)
    found = horizontal_flip(x, torch.tensor([False, True]))
    assert torch.equal(found[0], x[0])
    assert found[1].tolist() == [[[8.0, 7.0, 6.0], [11.0, 10.0, 9.0]]]


def test_flip_refuses_other_masks_and_shapes() -> None:
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"bool tensor of shape \(2,\), got torch\.float32"):
        horizontal_flip(x, torch.zeros(2))
    with pytest.raises(ValueError, match=r"got torch\.bool \(3,\)"):
        horizontal_flip(x, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got shape \(4, 4\)"):
        horizontal_flip(x[0, 0], torch.zeros(4, dtype=torch.bool))


# --- pixels ---------------------------------------------------------------------------------------


def test_pixels_become_the_nearest_float_to_their_255th() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    exact = torch.arange(256, dtype=torch.float64) / 255
    assert torch.equal(unit_interval(pixels), exact.float())


@pytest.mark.gpu
def test_pixels_become_the_same_floats_on_a_gpu() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    found = unit_interval(pixels.cuda()).cpu()
    assert torch.equal(found, unit_interval(pixels))


def test_pixels_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.int64: give uint8"):
        unit_interval(torch.zeros(3, dtype=torch.int64))
