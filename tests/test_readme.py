"""What the README says can be typed."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import ncsn_fast as nf
from ncsn_fast.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_every_block_is_python_and_names_what_exists():
    assert len(BLOCKS) >= 4
    for block in BLOCKS:
        compile(block, "README.md", "exec")
    names = set(re.findall(r"\bnf\.([A-Za-z_0-9]+)", README))
    assert {"load_checkpoint", "sample", "Sampler", "Trainer", "Score"} <= names
    for name in names:
        assert hasattr(nf, name), name


def test_the_training_recipe_ends_in_a_network_that_samples(tmp_path, monkeypatch):
    """The block itself, on small images, with a small network and three steps."""
    (recipe,) = [block for block in BLOCKS if "nf.Trainer" in block]
    monkeypatch.chdir(tmp_path)
    small = recipe.replace("image_size=32, ngf=128", "image_size=8, ngf=4")
    small = small.replace("channels=3", "channels=1").replace("steps=300_000", "steps=3")
    assert small.count("steps=3,") == 1
    images = nf.noise.uniform((1, 8, 8), seed=0, stream=0, sample_ids=range(12))
    small = small.replace("progress=True", "progress=None")
    scope = {"nf": nf, "images": images, "x": images}
    exec(small, scope)
    assert scope["loss"].item() > 0
    net = nf.load_checkpoint(tmp_path / "runs" / "mine" / "model.safetensors")
    assert nf.sample(net, 2, seed=0).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"ncsn-fast (\w+)", README))))
def test_every_command_exists(command):
    assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOPS = ("", "ncsn_fast", "tests")  # what a page may leave away


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_named_is_there(page):
    text = page.read_text(encoding="utf-8")
    for named in re.findall(r"`([\w.]+/[\w/.]+\.\w+)`", text):
        assert any((ROOT / top / named).exists() for top in TOPS), named
    for linked in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / linked).exists(), linked


def test_every_file_named_in_the_code_is_there():
    for folder in ("ncsn_fast", "kernels", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            named = re.findall(
                r"``([\w/.]+\.py)``|:mod:`([\w.]+)`", path.read_text(encoding="utf-8")
            )
            for file, module in named:
                place = file or module.replace(".", "/") + ".py"
                tops = [ROOT, ROOT / "ncsn_fast", path.parent]
                found = any((top / place).exists() for top in tops)
                assert found or (ROOT / place.removesuffix(".py")).is_dir(), f"{path}: {place}"
