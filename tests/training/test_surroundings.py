"""What a trainer is given instead of data, and the modes of PyTorch that its caller has set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.training import images, network, trained, trainer_of, weights
from torch.utils.data import DataLoader, Dataset, TensorDataset


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


_SETTINGS: dict[str, Any] = {"steps": 3, "sample_every": 3, "samples": 3, "dequantize": "uniform"}
_MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default device": default_device,
    "default dtype": default_dtype,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("usual")
    return trained(held_out=images(4), out=out, **_SETTINGS)


@pytest.mark.parametrize("where", ["made", "trained", "both"])
@pytest.mark.parametrize("mode", _MODES)
def test_modes_of_the_caller_change_no_bit(
    usual: Any, mode: str, where: str, tmp_path: Any
) -> None:
    net, data, held_out = network(), images(), images(4)

    def around(part: str) -> Any:
        return _MODES[mode]() if where in (part, "both") else contextlib.nullcontext()

    with around("made"):
        trainer = trainer_of(net, data, held_out=held_out, out=tmp_path, **_SETTINGS)
    with around("trained"):
        trainer.fit()
    assert torch.equal(weights(trainer.average), weights(usual.average))
    assert trainer.history == usual.history
    assert trainer.log.distances == usual.log.distances


def test_a_network_that_nothing_can_change_is_refused() -> None:
    with torch.inference_mode():
        net = network()
    with pytest.raises(ValueError, match=r"inference_mode.*build or load the network outside"):
        trainer_of(net)
    with pytest.raises(ValueError, match=r"all parameters are frozen: call net\.requires_grad_"):
        trainer_of(network().requires_grad_(False))


class Named(Dataset[Any]):
    """Items as libraries of data sets have them."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": images(1)[0], "label": 3}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(TensorDataset(images(8))), r"give loader\.dataset"),
        ((images(8), torch.zeros(8)), r"of \(images, labels\) give the images"),
        ([images(8), images(8)], r"of batches torch\.cat\(batches\)"),
        ({"train": images(8)}, r"give one of its entries \(train\)"),
        ("photos/", r"ncsn-fast train --data"),
        ({1, 2}, r"needs its samples by index"),
        (iter([images(1)]), "has no length: give a tensor or a map-style Dataset"),
        (images(8).to_sparse(), r"call to_dense\(\)"),
        (
            Named(),
            r"\(sample 0; its entries are image, label: give a Dataset whose items are the images",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_of_another_kind_are_refused_with_what_to_give(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(data=data)


def test_a_list_of_samples_is_a_data_set() -> None:
    listed = trained(data=list(images(16)))
    assert listed.history == trained(data=images(16)).history
