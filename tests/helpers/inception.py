"""torch-fidelity in the tests, and an Inception network with random weights in a local file."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from ncsn_fast.support.files import sha256_of


class RandomWeights(NamedTuple):
    path: Path
    sha256: str


@pytest.fixture(scope="session")
def torch_fidelity() -> Any:
    """The package; where it is not installed the test is skipped."""
    pytest.importorskip("tqdm")
    with some_torchvision():
        return pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")


@pytest.fixture(scope="session")
def random_weights(torch_fidelity: Any, tmp_path_factory: Any) -> RandomWeights:
    """A file of weights of the right names and shapes that keep the size of what passes through."""

    class Unfilled(torch_fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Unfilled("random", ["2048"], feature_extractor_weights_path=nothing)
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(net.state_dict(), path)
    return RandomWeights(path, sha256_of(path))


@contextmanager
def some_torchvision() -> Iterator[None]:
    """torchvision, or names in its place while torch-fidelity is imported.

    That imports it for its lists of data sets and its CLIP, which are not used here. Beside a torch
    for CPUs the torchvision of the registries cannot be imported, and breaks others who would.
    """
    try:
        import torchvision  # noqa: F401

        yield
        return
    except Exception:
        before = set(sys.modules)
    names = ("torchvision", ".datasets", ".transforms", ".transforms.functional")
    modules = {
        full: ModuleType(full)
        for full in (name if name[0] != "." else f"torchvision{name}" for name in names)
    }
    for data in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(modules["torchvision.datasets"], data, type(data, (), {}))
    for full, module in modules.items():
        parent, _, name = full.rpartition(".")
        if parent:
            setattr(modules[parent], name, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "torchvision":
                del sys.modules[name]
