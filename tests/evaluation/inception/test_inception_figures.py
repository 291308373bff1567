"""The figures against torch-fidelity and SciPy, from random features."""

import numpy as np
import pytest
import torch
from helpers.threads import in_threads
from scipy.linalg import sqrtm

from ncsn_fast.distributed.group import Group
from ncsn_fast.evaluation.inception import figures
from ncsn_fast.evaluation.inception.figures import Fid, InceptionReference, Looks, look
from ncsn_fast.evaluation.inception.network import Seen
from ncsn_fast.evaluation.inception.statistics import Statistics
from ncsn_fast.evaluation.moments import Moments, frechet_distance, gaussian
from ncsn_fast.evaluation.precision_recall import precision_recall

CPU = torch.device("cpu")


def features(number, seed, dim=48):
    """As Inception's: none negative, correlated."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(number, dim)) @ (rng.normal(size=(dim, dim)) / dim**0.5)
    return torch.from_numpy(np.maximum(mixed + 0.1 * seed, 0)).float()


def looks(number, seed):
    found = features(number, seed)
    logits = features(number, 10 + seed, 20)
    moments = Moments.of(found[:9]) + Moments.of(found[9:])
    return Looks(moments, found, logits)


def test_fid_is_that_of_torch_fidelity_and_of_scipy(torch_fidelity):
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    real, samples = looks(700, 0), looks(500, 1)
    found = InceptionReference(real, CPU).measure(samples).fid
    theirs = [fid_features_to_statistics(x.features.double()) for x in (samples, real)]
    assert found == pytest.approx(
        fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID], rel=1e-6
    )
    (a, c), (b, d) = ((one["mu"], one["sigma"]) for one in theirs)
    expected = np.sum((a - b) ** 2) + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found > 0.1


def test_the_others_are_torch_fidelitys(torch_fidelity):
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, samples = looks(400, 0), looks(400, 1)
    found = InceptionReference(real, CPU).measure(samples)
    kid = kid_features_to_metric(
        samples.features, real.features, kid_subset_size=400, verbose=False
    )
    score = isc_features_to_metric(samples.logits)
    assert found.kid == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-6)
    assert found.kid_deviation == pytest.approx(kid["kernel_inception_distance_std"], rel=1e-6)
    assert found.inception_score == pytest.approx(score["inception_score_mean"], rel=1e-6)
    assert found.inception_score_deviation == pytest.approx(score["inception_score_std"], rel=1e-6)
    near = prc_features_to_metric(samples.features, real.features, verbose=False)
    assert (found.precision, found.recall) == pytest.approx((near["precision"], near["recall"]))
    assert (found.images, found.compared, found.subset_size, found.splits) == (400, 400, 400, 10)


def test_of_a_larger_reference_as_many_are_compared_and_all_are_in_fid(torch_fidelity):
    real, samples = looks(500, 0), looks(120, 1)
    found = InceptionReference(real, CPU).measure(samples)
    chosen = np.sort(np.random.default_rng(0).choice(500, 120, replace=False))
    assert found.compared == 120
    assert (found.precision, found.recall) == precision_recall(
        real.features[chosen], samples.features
    )
    part = Moments.of(real.features[chosen])
    fewer = InceptionReference(Looks(part, real.features[chosen], real.logits), CPU)
    assert found.fid != fewer.measure(samples).fid


def test_of_few_images_it_is_the_same_as_by_moments(torch_fidelity):
    real, samples = looks(40, 0), looks(30, 1)
    few = InceptionReference(real, CPU).measure(samples).fid
    ours = (gaussian(x.moments.mean, x.moments.covariance) for x in (real, samples))
    # Eigenvalues that are 0 but for rounding have roots of 1e-8.
    assert few == pytest.approx(frechet_distance(*ours), rel=1e-7)


def test_of_statistics_there_is_fid_and_the_score_of_the_samples(torch_fidelity):
    real, samples = looks(500, 0), looks(120, 1)
    there = Statistics(gaussian(real.moments.mean, real.moments.covariance), 500, None)
    found = InceptionReference(there, CPU).measure(samples)
    whole = InceptionReference(real, CPU).measure(samples)
    assert found.fid == pytest.approx(whole.fid, rel=1e-12)
    assert found.inception_score == whole.inception_score
    assert (found.kid, found.precision, found.recall, found.compared) == (None,) * 4


class Pixels:
    """A network whose features are the pixels."""

    device = CPU

    def __call__(self, x):
        flat = x.flatten(1).float()
        return Seen(flat, flat[:, :5])


def test_images_are_rounded_and_gone_through_in_batches(monkeypatch):
    monkeypatch.setattr(figures, "BATCH_SIZE", 7)
    images = np.random.default_rng(0).random((20, 1, 4, 4)) * 1.2 - 0.1
    told = []
    found = look(Pixels(), images, Group(), lambda done, total: told.append((done, total)))
    expected = np.rint(images.clip(0, 1) * 255).reshape(20, 16)
    np.testing.assert_array_equal(found.features, expected)
    np.testing.assert_allclose(found.moments.covariance, np.cov(expected.T), rtol=1e-10)
    assert told[-1] == (20, 20)
    with pytest.raises(ValueError, match="images of 2 channels"):
        look(Pixels(), images.reshape(10, 2, 4, 4), Group())


def test_of_many_images_some_are_kept_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(figures, "BATCH_SIZE", 7)
    monkeypatch.setattr(figures, "MOST_KEPT", 12)
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 4, 4), dtype=np.uint8)
    found, again = (look(Pixels(), images, Group()) for _ in range(2))
    assert (found.moments.count, found.features.shape, found.logits.shape) == (
        30,
        (12, 16),
        (12, 5),
    )
    assert torch.equal(found.features, again.features)
    rows = {tuple(row) for row in images.reshape(30, 16).tolist()}
    assert {tuple(row) for row in found.features.int().tolist()} <= rows
    np.testing.assert_allclose(found.moments.mean, images.reshape(30, 16).mean(0))


@pytest.mark.parametrize("size", [2, 3, 30])
@pytest.mark.parametrize("most", [12, 100])
def test_what_several_processes_see_is_what_one_sees(monkeypatch, size, most):
    """Each looks at its own part, some of them at one image more; all are given all of it."""
    monkeypatch.setattr(figures, "BATCH_SIZE", 2)
    monkeypatch.setattr(figures, "_TOGETHER", 2)
    monkeypatch.setattr(figures, "MOST_KEPT", most)
    images = np.random.default_rng(0).integers(0, 256, (31, 1, 4, 4), dtype=np.uint8)
    seen = []

    class Counted(Pixels):
        def __call__(self, x):
            seen.append(len(x))
            return super().__call__(x)

    alone = look(Pixels(), images, Group())
    for found in in_threads(size, lambda group: look(Counted(), images, group)):
        assert found.moments.count == 31
        assert torch.equal(found.features, alone.features)
        assert torch.equal(found.logits, alone.logits)
        for name in ("mean", "covariance"):
            expected = getattr(alone.moments, name)
            torch.testing.assert_close(getattr(found.moments, name), expected, rtol=1e-12, atol=0)
    assert sum(seen) == 31
    assert max(seen) == min(2, -(-31 // size))


def test_more_processes_than_images_are_refused():
    images = np.zeros((4, 1, 2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="4 images for 5 processes: start fewer"):
        in_threads(5, lambda group: look(Pixels(), images, group))


def test_the_fid_of_a_trainer_is_the_distance_of_what_is_seen():
    """Of images in 8 bits, of real images or of statistics of these."""
    random = np.random.default_rng(0)
    real = random.integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    samples = torch.from_numpy(random.random((30, 1, 4, 4), dtype=np.float32))
    seen = look(Pixels(), real, Group())
    rounded = (255 * samples).round().flatten(1)
    a, b = (Moments.of(x) for x in (rounded, torch.from_numpy(real).flatten(1)))
    known = (gaussian(one.mean, one.covariance) for one in (a, b))
    expected = frechet_distance(*known)
    assert Fid(Pixels(), seen)(samples) == pytest.approx(expected, rel=1e-9)
    told = Statistics(gaussian(b.mean, b.covariance), 40, None)
    assert Fid(Pixels(), told)(samples) == pytest.approx(expected, rel=1e-9)
