"""Files of mu and sigma: as others read and write them; damaged and hostile ones are refused."""

import numpy as np
import pytest
import torch

from ncsn_fast.evaluation.inception import statistics
from ncsn_fast.evaluation.inception.statistics import (
    are_statistics,
    read_statistics,
    write_statistics,
)
from ncsn_fast.evaluation.moments import Moments

D = 64  # of 2,048 features but one test takes long to no purpose


@pytest.fixture(autouse=True)
def few_features(monkeypatch):
    monkeypatch.setattr(statistics, "FEATURES", D)


def some(dim):
    return Moments.of(torch.randn(99, dim, generator=torch.Generator().manual_seed(0)))


def test_what_was_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "FEATURES", 2048)
    path, moments = tmp_path / "stats.npz", some(2048)
    write_statistics(path, moments, "ab" * 32)
    with np.load(path) as archive:  # as pytorch-fid, clean-fid and EDM do
        np.testing.assert_array_equal(archive["mu"], moments.mean)
        np.testing.assert_array_equal(archive["sigma"], moments.covariance)
        assert archive["mu"].dtype == archive["sigma"].dtype == np.float64
    assert are_statistics(path)
    found = read_statistics(path)
    assert (found.images, found.weights) == (99, "ab" * 32)
    again = found.of.factor.T @ found.of.factor
    np.testing.assert_allclose(again, moments.covariance, atol=1e-12)
    np.testing.assert_array_equal(found.of.mean, moments.mean)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_others_are_read(tmp_path, save):
    path, moments = tmp_path / "theirs.npz", some(D)
    save(path, mu=moments.mean.float().numpy(), sigma=moments.covariance.float().numpy())
    found = read_statistics(path)
    assert (found.images, found.weights) == (None, None)
    np.testing.assert_allclose(found.of.mean, moments.mean, atol=1e-6)


def test_images_are_no_statistics(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8), np.uint8))
    np.save(tmp_path / "mu.npy", np.zeros(3))
    assert not are_statistics(tmp_path / "images.npz")
    assert not are_statistics(tmp_path / "mu.npy")
    assert not are_statistics(tmp_path / "none.npz")


ZERO, ONE = np.zeros(D), np.eye(D)


def changed(row, column, value):
    matrix = np.eye(D)
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"mu": np.zeros(9), "sigma": np.eye(9)}, r"its mu is float64 of shape \(9,\)"),
        ({"mu": np.zeros(D, int), "sigma": ONE}, "its mu is int64"),
        ({"mu": ZERO, "sigma": np.zeros(D)}, "its sigma is float64 of shape"),
        ({"mu": np.full(D, np.nan), "sigma": ONE}, "its mu holds values that are not finite"),
        ({"mu": ZERO, "sigma": changed(0, 0, np.inf)}, "its sigma holds values that are not fin"),
        ({"mu": ZERO, "sigma": changed(0, 1, 0.5)}, "its sigma is not symmetric"),
        ({"mu": ZERO, "sigma": changed(0, 0, -1.0)}, "negative eigenvalues"),
        ({"mu": ZERO, "sigma": np.zeros((2100, 2048))}, "bytes, statistics of 2,048"),
        ({"mu": ZERO}, "has no array 'sigma'"),
        ({"mu": ZERO, "sigma": ONE, "images": np.array(1.5)}, "its images is no number"),
        ({"mu": ZERO, "sigma": ONE, "weights": np.array("x" * 99)}, "its weights is no SHA-256"),
        ({"mu": np.array([None] * D), "sigma": ONE}, "Python objects"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, arrays, told):
    path = tmp_path / "stats.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=told) as refused:
        read_statistics(path)
    assert str(path) in str(refused.value)
