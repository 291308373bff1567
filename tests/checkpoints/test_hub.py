"""Networks on the Hugging Face Hub, without a network: folders and a cache in the hub's layout."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import assert_same_weights, network

import ncsn_fast as nf
from ncsn_fast.checkpoints.hub import names_network

NAME = "user/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def net() -> nf.NCSNv2:
    net = network()
    net.sampling = {"method": "ancestral", "steps": 3}
    return net


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache; nothing beyond it can be reached."""
    pytest.importorskip("huggingface_hub", reason="the cache is that of huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put(net: nf.NCSNv2, cache: Path) -> None:
    """A network, as the hub's cache keeps it."""
    repository = cache / f"models--{NAME.replace('/', '--')}"
    net.save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def test_a_folder_in_the_hubs_layout_is_loaded(tmp_path: Path, net) -> None:
    folder = net.save_pretrained(tmp_path / "new" / "one")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for again in (nf.load_checkpoint(folder), nf.NCSNv2.from_pretrained(str(folder))):
        assert_same_weights(again, net)
        assert again.sampling == net.sampling
    config = json.loads((folder / "config.json").read_text())
    assert config["config"] == net.config
    with pytest.raises(ValueError, match=r"holds a NCSNv2, not a NCSN: NCSNv2\.from_pretrained"):
        nf.NCSN.from_pretrained(folder)


def test_the_card_says_what_to_type(tmp_path: Path, net, monkeypatch) -> None:
    card = (net.save_pretrained(tmp_path / "one") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ncsn_fast\n")
    (code,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["images"].shape == (16, *net.shape)
    (tmp_path / "one" / "README.md").write_text("mine")
    net.save_pretrained(tmp_path / "one")
    assert (tmp_path / "one" / "README.md").read_text() == "mine"


def test_a_name_on_the_hub_is_found_in_its_cache(cache: Path, net) -> None:
    put(net, cache)
    assert_same_weights(nf.load_checkpoint(NAME), net)
    assert_same_weights(nf.NCSNv2.from_pretrained(NAME), net)
    with pytest.raises(FileNotFoundError, match="none that can be had from the Hugging Face Hub"):
        nf.load_checkpoint("user/another")


LOCAL = ["a.pth", "user/name.safetensors", "user/name.ckpt", "a/b/c", "./name", "/name", "name"]


@pytest.mark.parametrize("name", [*LOCAL, Path(NAME)])
def test_what_may_be_a_file_is_never_looked_for_on_the_hub(cache: Path, monkeypatch, name) -> None:
    asked: list[object] = []
    hub = sys.modules["huggingface_hub"]
    monkeypatch.setattr(hub, "hf_hub_download", lambda *given: asked.append(given))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        nf.load_checkpoint(name)
    Path("user").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        nf.load_checkpoint(NAME)
    assert not asked


def test_a_folder_here_comes_before_the_hub(cache: Path, net) -> None:
    put(network(seed=1), cache)
    net.save_pretrained(NAME)
    assert_same_weights(nf.load_checkpoint(NAME), net)
    shutil.rmtree(NAME)
    Path(NAME).mkdir()
    with pytest.raises(nf.CheckpointError, match="is a folder"):
        nf.load_checkpoint(NAME)


def test_a_network_is_pushed_in_that_layout(cache: Path, net, monkeypatch, tmp_path) -> None:
    from huggingface_hub import hub_mixin

    class Api:
        def __init__(self, **given: Any) -> None:
            self.given = given

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
            assert private
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: Path, **given: Any) -> str:
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return f"{repo_id} at {given['revision']}"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    assert net.push_to_hub(NAME, private=True, branch="main") == f"{NAME} at main"
    assert_same_weights(nf.load_checkpoint(tmp_path / "uploaded"), net)
    assert f'nf.load_checkpoint("{NAME}")' in (tmp_path / "uploaded" / "README.md").read_text()
    for name in ("name", "user/name.pth", None):
        with pytest.raises(ValueError, match="is called user/name"):
            net.push_to_hub(name)


def test_without_the_package_it_is_named(net, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="pip install huggingface_hub"):
        nf.load_checkpoint(NAME)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        net.push_to_hub(NAME)
    assert_same_weights(nf.load_checkpoint(net.save_pretrained(tmp_path / "one")), net)


def test_names_are_those_of_the_hub() -> None:
    for name in ("a/b", "yang-song/ncsnv2_cifar10", "A.b/c--d"):
        assert names_network(name)
    for name in (
        "a",
        "a/b/c",
        ".a/b",
        "a/",
        "/b",
        "a\\b",
        "a/b.pt",
        "a/b.PTH",
        "a b/c",
        "tests/b\n",
    ):
        assert not names_network(name)


def test_a_network_of_points_has_a_card_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nf.MLPScore(hidden=8, layers=1, sigmas=[1.0, 0.1])
    card = (net.save_pretrained(tmp_path / "one") / "README.md").read_text()
    assert "MLPScore" in card
    assert_same_weights(nf.load_checkpoint(tmp_path / "one"), net)
