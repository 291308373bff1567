"""The data behind a schedule: of any kind and size, and what a user is warned of."""

import logging

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import ncsn_fast as nf
from ncsn_fast.methods import levels
from ncsn_fast.models.space import Space
from ncsn_fast.training import distances
from ncsn_fast.training.distances import measure_distances

PIXELS = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


def test_pixels_arrays_files_and_datasets_give_one_schedule(tmp_path):
    np.save(tmp_path / "pixels.npy", PIXELS.numpy())
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    expected = nf.auto_schedule(PIXELS.float() / 255)
    for data in (PIXELS, PIXELS.numpy(), mapped, TensorDataset(PIXELS, torch.zeros(300))):
        found = nf.auto_schedule(data)
        assert torch.equal(found.sigmas, expected.sigmas)
        assert found.step_size == expected.step_size


def test_a_file_is_read_only_where_points_are_taken(tmp_path, monkeypatch):
    taken = []
    original = distances.Samples.__subclasses__()[1].take
    monkeypatch.setattr(
        distances.Samples.__subclasses__()[1],
        "take",
        lambda self, indices: taken.append(len(indices)) or original(self, indices),
    )
    found = measure_distances(PIXELS.numpy(), max_points=50)
    assert sum(taken) == 50
    assert (found.points, found.of, found.exact) == (50, 300, False)
    assert "among 50 points drawn at random from 300" in str(found)


def test_few_large_points_are_held_where_many_do_not_fit(monkeypatch):
    monkeypatch.setattr(distances, "HELD_BYTES", 64 * 20)
    assert measure_distances(PIXELS).points == 20


def test_blocks_change_nothing(monkeypatch):
    whole = measure_distances(PIXELS)
    monkeypatch.setattr(distances, "_BLOCK_ROWS", 7)
    parts = measure_distances(PIXELS)
    assert (parts.largest, parts.pair) == (whole.largest, whole.pair)
    assert parts.core == pytest.approx(whole.core, rel=1e-5)
    assert int(parts.counts.sum()) == int(whole.counts.sum()) == 300 * 299 // 2


def test_the_farthest_pair_is_named_by_its_place_in_the_data():
    points = torch.zeros(500, 3)
    points[:, 0] = torch.linspace(0, 1, 500)
    points[123, 1], points[456, 1] = 50, -50
    found = measure_distances(points, max_points=500)
    assert sorted(found.pair) == [123, 456]
    assert found.largest == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize("rescaled", [False, True])
def test_distances_are_those_of_the_networks_space(rescaled):
    largest = measure_distances(PIXELS, space=Space(rescaled)).largest
    expected = torch.pdist((PIXELS.double() / 255).flatten(1)).max() * (1 + rescaled)
    assert largest == pytest.approx(float(expected), rel=1e-6)


def test_progress_counts_every_point_twice():
    seen = []
    nf.auto_schedule(PIXELS, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (600, 600)


def test_good_data_bring_no_warning(caplog):
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        assert nf.auto_schedule(PIXELS).warnings == ()
    assert not caplog.records


OUTLIER = torch.cat(
    [torch.randn(300, 30, generator=torch.Generator().manual_seed(0)), torch.full((1, 30), 100.0)]
)


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (PIXELS.float(), {}, "values from 0 to 255, not in .0, 1.: divide 8-bit images"),
        (PIXELS / 127.5 - 1, {}, "distances and noise levels are twice theirs"),
        (PIXELS / 255 - 3, {}, "scale them to"),
        (PIXELS[:20], {}, "20 data points are few"),
        (PIXELS[:100].repeat(2, 1, 1, 1), {}, "100 of 200 data points are copies"),
        (OUTLIER, {}, r"samples \d+ and 300 are"),
        (PIXELS, {"sigma_min": 0.001}, "less than half the step of 8-bit values, 0.0039"),
        (PIXELS, {"sigma_min": 0.003, "rescaled": True}, "less than half the step.* 0.0078"),
        (PIXELS, {"sigma_min": 0.05}, "more than ten steps of 8-bit values"),
        (PIXELS, {"steps_per_level": 1000}, "network evaluations for each sample"),
    ],
)
def test_what_a_user_should_know_is_said_and_kept(data, settings, message, caplog):
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        schedule = nf.auto_schedule(data, **settings)
    assert len(schedule.warnings) == 1
    assert caplog.messages == list(schedule.warnings)
    with pytest.raises(ValueError, match=message):
        raise ValueError(schedule.warnings[0])


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (PIXELS.long(), {}, "torch.int64"),
        (PIXELS.float(), {"space": Space(True)}, r"values from 0 to 255: rescaled and logit"),
        (PIXELS, {"max_points": 1}, "at least two"),
        (PIXELS, {"max_points": 0}, "max_points = 0"),
        (torch.empty(0, 3), {}, "empty"),
    ],
)
def test_data_that_cannot_be_used_are_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        measure_distances(data, **settings)


@pytest.mark.parametrize("size", [2, 700, 3000])
def test_largest_distance_is_that_of_the_farthest_pair(size):
    points = torch.randn(size, 3, generator=torch.Generator().manual_seed(size)) + 100
    expected = float(torch.pdist(points.double()).max())
    assert measure_distances(points).largest == pytest.approx(expected, rel=1e-6)


def test_largest_distance_takes_random_points_of_a_large_set():
    points = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    exact = measure_distances(points).largest
    some = measure_distances(points, max_points=1000, seed=1).largest
    assert 0.7 * exact < some <= exact
    assert some == measure_distances(points, max_points=1000, seed=1).largest


def test_auto_schedule_puts_the_rules_together():
    data = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = nf.auto_schedule(data, steps_per_level=3)
    top = measure_distances(data).largest
    assert float(schedule.sigmas[0]) == pytest.approx(top)
    assert float(schedule.sigmas[-1]) == pytest.approx(0.01)
    expected = levels.num_levels_for(top, 0.01, levels.level_ratio(64))
    assert len(schedule.sigmas) == round(expected)
    assert 0 < schedule.step_size < 2e-4
    assert schedule.steps_per_level == 3
    assert "3 steps per level" in str(schedule)


def test_autocast_around_it_changes_no_distance():
    data = torch.rand(40, 30, generator=torch.Generator().manual_seed(0))
    expected = measure_distances(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measure_distances(data)
    assert found.core == expected.core
    assert torch.equal(found.counts, expected.counts)
