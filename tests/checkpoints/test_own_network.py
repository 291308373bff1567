"""Files of a network that the caller has made and named (docs/extend_network.md)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ncsn_fast.checkpoints.load_save import load_checkpoint, save_checkpoint
from ncsn_fast.checkpoints.tensor_file import CheckpointError, read_tensors, write_tensors
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import NETWORKS


class Linear(ScoreNetwork):
    def __init__(self, width: int, *, sigmas: Tensor) -> None:
        super().__init__(sigmas)
        self.width = width
        self.body = nn.Linear(width, width)

    @property
    def config(self) -> dict[str, object]:
        return {"network": "Linear", "width": self.width}

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width,)

    def normalized(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.body(x)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(NETWORKS, "Linear", Linear)
    return save_checkpoint(Linear(3, sigmas=torch.tensor([1.0, 0.1])), tmp_path / "net")


def test_a_named_network_comes_back(file: Path) -> None:
    net = load_checkpoint(file)
    assert type(net) is Linear
    assert net.width == 3
    assert torch.equal(net.body.weight, read_tensors(file)[0]["body.weight"])


def test_one_that_is_not_named_is_refused_with_what_to_do(file: Path, monkeypatch) -> None:
    monkeypatch.delitem(NETWORKS, "Linear")
    with pytest.raises(
        CheckpointError, match=r"'Linear': known are .*Put it into .*NETWORKS first"
    ):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 1 << 20}, "of another shape"),  # refused before anything is allocated
        ({"height": 3}, "cannot be built from"),
    ],
)
def test_settings_that_its_weights_contradict_are_refused(
    file: Path, settings: dict[str, int], message: str
) -> None:
    tensors, header = read_tensors(file)
    told = {"kind": "network", "config": {"network": "Linear", **settings}, "sampling": None}
    assert header["config"] != told["config"]
    write_tensors(file, tensors, told)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(file)
