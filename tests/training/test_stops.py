"""Stopped by a signal or found damaged, a run goes on to the last bit, or says why not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import invoke
from helpers.kills import contents
from helpers.training import images, trained, trainer_of, weights

import ncsn_fast as nf
from ncsn_fast.runs.training.settings import read_run
from ncsn_fast.sampling.step import EagerStep
from ncsn_fast.training import samples as training_samples
from ncsn_fast.training.log import TrainingLog
from ncsn_fast.training.step import TrainingStep

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
OFTEN: dict[str, Any] = {
    "steps": 7,
    "checkpoint_every": 3,
    "sample_every": 2,
    "keep_every": 3,
    "samples": 3,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run leaves that nobody has stopped."""
    out = tmp_path_factory.mktemp("whole")
    trained(out=out, held_out=images(4), **OFTEN)
    return contents(out)


def _stop_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *numbers: signal.Signals
) -> None:
    """Send this process signals in the midst of the so-many-th call of a function."""
    inner, calls = getattr(owner, name), []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        result = inner(*arguments, **keywords)
        if len(calls) == call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (TrainingStep, "__call__", 1),
        (TrainingStep, "__call__", 3),
        (TrainingStep, "__call__", 5),
        (TrainingLog, "loss", 4),
        (EagerStep, "run", 2),  # the samples of step 2 are drawn
        (EagerStep, "run", 12),  # of step 4
        (EagerStep, "run", 24),  # of step 6
        (training_samples, "pixel_frechet_distance", 2),
    ],
)
def test_a_stopped_run_is_in_the_end_the_run_that_was_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, bytes],
    owner: Any,
    name: str,
    call: int,
    number: signal.Signals,
) -> None:
    trainer = trainer_of(out=tmp_path, held_out=images(4), **OFTEN)
    with monkeypatch.context() as patch:
        _stop_at(patch, owner, name, call, number)
        with pytest.raises(nf.TrainingInterrupted, match=f"{number.name} at step .; saved in") as e:
            trainer.fit()
    assert e.value.signal == number
    trained(out=tmp_path, held_out=images(4), **OFTEN, resume=True)
    assert contents(tmp_path) == whole


def test_samples_of_the_last_step_are_owed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**OFTEN, "steps": 6}
    trained(out=tmp_path / "whole", held_out=images(4), **settings)
    trainer = trainer_of(out=tmp_path / "run", held_out=images(4), **settings)
    with monkeypatch.context() as patch:
        _stop_at(patch, EagerStep, "run", 24, signal.SIGTERM)
        with pytest.raises(nf.TrainingInterrupted, match="SIGTERM at step 6; saved"):
            trainer.fit()
    trained(out=tmp_path / "run", held_out=images(4), **settings, resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_trainer_that_was_stopped_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    trainer = trainer_of(out=tmp_path, held_out=images(4), **OFTEN)
    with monkeypatch.context() as patch:
        _stop_at(patch, EagerStep, "run", 2, signal.SIGINT)
        with pytest.raises(nf.TrainingInterrupted):
            trainer.fit()
    trainer.fit()
    assert contents(tmp_path) == whole


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(out=tmp_path, steps=9, checkpoint_every=2)
    _stop_at(monkeypatch, TrainingStep, "__call__", 4, signal.SIGINT, signal.SIGTERM)
    with pytest.raises(nf.TrainingInterrupted, match="SIGTERM at step 3; saved at step 2 in") as e:
        trainer.fit()
    assert e.value.signal == signal.SIGTERM
    assert trainer_of(out=tmp_path, resume=True).step == 2


def test_what_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As below nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _stop_at(monkeypatch, TrainingStep, "__call__", 2, signal.SIGHUP)
        assert trained(steps=4).step == 4
        assert invoke("sample", "--help").exit_code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize(
    ("command", "owner", "name"),
    [
        (("train", "--ngf", 2, "--batch-size", 4, "--steps", 9), TrainingStep, "__call__"),
        (("sample", "-n", 1), EagerStep, "run"),
        (("demo", "--seconds", 1, "--samples", 4), TrainingStep, "__call__"),
        (("schedule",), "ncsn_fast.runs.schedule", "auto_schedule"),
    ],
)
def test_exit_codes_are_those_of_custom(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    command: tuple[Any, ...],
    owner: Any,
    name: str,
) -> None:
    if isinstance(owner, str):
        from importlib import import_module

        owner = import_module(owner)
    before = [signal.getsignal(each) for each in STOPS]
    _stop_at(monkeypatch, owner, name, 1, number)
    result = invoke(*command, "--out", tmp_path / "out")
    assert result.exit_code == 128 + number
    assert "stopped" in result.output
    assert [signal.getsignal(each) for each in STOPS] == before


def test_every_byte_of_a_run_s_settings_is_checked(tmp_path: Path) -> None:
    tiny = ("--ngf", 2, "--batch-size", 4, "--num-levels", 3, "--sigma-max", 2)
    assert invoke("train", "--out", tmp_path, "--steps", 2, *tiny).exit_code == 0
    path, right = tmp_path / "run.json", read_run(tmp_path)
    data = path.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= (0x01, 0x10, 0x80)[place % 3]
        path.write_bytes(damaged)
        try:
            read = read_run(tmp_path)
        except ValueError as error:
            told = str(error)
        else:
            told = "run.json" if read == right else "nothing"  # white space may change
        assert "run.json" in told, place
    # Those of older versions have no checksum.
    stored = json.loads(data)
    del stored["sha256"]
    path.write_text(json.dumps(stored))
    assert read_run(tmp_path) == right


def test_every_byte_of_a_log_is_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    trainer = trained(out=out, held_out=images(4), **{**OFTEN, "steps": 5})
    digest = trainer.log.digest(5)
    path = out / "log.jsonl"
    data = path.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x01
        path.write_bytes(damaged)
        caplog.clear()
        log = TrainingLog(out)
        log.read(5, digest)
        same = log.losses == trainer.log.losses and log.distances == trainer.log.distances
        assert same or "log.jsonl is not as it was when step 5 was saved" in caplog.text, place
    path.unlink()
    caplog.clear()
    TrainingLog(out).read(5, digest)
    assert "log.jsonl is not as it was" in caplog.text


def test_runs_of_older_versions_go_on(tmp_path: Path) -> None:
    """Their checkpoints do not know the log's checksum."""
    from ncsn_fast.checkpoints.tensor_file import read_tensors, write_tensors

    trained(out=tmp_path, steps=2)
    tensors, metadata = read_tensors(tmp_path / "checkpoint.safetensors")
    old = {k: v for k, v in metadata.items() if k not in ("sha256", "format", "log")}
    write_tensors(tmp_path / "checkpoint.safetensors", tensors, old)
    resumed = trained(out=tmp_path, steps=4, resume=True)
    assert torch.equal(weights(resumed.net), weights(trained(steps=4).net))
