"""A folder that others have prepared or write to: what is refused leaves it as it was."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import invoke
from helpers.training import images, network, train_small, trained, trainer_of
from PIL import Image

import ncsn_fast as nf
from ncsn_fast.runs import demo
from ncsn_fast.support import files
from ncsn_fast.support.files import append_text, atomic_write, write_text
from ncsn_fast.support.locks import folder_lock

TINY = ("--ngf", 2, "--batch-size", 4, "--num-levels", 3, "--sigma-max", 2, "--steps-per-level", 1)


def snapshot(folder: Path) -> dict[str, Any]:
    """All that lies in a folder: kinds, modes, contents, times of the last change."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content: Any = None
        if stat.S_ISLNK(about.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(about.st_mode):
            content = (path.read_bytes(), about.st_mtime_ns)
        found[str(path.relative_to(folder))] = (about.st_mode, content)
    return found


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nowhere"))


def _folder(path: Path, victim: Path) -> None:
    path.mkdir()


def _pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _device(path: Path, victim: Path) -> None:
    path.symlink_to("/dev/full")


def _socket(path: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        before = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        bound.bind(path.name)
        os.chdir(before)


@pytest.mark.parametrize("lay", [_link, _dangling, _folder, _pipe, _device, _socket])
def test_a_lock_that_is_no_file_is_refused_and_nothing_behind_it_touched(
    tmp_path: Path, lay: Callable[[Path, Path], None]
) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    lay(run / ".lock", victim)
    before = snapshot(tmp_path)
    with pytest.raises((ValueError, OSError), match=r"\.lock is not a file but a link, folder"):
        trained(out=run)
    for command in (("train", *TINY), ("sample", "-n", 1), ("demo",), ("schedule",)):
        result = invoke(*command, "--out", run)
        assert result.exit_code == 1
        assert ".lock is not a file but" in result.output
    assert snapshot(tmp_path) == before


def test_a_lock_that_holds_something_keeps_it(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("a note of mine")
    with folder_lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == "a note of mine"


def test_the_lock_goes_with_its_holder_and_no_second_one_slips_in(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        held = os.open(tmp_path / ".lock", os.O_RDWR)  # a second process, just before it locks
    assert not (tmp_path / ".lock").exists()
    fcntl.flock(held, fcntl.LOCK_EX)
    with folder_lock(tmp_path):  # the file that the other one holds is gone, and guards nothing
        pass
    os.close(held)


def _in_place(name: str) -> Callable[[Path, Path], None]:
    """Lay a link to a victim in the place of a file that a run writes."""

    def lay(run: Path, victim: Path) -> None:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).symlink_to(victim)

    return lay


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "log.jsonl",
        "levels.json",
        "loss.png",
        "training.html",
        "best.json",
        "model.json",
        "model_0000002.json",
        "samples/step_0000002.png",
    ],
)
def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path: Path, name: str) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    _in_place(name)(run, victim)
    kept = ("--checkpoint-every", 2, "--keep-every", 2, "--sample-every", 2, "--samples", 2)
    result = invoke("train", "--out", run, "--steps", 10, *TINY, *kept)
    assert victim.read_text() == "precious"
    assert result.exit_code == 0, result.output
    assert (run / name).is_file()
    assert not (run / name).is_symlink()


@pytest.mark.parametrize("name", ["best.safetensors", "model_0000002.safetensors"])
def test_a_link_in_the_place_of_a_model_is_refused_as_a_model_is(tmp_path: Path, name: str) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    _in_place(name)(run, victim)
    before = snapshot(tmp_path)
    result = invoke("train", "--out", run, "--steps", 10, *TINY)
    assert f"holds a trained network already ({name})" in result.output
    assert result.exit_code == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["samples", "tensorboard"])
def test_a_folder_of_pictures_that_is_a_link_is_refused(tmp_path: Path, name: str) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    run.mkdir()
    (run / name).symlink_to(elsewhere)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is a link, and nothing is written through one"):
        trained(out=run, sample_every=2, tensorboard=True)
    assert snapshot(tmp_path) == before


