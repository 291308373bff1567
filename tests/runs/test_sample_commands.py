"""ncsn-fast sample of several shards: parts of a job, classes, what evaluate takes of them."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import invoke, succeed
from helpers.samples import contents

import ncsn_fast as nf
from ncsn_fast.runs.samples.store import SampleStore
from ncsn_fast.support.progress import Progress

_QUICK = ("--method", "euler", "--steps", 3, "--no-hold-noise")


def test_parts_of_a_job_make_the_files_of_one_command(tmp_path: Path, checkpoint: Path) -> None:
    words = ("sample", checkpoint, "-n", 11, *_QUICK, "--shard-size", 3, "--out")
    succeed(*words, tmp_path / "one")
    for part in ("2/3", "0/3"):
        told = succeed(*words, tmp_path / "parts", "--shard", part)
    assert "3 samples are missing: other processes make them, or this command again" in told
    assert not (tmp_path / "parts" / "grid.png").exists()
    succeed(*words, tmp_path / "parts", "--shard", "1/3")
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


@pytest.mark.parametrize("part", ["3/3", "1", "-1/3", "a/b", "1/0", "1/3/5"])
def test_what_is_no_part_is_refused(tmp_path: Path, checkpoint: Path, part: str) -> None:
    result = invoke("sample", checkpoint, "--shard", part, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "give I/N, such as 0/8 for the first of 8 parts" in result.output
    assert not (tmp_path / "out").exists()


def test_a_task_of_an_array_begins_with_its_own_and_makes_all(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sample", checkpoint, "-n", 4, *_QUICK, "--shard-size", 1, "--out", tmp_path / "out")
    for name, value in (("ID", "5"), ("MIN", "4"), ("COUNT", "3")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    succeed(*words)
    succeed("verify", tmp_path / "out")
    made = sorted((tmp_path / "out" / "shards").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert made[0].name == "000000001-000000001.npz"


def test_classes_are_told_beside_pictures_and_stored_images_are_those(tmp_path: Path) -> None:
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=[3, 1, 0.3, 0.1], classes=3)
    net.sampling = {"method": "annealed_langevin", "step_size": 1e-3, "steps_per_level": 1}
    path = nf.save_checkpoint(net, tmp_path / "net")
    words = ("sample", path, "-n", 5, "--label", "2,0", "--shard-size", 2)
    succeed(*words, "--format", "tar", "--out", tmp_path / "tar")
    succeed(*words, "--dtype", "uint8", "--out", tmp_path / "npz")
    classes = {}
    for shard in sorted((tmp_path / "tar" / "shards").iterdir()):
        with tarfile.open(shard) as archive:
            for one in archive:
                if one.name.endswith(".cls"):
                    opened = archive.extractfile(one)
                    assert opened is not None
                    classes[int(one.name[:-4])] = int(opened.read())
    assert classes == {0: 2, 1: 0, 2: 2, 3: 0, 4: 2}
    wanted = nf.sample(net, 5, seed=0, extra={"classes": torch.tensor([2, 0, 2, 0, 2])})
    found = np.concatenate(
        [np.load(one)["images"] for one in sorted((tmp_path / "npz" / "shards").iterdir())]
    )
    assert found.dtype == np.uint8
    assert np.abs(found / 255 - wanted.clamp(0, 1).numpy()).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("kind", ["npz", "png", "tar"])
def test_a_folder_of_shards_is_evaluated(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("sample", checkpoint, "-n", 10, *_QUICK, "--shard-size", 4)
    succeed(*words, "--format", kind, "--out", "drawn")
    succeed("evaluate", "drawn", "--reference", "digits")
    found = json.loads(Path("evaluation/evaluation.json").read_text())
    assert found["quality"]["samples"]["images"] == 10
    assert found["identity"]["seed"] == 0
    if kind == "npz":
        Path("drawn/shards/000000008-000000009.npz").unlink()
        told = succeed("evaluate", "drawn", "--reference", "digits")
        assert "warning: drawn lacks 2 of its 10 samples: the figures are of the others" in told


def test_what_is_still_being_written_is_counted_as_done(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard is written while the next is made, and the time that is left goes by the count."""
    counts: list[tuple[int, int]] = []

    def counting(wish: object, total: int) -> Progress:
        return Progress(lambda *told: counts.append(told), total)

    def slowly(self: SampleStore, *given: Any) -> None:
        time.sleep(0.3)
        take_in(self, *given)

    take_in = SampleStore._take_in
    monkeypatch.setattr("ncsn_fast.runs.sample.Progress", counting)
    monkeypatch.setattr(SampleStore, "_take_in", slowly)
    succeed("sample", checkpoint, "-n", 6, *_QUICK, "--shard-size", 2, "--out", tmp_path)
    assert counts == sorted(counts)
    assert counts[-1] == (18, 18)


@pytest.mark.parametrize("guidance", ["1", "1000"])
def test_images_that_are_burnt_out_are_told(tmp_path: Path, guidance: str) -> None:
    few = ("-n", 2, "--steps", 7, "--guidance", guidance, "--out", tmp_path)
    told = succeed("sample", "mnist", *few)
    assert ("2 of these 2 images are noisy or burnt out" in told) == (guidance == "1000")
