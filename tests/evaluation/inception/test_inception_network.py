"""The Inception network: its weights by their hash, read safely; what it is given and gives."""

import pickle
import sys

import pytest
import torch

from ncsn_fast.evaluation.inception.network import PUBLISHED, load_inception
from ncsn_fast.support.files import sha256_of


def images(number, channels=3, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (number, channels, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_it_computes_what_torch_fidelity_does(torch_fidelity, random_weights):
    x = images(3)
    net = torch_fidelity.FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=random_weights.path
    )
    ours = load_inception(random_weights.path, "cpu", random_weights.sha256)
    seen = ours(x)
    for found, expected in zip(seen, net(x), strict=True):
        assert torch.equal(found, expected)
    assert seen.features.shape == (3, 2048)
    assert seen.features.std() > 0.01
    assert ours.weights == (str(random_weights.path), random_weights.sha256, False)
    assert ours.package == f"torch-fidelity {torch_fidelity.__version__}"
    grey = images(1, channels=1)
    assert torch.equal(ours(grey).features, ours(grey.repeat(1, 3, 1, 1)).features)


def test_other_weights_are_refused_unless_they_are_named(torch_fidelity, random_weights):
    told = f"SHA-256 {random_weights.sha256}, that of the published weights of FID is {PUBLISHED}"
    with pytest.raises(ValueError, match=told) as refused:
        load_inception(random_weights.path, "cpu")
    assert f"inception_sha256={random_weights.sha256}" in str(refused.value)
    with pytest.raises(ValueError, match="that asked for is 00"):
        load_inception(random_weights.path, "cpu", "00" * 32)


def test_a_file_that_is_not_there_is_told_with_where_it_is_to_be_had(tmp_path):
    with pytest.raises(FileNotFoundError, match="never fetched unasked; download it once") as told:
        load_inception(tmp_path / "none.pth", "cpu")
    assert "weights-inception-2015-12-05-6726825d.pth" in str(told.value)


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"FID takes torch-fidelity.* pip install torch-fidelity"):
        load_inception(tmp_path / "w.pth", "cpu")


def test_a_torchvision_of_another_torch_is_told(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"any")
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torch_fidelity.py").write_text(broken)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # which is put back in the end
    monkeypatch.delitem(sys.modules, "torch_fidelity")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"nms does not exist\. Where torch is a build for CPUs"):
        load_inception(tmp_path / "w.pth", "cpu")


class _Runs:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_nothing_that_a_file_names_is_run(torch_fidelity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("zip.pth", lambda path: torch.save({"a": _Runs()}, path)),
        ("plain.pth", lambda path: path.write_bytes(pickle.dumps({"a": _Runs()}))),
    ):
        path = tmp_path / name
        write(path)
        with pytest.raises(ValueError, match=name):
            load_inception(path, "cpu", sha256_of(path))
    assert not (tmp_path / "ran").exists()


def test_other_tensors_and_other_things_are_refused(torch_fidelity, tmp_path):
    path = tmp_path / "w.pth"
    for held, told in (
        ({"a": torch.zeros(2)}, "is not of FID's Inception network"),
        ({"a": 1}, "other things than named tensors"),
        ([torch.zeros(2)], "other things than named tensors"),
    ):
        torch.save(held, path)
        with pytest.raises(ValueError, match=told):
            load_inception(path, "cpu", sha256_of(path))