def test_a_link_laid_while_training_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    trainer = trainer_of(out=run, steps=4)
    entry = trainer.log.loss

    def lay(step: int, *rest: Any) -> None:
        if step == 2:
            (run / "log.jsonl").unlink()
            (run / "log.jsonl").symlink_to(victim)
        entry(step, *rest)

    trainer.log.loss = lay  # type: ignore[method-assign]
    trainer.fit()
    assert victim.read_text() == "precious"
    assert (run / "log.jsonl").read_text().count("\n") == 4
    assert "it is a link, and nothing is written through one" in caplog.text


@pytest.mark.parametrize("lay", [_link, _pipe, _device, _folder])
def test_nothing_is_appended_to_what_is_no_file(
    tmp_path: Path, lay: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lay(tmp_path / "log", victim)
    with pytest.raises(OSError, match=r"cannot write .*log"):
        append_text(tmp_path / "log", "line\n")
    assert victim.read_text() == "precious"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, for copies."""
    run = tmp_path_factory.mktemp("finished") / "run"
    result = invoke("train", "--out", run, "--steps", 10, *TINY)
    assert result.exit_code == 0, result.output
    return run


def _damage(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[len(data) // 2] ^= 1
        (run / name).write_bytes(data)

    return damage


def _nothing(run: Path) -> None:
    pass


def _without_checkpoint(run: Path) -> None:
    (run / "checkpoint.safetensors").unlink()


def _another_network(run: Path) -> None:
    settings = (run / "run.json").read_text().replace('"ngf": 2', '"ngf": 4')
    head = settings[: settings.index(',\n  "sha256"')]  # as whoever edits it is told to
    (run / "run.json").write_text(head + "\n}\n")


def _moved_data(run: Path) -> None:
    settings = (run / "run.json").read_text().replace('"digits"', '"/gone/photos"')
    (run / "run.json").write_text(settings[: settings.index(',\n  "sha256"')] + "\n}\n")


def _folder_in_the_place_of(name: str) -> Callable[[Path], None]:
    def lay(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return lay


_REFUSED: dict[str, tuple[Callable[[Path], None], tuple[Any, ...], str]] = {
    "a run is there": (_nothing, TINY, "holds a trained network already (checkpoint.safetensors)"),
    "a model is there": (
        _without_checkpoint,
        TINY,
        "holds a trained network already (model.safetensors)",
    ),
    "resume would change": (_nothing, ("--resume", "--ngf", 4), "--ngf cannot change on --resume"),
    "resume with a preset": (_nothing, ("--resume", "--preset", "digits"), "cannot change"),
    "resume to keep too often": (
        _nothing,
        ("--resume", "--keep-every", 3, "--checkpoint-every", 2),
        "is no multiple of checkpoint_every",
    ),
    "resume on other data": (_nothing, ("--resume", "--data", "OTHER"), "another run (data: "),
    "resume on no data": (_nothing, ("--resume", "--data", "NOWHERE"), "NOWHERE"),
    "data gone": (_moved_data, ("--resume",), "say their new place with --data"),
    "another network": (_another_network, ("--resume",), "belongs to another run (network: "),
    "damaged checkpoint": (_damage("checkpoint.safetensors"), ("--resume",), "checkpoint"),
    "damaged settings": (_damage("run.json"), ("--resume",), "run.json is damaged"),
    "no checkpoint": (
        _without_checkpoint,
        ("--resume",),
        "holds model.safetensors, but no checkpoint.safetensors to go on from",
    ),
    "a log that is a folder": (
        _folder_in_the_place_of("log.jsonl"),
        ("--resume", "--steps", 19),
        "log.jsonl: it is a folder",
    ),
    "a plot that is a folder": (
        _folder_in_the_place_of("loss.png"),
        ("--resume", "--steps", 19),
        "loss.png: it is a folder",
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_a_refused_command_changes_nothing(finished: Path, tmp_path: Path, case: str) -> None:
    prepare, flags, message = _REFUSED[case]
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    prepare(run)
    other = tmp_path / "other.npy"
    np.save(other, images(8).numpy())
    places = {"OTHER": other, "NOWHERE": tmp_path / "NOWHERE"}
    before = snapshot(run)
    result = invoke("train", "--out", run, *(places.get(flag, flag) for flag in flags))
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--preset", "cifar10"), "the images of digits have 1 channel"),
        (("--sigma-max", 0.001), "sigma_max"),
        (("--data", "nowhere"), "nowhere"),
        (("--resume",), "nothing to resume"),
        (("--config", "nowhere.yml"), "nowhere.yml"),
    ],
)
def test_a_refused_command_leaves_no_folder(
    tmp_path: Path, flags: tuple[Any, ...], message: str
) -> None:
    result = invoke("train", "--out", tmp_path / "runs" / "new", *flags)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_demo_in_a_run_changes_nothing(finished: Path) -> None:
    before = snapshot(finished)
    assert "holds a training run" in invoke("demo", "--out", finished).output
    assert snapshot(finished) == before


def test_without_room_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    result = invoke("train", "--out", tmp_path / "run", *TINY)
    assert "MB of disk left" in result.output
    with pytest.raises(OSError, match="MB of disk left"):
        trained(out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [(*TINY, "--seed", 7), ("--resume", "--steps", 99)])
def test_beside_a_process_that_trains_nothing_changes(
    finished: Path, tmp_path: Path, flags: tuple[Any, ...]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    if "--resume" not in flags:  # it has not saved yet
        for name in ("checkpoint.safetensors", "model.safetensors"):
            (run / name).unlink()
    with folder_lock(run):
        before = snapshot(run)
        result = invoke("train", "--out", run, *flags)
        assert result.exit_code == 1
        assert f"another process is writing to {run}" in result.output
        for resume in (True, False):
            with pytest.raises(ValueError, match="another process is writing to"):
                trainer_of(out=run, resume=resume)
        for command in (("sample", "-n", 1), ("demo", "--seconds", 1), ("schedule",)):
            assert "another process is writing to" in invoke(*command, "--out", run).output
        assert snapshot(run) == before


def test_a_trainer_that_was_overtaken_does_not_write(tmp_path: Path) -> None:
    first, second = trainer_of(out=tmp_path), trainer_of(out=tmp_path)
    first.fit()
    before = snapshot(tmp_path)
    for call in (second.fit, second.save):
        with pytest.raises(ValueError, match="another trainer has saved in"):
            call()
    assert snapshot(tmp_path) == before
    first.save()  # but this one's own saves are its own


@pytest.mark.parametrize("name", ["best.safetensors", "model_0000002.safetensors"])
def test_a_network_that_an_earlier_run_has_left_is_not_replaced(tmp_path: Path, name: str) -> None:
    trained(out=tmp_path, checkpoint_every=2, keep_every=2)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    (tmp_path / "checkpoint.safetensors").unlink()
    for path in {*tmp_path.glob("model_*")} - {tmp_path / name}:
        path.unlink()
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=f"holds a trained network already .{name}"):
        trainer_of(out=tmp_path)
    assert invoke("train", "--out", tmp_path, "--steps", 1, *TINY).exit_code == 1
    assert snapshot(tmp_path) == before


def test_a_trainer_that_was_refused_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        trainer_of(out=tmp_path / "a" / "b", resume=True)
    net = network()
    net.sampling["step_size"] = object()
    with pytest.raises(TypeError):
        trainer_of(net, out=tmp_path / "a" / "b")
    trainer_of(out=tmp_path / "a" / "b")  # one that only looks
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP]
)
def test_without_file_locks_work_goes_on_with_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    trained(out=tmp_path / "run")
    told = [record for record in caplog.records if "has no locks" in record.message]
    assert len(told) == 1
    model = tmp_path / "run" / "model.safetensors"
    result = invoke("sample", model, "-n", 1, "--out", tmp_path / "samples")
    assert result.exit_code == 0, result.output
    assert "has no locks" in caplog.text


def test_an_error_of_the_disk_is_not_taken_for_missing_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match=r"cannot write .*\.lock: Input/output error"):
        trained(out=tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_that_cannot_put_folders_on_the_disk_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def not_supported(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", not_supported)
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"


def test_a_disk_that_fails_to_flush_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=r"cannot write .*x: Input/output error"):
        write_text(tmp_path / "x", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_file_systems_without_modes_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_allowed(*arguments: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", not_allowed)
    with atomic_write(tmp_path / "x") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)
    assert (tmp_path / "x").exists()


def test_a_place_that_cannot_be_renamed_over_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(*arguments: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "replace", elsewhere)
    with pytest.raises(OSError, match=r"cannot write .*/x: Invalid cross-device link; choose"):
        write_text(tmp_path / "x", "new")
    assert list(tmp_path.iterdir()) == []


_NAMES = {
    "bytes that are no UTF-8": os.fsdecode(b"run-\xff\xfe"),
    "a line break": "run\nof mine",
    "a pattern": "run[0-9]*?",
    "a dot at its end": "run.",
    "blanks": " run ",
    "an option": "--run",
    "the longest name": "r" * 255,
    "the longest name of others": "ü" * 127,
}


@pytest.mark.parametrize("name", _NAMES.values(), ids=_NAMES)
def test_a_run_and_samples_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    run, samples = tmp_path / name, tmp_path / name / name
    settings = {"checkpoint_every": 2, "sample_every": 2, "samples": 2, "out": run}
    (trained(steps=2, held_out=images(4), **settings)).save()
    resumed = trained(steps=4, held_out=images(4), **settings, resume=True)
    assert len(resumed.log.distances) == 2
    for model in ("model", "best"):
        assert torch.isfinite(nf.load_checkpoint(run / f"{model}.safetensors").sigmas).all()
    result = invoke("sample", run / "model.safetensors", "-n", 2, f"--out={samples}")
    assert result.exit_code == 0, (result.output, result.exception)
    assert (samples / "samples.npz").exists()
    result = invoke("convert", "--", run / "model.safetensors", run / "model.pth")
    assert result.exit_code == 0, (result.output, result.exception)
    official = nf.load_checkpoint(run / "model.pth", config=run / "model.yml")
    assert len(official.sigmas) == 8
    (run / ".checkpoint-0123abcd.safetensors").write_bytes(b"half")
    trained(steps=5, held_out=images(4), **settings, resume=True)
    assert not list(files.leftovers(run))


def test_a_run_of_the_command_in_a_folder_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    run = tmp_path / _NAMES["bytes that are no UTF-8"]
    train_small(run)
    assert "Finished" in (run / "training.html").read_text(encoding="utf-8")


def test_a_checkpoint_of_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("c" * 243 + ".safetensors")
    assert nf.load_checkpoint(nf.save_checkpoint(network(), path)).sigmas.shape == (8,)
    assert len(list(tmp_path.iterdir())) == 2


def test_only_temporary_files_of_ours_are_removed(tmp_path: Path) -> None:
    mine = [".notes-20240101.txt", ".backup-deadbeef.tar", ".x-0123abcd", ".git-00000000.d.json"]
    for name in mine[:3]:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder-0123abcd.json").mkdir()
    trained(out=tmp_path)
    assert all((tmp_path / name).exists() for name in (*mine[:3], ".folder-0123abcd.json"))


def test_moved_images_are_trained_on_where_they_are(tmp_path: Path) -> None:
    for name in ("old", "other"):
        (tmp_path / name).mkdir()
    for i, image in enumerate((255 * images(8)[:, 0]).byte()):
        Image.fromarray(image.numpy()).save(tmp_path / "old" / f"{i}.png")
        Image.fromarray(255 - image.numpy()).save(tmp_path / "other" / f"{i}.png")
    run = tmp_path / "run"
    result = invoke("train", "--out", run, "--steps", 2, *TINY, "--data", tmp_path / "old")
    assert result.exit_code == 0, result.output
    (tmp_path / "old").rename(tmp_path / "new")
    result = invoke("train", "--out", run, "--resume", "--steps", 3)
    assert "where they were moved, say their new place with --data" in result.output
    result = invoke("train", "--out", run, "--resume", "--steps", 3, "--data", tmp_path / "other")
    assert "belongs to another run (data: " in result.output
    result = invoke("train", "--out", run, "--resume", "--steps", 3, "--data", tmp_path / "new")
    assert result.exit_code == 0, result.output
    result = invoke("train", "--out", run, "--resume", "--steps", 4)  # it is remembered
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "command", [("schedule", "--max-points", 9), ("profile", "sample", "--steps", 1, "--batch", 1)]
)
def test_what_a_killed_command_has_left_goes_with_the_next(
    tmp_path: Path, command: tuple[Any, ...]
) -> None:
    for name in (".sample_profile-0123abcd.md", ".sample_trace.json-0123abcd.gz"):
        (tmp_path / name).write_text("a part")
    assert invoke(*command, "--out", tmp_path).exit_code == 0
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_demo_has_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".model-0123abcd.safetensors").write_text("a part")
    monkeypatch.setattr(demo, "_run", lambda *arguments: None)
    demo.run(tmp_path, say=print)
    assert list(tmp_path.iterdir()) == []
