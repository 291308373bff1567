"""Disks that are full, read-only or gone: it is told, and nothing that was saved is lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import invoke
from helpers.kills import contents, report
from helpers.training import network, train_small, trained, trainer_of, weights

import ncsn_fast as nf
from ncsn_fast.checkpoints.tensor_file import CheckpointError, read_tensors, write_tensors
from ncsn_fast.support import files
from ncsn_fast.support.files import atomic_write
from ncsn_fast.training import state

# Of a step whose save failed, and told so: the losses by level then count from the save before, and
# the page of the run shows them.
_OF_ONE_STEP = ("levels.json", "training.html", "model_", "best", "samples/")


@pytest.mark.parametrize(
    "stride", [pytest.param(37, id="some"), pytest.param(1, id="all", marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("on", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_disk_that_fails_at_any_operation_costs_what_is_told_and_no_more(
    tmp_path: Path, number: int, on: bool, stride: int
) -> None:
    found = report(train_small, tmp_path, stride, how=number, on=on)
    for k, names in found["differ"].items():
        told = found["told"][k]
        # A step that could not be saved is not saved later; the run is.
        expected = _OF_ONE_STEP
        if "no samples at" in told:  # nor is the distance in the log, of which the run has a digest
            expected = (*expected, "log.jsonl", "checkpoint.safetensors")
        assert all(name.startswith(expected) for name in names), (k, names)
        assert "could not be" in told or "no samples at" in told
    for k, told in found["told"].items():
        if told.startswith("1:"):  # it ended: with the file that could not be written
            assert "cannot" in told, (k, told)
            assert str(tmp_path) in told.splitlines()[-1], (k, told)


def _in_little_room(out: Path, size: int, answer: Path) -> None:
    """Train where no file may have more than so many bytes."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    descriptor = os.open(answer, os.O_WRONLY | os.O_CREAT)
    try:
        trained(out=out, steps=8, checkpoint_every=2, resume=True)
        text = "done"
    except OSError as error:
        text = str(error)
    os.write(descriptor, text.encode())


@pytest.mark.parametrize("size", [0, 400, 5_000, 20_000])
def test_files_that_cannot_grow_leave_those_of_before(tmp_path: Path, size: int) -> None:
    run, answer = tmp_path / "run", tmp_path / "answer"
    before = trained(out=run, steps=2, checkpoint_every=2)
    kept = contents(run)
    process = multiprocessing.get_context("forkserver").Process(
        target=_in_little_room, args=(run, size, answer)
    )
    process.start()
    process.join()
    told = answer.read_text() if answer.stat().st_size else "File too large"
    assert "File too large" in told or "file too large" in told
    for name in ("checkpoint.safetensors", "model.safetensors"):
        assert (run / name).read_bytes() == kept[name]
    log = (run / "log.jsonl").read_text()
    assert not log or log.endswith("}\n")  # no half lines
    assert not list(files.leftovers(run))
    resumed = trainer_of(out=run, resume=True)
    assert resumed.step == 2
    assert torch.equal(weights(resumed.net), weights(before.net))


def test_a_folder_that_is_deleted_while_training_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    trainer = trainer_of(out=run, checkpoint_every=2, steps=4)
    entry = trainer.log.loss

    def delete(step: int, *rest: Any) -> None:
        if step == 1:
            shutil.rmtree(run)
        entry(step, *rest)

    trainer.log.loss = delete  # type: ignore[method-assign]
    with pytest.raises(OSError, match=f"the folder {run} does not exist"):
        trainer.fit()
    assert trainer.step == 4  # hours may have gone into it: it is still there
    assert f"step 2 could not be saved (cannot write {run}" in caplog.text
    run.mkdir()
    trainer.save()
    assert trainer_of(out=run, resume=True).step == 4


def test_a_folder_that_somebody_else_has_made_anew_is_left_to_him(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = trainer_of(out=run, checkpoint_every=2, steps=8)
    entry = trainer.log.loss

    def make_anew(step: int, *rest: Any) -> None:
        if step == 3:
            shutil.rmtree(run)
            run.mkdir()  # as a process that has not saved yet
            (run / ".lock").touch()
            (run / "log.jsonl").write_text("his")
        entry(step, *rest)

    trainer.log.loss = make_anew  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="was removed and made anew by another process"):
        trainer.fit()
    # His is all there is, also the lock that keeps the next one out.
    assert sorted(path.name for path in run.iterdir()) == [".lock", "log.jsonl"]
    assert (run / "log.jsonl").read_text() == "his"


def test_what_another_has_saved_in_a_folder_made_anew_stays(tmp_path: Path) -> None:
    run, his = tmp_path / "run", tmp_path / "his"
    trained(out=his)
    trainer = trainer_of(out=run, checkpoint_every=2, steps=8)
    entry = trainer.log.loss

    def replace(step: int, *rest: Any) -> None:
        if step == 3:
            shutil.rmtree(run)
            shutil.copytree(his, run)  # by a process that has ended: no lock
        entry(step, *rest)

    trainer.log.loss = replace  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="another trainer has saved in"):
        trainer.fit()
    for name in ("checkpoint.safetensors", "model.safetensors"):
        assert (run / name).read_bytes() == (his / name).read_bytes()


