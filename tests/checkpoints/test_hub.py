"""Networks on the Hugging Face Hub, without a network: folders and a cache in the hub's layout."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
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
    assert str(tmp_path) not in card
    monkeypatch.chdir(tmp_path)
    assert typed(card)["images"].shape == (16, *net.shape)
    (tmp_path / "one" / "README.md").write_text("mine")
    net.save_pretrained(tmp_path / "one")
    assert (tmp_path / "one" / "README.md").read_text() == "mine"


def typed(card: str) -> dict[str, Any]:
    """The names that there are when the card's command has been run."""
    (code,) = re.findall("```python\n(.*?)\n```\n", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


LEVELS = [1.0, 0.3, 0.1]
CARDS: dict[str, tuple[Callable[[], nf.ScoreNetwork], tuple[int, ...]]] = {
    "a size": (lambda: nf.NCSNv2(channels=2, image_size=8, ngf=4, sigmas=LEVELS), (2, 8, 8)),
    "any size": (lambda: nf.NCSNv2(channels=2, image_size=None, ngf=4, sigmas=LEVELS), (2, 32, 32)),
    "v1": (lambda: nf.NCSN(channels=2, image_size=(8, 16), ngf=4, sigmas=LEVELS), (2, 8, 16)),
    "points": (lambda: nf.MLPScore(hidden=8, layers=1, sigmas=LEVELS), (2,)),
    "classes": (
        lambda: nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=LEVELS, classes=["a", "b"]),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize("settings", [None, {"method": "euler"}, {"denoise": True}], ids=str)
@pytest.mark.parametrize("name", CARDS)
def test_the_cards_command_is_complete(name: str, settings, tmp_path: Path, monkeypatch) -> None:
    make, shape = CARDS[name]
    net = make()
    net.sampling = settings
    folder = net.save_pretrained(tmp_path / 'a "card"\n```')
    monkeypatch.chdir(tmp_path)
    card = (folder / "README.md").read_text()
    assert typed(card)["images"].shape == (16, *shape)
    assert ('extra={"classes": 0})  # of the first of 2 classes' in card) == (name == "classes")


def test_a_name_on_the_hub_is_found_in_its_cache(cache: Path, net, caplog) -> None:
    put(net, cache)
    loaded = nf.load_checkpoint(NAME)
    assert_same_weights(loaded, net)
    assert loaded.source.startswith(f"{NAME}@{COMMIT}: ")
    (line,) = [one for one in caplog.records if "is asked for it" in one.message]
    assert line.levelname == "WARNING"
    for commit in (COMMIT, "main"):
        assert_same_weights(nf.load_checkpoint(NAME, revision=commit), net)
    with pytest.raises(FileNotFoundError, match="none that can be had from the Hugging Face Hub"):
        nf.load_checkpoint(NAME, revision="v2")
    assert_same_weights(nf.NCSNv2.from_pretrained(NAME), net)
    with pytest.raises(FileNotFoundError, match="none that can be had from the Hugging Face Hub"):
        nf.load_checkpoint("user/another")


def test_another_cache_is_looked_in(cache: Path, net, monkeypatch) -> None:
    put(net, cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "empty"))
    how = {"local_files_only": True, "token": False}
    assert_same_weights(nf.NCSNv2.from_pretrained(NAME, cache_dir=cache, **how), net)
    with pytest.raises(FileNotFoundError, match="none that can be had"):
        nf.load_checkpoint(NAME, **how)


def test_weights_alone_in_the_cache_say_themselves_what_they_are(cache: Path, net) -> None:
    put(net, cache)
    folder = next(cache.glob("models--*/snapshots/*"))
    (folder / "config.json").unlink()
    assert_same_weights(nf.load_checkpoint(NAME), net)
    (folder / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    with pytest.raises(nf.CheckpointError):
        nf.load_checkpoint(NAME, local_files_only=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="none that can be had from the Hugging Face Hub"):
        nf.load_checkpoint(NAME)


def test_a_revision_of_a_file_is_refused(tmp_path: Path, net) -> None:
    folder = net.save_pretrained(tmp_path / "one")
    nf.load_checkpoint(folder, local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"revision = 'main': .* is a file here"):
        nf.NCSNv2.from_pretrained(folder, revision="main")


@pytest.fixture
def online(cache: Path, monkeypatch) -> Path:
    """A repository that can be reached: a folder, whose files are asked after and fetched."""
    hub = sys.modules["huggingface_hub"]
    folder = cache.parent / "online"
    asked: list[tuple[str, str]] = []

    def metadata(url: str, token: object = None) -> Any:
        file = url.rpartition("/")[2]
        asked.append(("size", file))
        size = None if (folder / "mute").exists() else (folder / file).stat().st_size
        return type("Metadata", (), {"size": size})

    def fetched(name: str, file: str, **how: object) -> str:
        asked.append(("file", file))
        assert not how.get("local_files_only")
        return str(folder / file)

    monkeypatch.setattr(hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(hub, "hf_hub_download", fetched)
    monkeypatch.setattr(hub, "asked", asked, raising=False)
    return folder


def test_what_it_is_and_how_large_comes_before_the_weights(online: Path, net, monkeypatch) -> None:
    asked = sys.modules["huggingface_hub"].asked
    net.save_pretrained(online)
    assert_same_weights(nf.load_checkpoint(NAME), net)
    both = ("size", "config.json"), ("file", "config.json")
    weights = ("size", "model.safetensors"), ("file", "model.safetensors")
    assert asked == [*both, *weights]
    asked.clear()
    monkeypatch.setattr("ncsn_fast.checkpoints.hub._LARGEST_WEIGHTS", 1000)
    with pytest.raises(
        nf.CheckpointError, match=r"its model.safetensors has \d+ bytes, of at most"
    ):
        nf.load_checkpoint(NAME)
    assert asked == [*both, weights[0]]
    asked.clear()
    for text in ('{"model_type": "bert"}', "[" * 10**5, "{}"):
        (online / "config.json").write_text(text)
        with pytest.raises(nf.CheckpointError, match=f"{NAME}, on the Hugging Face Hub: "):
            nf.load_checkpoint(NAME)
    (online / "config.json").write_text(" " * (5 << 20))
    with pytest.raises(nf.CheckpointError, match=r"its config\.json has 5242880 bytes"):
        nf.load_checkpoint(NAME)
    assert not set(weights) & set(asked)
    assert asked[-1] == both[0]


def test_weights_of_a_size_that_nobody_tells_are_not_fetched(online: Path, net) -> None:
    asked = sys.modules["huggingface_hub"].asked
    net.save_pretrained(online)
    (online / "mute").touch()
    with pytest.raises(nf.CheckpointError, match=r"its model\.safetensors is of unknown size"):
        nf.load_checkpoint(NAME)
    assert ("file", "config.json") in asked
    assert ("file", "model.safetensors") not in asked
    (online / "config.json").write_text(" " * (5 << 20))
    with pytest.raises(nf.CheckpointError, match=r"longer than|larger than|at most"):
        nf.load_checkpoint(NAME)


def test_a_repository_without_a_description_is_none_of_ours(online: Path, net, monkeypatch) -> None:
    """The hub has been reached: what the cache has is of another day."""
    from huggingface_hub.utils import EntryNotFoundError

    def metadata(url: str, token: object = None) -> Any:
        raise EntryNotFoundError("no such file")

    put(net, online.parent / "hub")
    monkeypatch.setattr(sys.modules["huggingface_hub"], "get_hf_file_metadata", metadata)
    with pytest.raises(FileNotFoundError, match="no such file"):
        nf.load_checkpoint(NAME)


def others(folder: Path, file: str, text: str) -> None:
    folder.mkdir()
    (folder / file).write_text(text)


def test_files_of_others_are_not_replaced(tmp_path: Path, net) -> None:
    others(tmp_path / "config", "config.json", '{"model_type": "bert"}')
    others(tmp_path / "weights", "model.safetensors", "mine")
    (tmp_path / "run").mkdir()
    nf.save_checkpoint(net, tmp_path / "run" / "model", extra={"trained": "a month"})
    for name in ("config", "weights", "run"):
        folder = tmp_path / name
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        with pytest.raises(ValueError, match="that save_pretrained did not write"):
            net.save_pretrained(folder)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    others(tmp_path / "beside", "model.json", "mine")
    for _ in range(2):  # what it wrote itself it replaces
        net.save_pretrained(tmp_path / "beside")
    assert (tmp_path / "beside" / "model.json").read_text() == "mine"
    for folder in ("", None, 3):
        with pytest.raises(ValueError, match="give the path of a folder"):
            net.save_pretrained(folder)
    with pytest.raises(ValueError, match="is called user/name"):
        net.save_pretrained(tmp_path / "new", push_to_hub=True)
    with pytest.raises(TypeError, match="takes private with push_to_hub=True alone"):
        net.save_pretrained(tmp_path / "new", private=True)
    assert not (tmp_path / "new").exists()


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
    how = {"private": True, "branch": "main"}
    assert net.push_to_hub(repo_id=NAME, **how) == f"{NAME} at main"
    shutil.rmtree(tmp_path / "uploaded")
    kept = tmp_path / "kept"
    assert net.save_pretrained(kept, repo_id=NAME, push_to_hub=True, **how) == f"{NAME} at main"
    assert_same_weights(nf.load_checkpoint(kept), net)
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
    for name in ("a/b", "yang-song/ncsnv2_cifar10", "A.b/c--d", "a/version-1.5"):
        assert names_network(name)
    for name in (
        "a",
        "a/b/c",
        ".a/b",
        "a/",
        "/b",
        "a\\b",
        "a/b.pt",
        "a/b.json",
        "a/b.SAFETENSORS",
        "a/model.safetensors.bak",
        "a/model.pth.tar",
        "a/last.h5",
        "a/model_300000.chk",
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