def test_a_model_that_is_taken_away_while_training_is_written_again(tmp_path: Path) -> None:
    trainer = trainer_of(out=tmp_path, checkpoint_every=2)
    entry = trainer.log.loss

    def take(step: int, *rest: Any) -> None:
        if step == 3:
            (tmp_path / "model.safetensors").unlink()
        entry(step, *rest)

    trainer.log.loss = take  # type: ignore[method-assign]
    trainer.fit()
    assert (tmp_path / "model.safetensors").exists()


def test_a_save_that_failed_half_way_is_no_other_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(out=tmp_path)

    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(state, "save_checkpoint", full)  # the model, after the checkpoint
        with pytest.raises(OSError, match="No space left"):
            trainer.fit()
    trainer.save()
    assert (tmp_path / "model.safetensors").exists()


def test_a_deleted_folder_does_not_hide_why_a_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    step = nf.Trainer._train_step

    def broken(trainer: nf.Trainer) -> None:
        step(trainer)
        if trainer.step == 12:  # one entry of the log is there to plot
            shutil.rmtree(run)
            raise RuntimeError("the file of sample 17 is cut")

    monkeypatch.setattr(nf.Trainer, "_train_step", broken)
    tiny = ("--ngf", 2, "--batch-size", 4, "--num-levels", 3, "--sigma-max", 2)
    result = invoke("train", "--out", run, "--steps", 20, *tiny)
    assert "sample 17" in f"{result.exception} {result.output}"


def test_the_first_write_that_fails_names_its_file(tmp_path: Path) -> None:
    def full() -> None:
        with atomic_write(tmp_path / "x.npz"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as writers say it

    with pytest.raises(OSError, match=r"cannot write .*x\.npz: No space left on device; make room"):
        full()
    assert list(tmp_path.iterdir()) == []


def test_entries_that_found_no_room_are_there_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint does not say that a line is there which a full disk has refused."""
    whole = trained(out=tmp_path / "whole", steps=4, checkpoint_every=2)
    trainer = trainer_of(out=tmp_path / "run", steps=2, checkpoint_every=2)
    append = files.append_text

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ncsn_fast.training.log.append_text", full)
    trainer.fit()
    monkeypatch.setattr("ncsn_fast.training.log.append_text", append)
    resumed = trained(out=tmp_path / "run", steps=4, checkpoint_every=2, resume=True)
    assert resumed.history == whole.history
    for name in ("log.jsonl", "levels.json", "checkpoint.safetensors"):
        assert contents(tmp_path / "run")[name] == contents(tmp_path / "whole")[name]


def test_what_is_there_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that filled its disk can go on: its files make room for those that replace them."""
    trained(out=tmp_path, steps=2)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    needed = 12 * sum(value.nbytes for value in network().state_dict().values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - size))
    trainer_of(out=tmp_path, resume=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 2 * size))
    with pytest.raises(OSError, match="MB of disk left"):
        trainer_of(out=tmp_path, resume=True)


def test_a_checkpoint_that_is_whole_but_not_of_a_run_is_refused(tmp_path: Path) -> None:
    trained(out=tmp_path, steps=2)
    path = tmp_path / "checkpoint.safetensors"
    tensors, metadata = read_tensors(path)
    metadata = {key: value for key, value in metadata.items() if key not in ("sha256", "format")}
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"step": "2"}), ({}, {"step": -1}), ({}, {"step": 2.5}), ({}, {"step": None}),
        ({}, {"loss_since": []}), ({}, {"scaler": 3}), ({}, {"config": []}), ({}, {"training": 1}),
        ({}, {"scaler": {"scale": 1}}), ({"loss_sum": torch.zeros(3)}, {}),
        ({"level_sums": torch.zeros(2, 3)}, {}), ({"sigmas": torch.zeros(0)}, {}),
        ({"optimizer.exp_avg.nobody": torch.zeros(3)}, {}), ({"model.more": torch.zeros(3)}, {}),
    ]  # fmt: skip
    some = next(name for name in tensors if name.startswith("model."))
    moment = next(name for name in tensors if name.startswith("optimizer.exp_avg."))
    for name in (some, moment, some.replace("model.", "ema.")):
        wrong += [({name: torch.zeros(1, 2)}, {}), ({name: None}, {})]
    wrong += [({some: tensors[some].double()}, {})]
    for name in ("loss_sum", "level_sums", "sigmas"):
        wrong += [({name: None}, {})]
    for key in ("step", "config", "training", "scaler", "sampling", "loss_since"):
        wrong += [({}, {key: ...})]
    for parts, values in wrong:
        new = {k: v for k, v in {**tensors, **parts}.items() if v is not None}
        told = {k: v for k, v in {**metadata, **values}.items() if v is not ...}
        write_tensors(path, new, told)
        with pytest.raises((CheckpointError, ValueError), match=r"checkpoint\.safetensors"):
            trainer_of(out=tmp_path, resume=True)
