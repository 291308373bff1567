"""One run by two and three processes is the run of one, to rounding; its noise bit for bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.together import Outcome, outcomes, together
from helpers.training import SAMPLING, SIGMAS, config, images, lines, network, weights

import ncsn_fast as nf
from ncsn_fast import ops
from ncsn_fast.distributed.ranks import from_environment
from ncsn_fast.support.locks import folder_lock
from ncsn_fast.training import state as training_state

STEPS, RATE = 50, 1e-4  # the rate of NCSNv2
ROUNDING = 0.01 * RATE  # a step: of what Adam can move a weight by


def points(seed: int = 0) -> Any:
    """A small network of points, for what does not depend on the network."""
    torch.manual_seed(seed)
    net = nf.MLPScore(dim=4, hidden=16, layers=2, sigmas=SIGMAS)
    net.sampling = dict(SAMPLING)
    return net


def trainer_of(net: Any, resume: bool = False, data: Any = None, **settings: Any) -> nf.Trainer:
    if data is None:
        data = images() if len(net.shape) == 3 else images()[:, 0, 3, 2:6].contiguous()
    classes = torch.arange(40) % 3 if getattr(net, "classes", ()) else None
    return nf.Trainer(net, data, config(**settings), classes=classes, resume=resume)


def told(trainer: nf.Trainer) -> dict[str, Any]:
    """What a run has come to, in values that can be sent."""
    return {
        "step": trainer.step,
        "losses": [loss for _, loss in trainer.history],
        "weights": weights(trainer.net).tolist(),
        "average": weights(trainer.average).tolist(),
        "scale": trainer.scaler.state_dict(),
    }


def run(*, classes: int = 0, resume: bool = False, **settings: Any) -> dict[str, Any]:
    """A run of images: by this process or, called in each of them, by several."""
    os.environ["NCSN_FAST_CONV"] = "direct"  # parts of other sizes in the same form
    net = network(classes=classes) if classes else network()
    trainer = trainer_of(net, resume, **settings)
    trainer.fit()
    return told(trainer)


def run_points(resume: bool = False, **settings: Any) -> dict[str, Any]:
    trainer = trainer_of(points(), resume, **settings)
    trainer.fit()
    return told(trainer)


def one(work: Callable[..., Any], **settings: Any) -> dict[str, Any]:
    """The run of one process, which may not be this one."""
    (found,) = together(1, partial(work, **settings))
    return found


def assert_close(several: dict[str, Any], single: dict[str, Any]) -> None:
    assert several["step"] == single["step"]
    assert several["losses"] == pytest.approx(single["losses"], rel=1e-5)
    for name in ("weights", "average"):
        assert several[name] == pytest.approx(single[name], abs=ROUNDING * single["step"])


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": STEPS},
        {
            "steps": 6,
            "batch_size": 10,
            "accumulate": 5,
            "clip_gradient": 1.0,
            "flip": True,
            "dequantize": "uniform",
            "ema_warmup": True,
        },
        {"steps": 6, "batch_size": 7, "classes": 3, "class_dropout": 0.3, "ema": 0.0},
        {"steps": 6, "batch_size": 3, "continuous": True, "warmup": 3, "cooldown": 2},
    ],
    ids=str,
)
def test_a_run_of_several_processes_is_that_of_one(settings: dict[str, Any]) -> None:
    settings = {"learning_rate": RATE, **settings}
    single = one(run, **settings)
    for size in (2, 3):
        first, *others = together(size, partial(run, **settings))
        assert_close(first, single)
        assert others == [first] * (size - 1)  # to the last bit


def gradient(**settings: Any) -> list[float]:
    """Of a batch, as Adam's first step keeps it: its moments are a tenth of it, and not scaled."""
    trainer = trainer_of(points(), steps=1, learning_rate=RATE, **settings)
    trainer.fit()
    return torch.cat([m["exp_avg"].flatten() for m in trainer._compute.moments().values()]).tolist()


@pytest.mark.parametrize("settings", [{"batch_size": 7}, {"batch_size": 10, "accumulate": 5}])
def test_the_gradient_is_that_of_the_whole_batch(settings: dict[str, Any]) -> None:
    """Weights do not tell: Adam takes steps of one size whatever the size of the gradient."""
    (single,) = together(1, partial(gradient, **settings))
    for size in (2, 3):
        for found in together(size, partial(gradient, **settings)):
            assert found == pytest.approx(single, rel=1e-4, abs=1e-6 * max(map(abs, single)))


def otherwise() -> None:
    rate = RATE * (1 + from_environment().rank)
    trainer_of(points(), steps=1, learning_rate=rate)


def test_processes_of_other_settings_are_refused() -> None:
    for one in outcomes(2, otherwise):
        assert "was given other settings than others: give all the same TrainConfig" in str(
            one.error
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_halves_of_a_batch_on_two_processes_are_its_halves_on_one(precision: str) -> None:
    """A sum of two does not depend on their order: to the last bit."""
    settings = {"precision": precision, "clip_gradient": 1.0, "steps": 5}
    single = one(run, **settings, accumulate=2)
    first, _ = together(2, partial(run, **settings))
    assert first["weights"] == single["weights"]
    assert first["scale"] == single["scale"]
    assert first["losses"] == pytest.approx(single["losses"], rel=1e-6)
    assert together(2, partial(run, **settings)) == [first] * 2


def seen_by_the_network() -> list[dict[str, Any]]:
    """What a step perturbs, into what, and of which classes."""
    perturb, seen = ops.perturb, []

    def watched(x: torch.Tensor, sigma: torch.Tensor, **key: Any) -> torch.Tensor:
        found = perturb(x, sigma, **key)
        seen.append({"x": x.tolist(), "perturbed": found.tolist(), "sigma": sigma.tolist()})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "perturb", watched)
        settings = {"flip": True, "dequantize": "uniform", "class_dropout": 0.5, "steps": 3}
        trainer = trainer_of(network(classes=3), **settings)
        trainer.fit()
    for step, found in enumerate(seen):
        classes = trainer.batches.classes_at(step)
        assert classes is not None
        found["classes"] = classes.tolist()
    return seen


@pytest.mark.parametrize("size", [2, 3])
def test_images_noise_levels_and_classes_are_those_of_one_process(size: int) -> None:
    (single,) = together(1, seen_by_the_network)
    several = together(size, seen_by_the_network)
    assert len(single) == 3
    for step, whole in enumerate(single):
        for name, values in whole.items():
            assert [one for found in several for one in found[step][name]] == values


def captured(settings: dict[str, Any]) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    """How often each of the captured pieces was replayed; the run, and the one without graphs."""
    from helpers.recorded_capture import read_no_values_back, record

    with pytest.MonkeyPatch.context() as patch:
        recorder = record(patch)
        read_no_values_back(patch)
        run_, eager = (run(**settings, graph=graph) for graph in ("auto", False))
        assert all(graph.released for graph in recorder.captured)
        return [graph.replays for graph in recorder.captured], run_, eager


def test_a_captured_run_is_two_graphs_around_the_sum() -> None:
    settings = {"precision": "fp16", "clip_gradient": 1.0, "accumulate": 4, "classes": 3}
    for replays, run_, eager in together(2, partial(captured, {"steps": 5, **settings})):
        assert replays == [2, 2]
        assert run_ == eager


def test_the_folder_holds_what_that_of_one_process_does(tmp_path: Path) -> None:
    settings = {"steps": 6, "log_every": 3, "checkpoint_every": 3, "learning_rate": RATE}
    settings |= {"keep_every": 6, "sample_every": 3, "samples": 2}
    one(run, out=tmp_path / "one", **settings)
    together(2, partial(run, out=tmp_path / "two", **settings))
    names = [
        sorted(str(path.relative_to(tmp_path / each)) for path in (tmp_path / each).rglob("*"))
        for each in ("one", "two")
    ]
    assert names[0] == names[1]
    single, several = (
        [json.loads(line) for line in lines(tmp_path / each / "log.jsonl")]
        for each in ("one", "two")
    )
    assert [entry["step"] for entry in several] == [entry["step"] for entry in single]
    assert [e["loss"] for e in several] == pytest.approx([e["loss"] for e in single], rel=1e-5)
    single, several = (
        json.loads((tmp_path / each / "levels.json").read_text()) for each in ("one", "two")
    )
    for a, b in zip(single["loss"], several["loss"], strict=True):
        assert a == b is None or a == pytest.approx(b, rel=1e-5)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    settings = {"checkpoint_every": 3, "learning_rate": RATE, "out": tmp_path}
    for steps, size in ((4, 2), (6, 3), (8, 1)):
        resume = (tmp_path / "checkpoint.safetensors").exists()
        found = together(size, partial(run, **settings, steps=steps, resume=resume))
        assert found == [found[0]] * size
    assert len(lines(tmp_path / "log.jsonl")) == 8
    assert_close(found[0], one(run, learning_rate=RATE, steps=8))


def test_a_run_that_goes_on_with_as_many_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    settings = {"precision": "fp16", "ema_warmup": True}
    together(2, partial(run_points, **settings, steps=5, out=tmp_path))
    resumed = together(2, partial(run_points, **settings, steps=9, out=tmp_path, resume=True))
    assert resumed == together(2, partial(run_points, **settings, steps=9))


def meddled(
    out: Path, rank: int, step: int, what: str, **settings: Any
) -> tuple[str, str, int, list[str]]:
    """A run in which a process meets with something before a step; how it ended, and where."""
    trainer = trainer_of(points(), out=out, steps=12, checkpoint_every=4, **settings)
    at, warnings = trainer.batches.at, []

    def meddling(number: int) -> Any:
        if number == step and trainer.group.ranks.rank == rank:
            MEDDLING[what](trainer)
        return at(number)

    trainer.batches.at = meddling  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        log = "ncsn_fast.training.trainer._log.warning"
        patch.setattr(log, lambda text, *values: warnings.append(text % values))
        try:
            trainer.fit()
        except BaseException as error:
            return type(error).__name__, str(error), trainer.step, warnings
    return "", "", trainer.step, warnings


def _fail(trainer: nf.Trainer) -> None:
    raise OSError("the file of sample 17 is cut")


def _drift(trainer: nf.Trainer) -> None:
    with torch.no_grad():
        next(trainer.net.parameters()).flatten()[0].nextafter_(torch.tensor(9.0))


def _full(trainer: nf.Trainer, on: int = 1) -> None:
    write, calls = training_state.write_tensors, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) <= on:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    training_state.write_tensors = full  # type: ignore[assignment]


MEDDLING: dict[str, Callable[[nf.Trainer], None]] = {
    "is stopped": lambda trainer: os.kill(os.getpid(), signal.SIGTERM),
    "fails": _fail,
    "drifts": _drift,
    "finds a full disk": _full,
    "finds a disk that stays full": partial(_full, on=99),
    "finds its folder gone": lambda trainer: shutil.rmtree(str(trainer.config.out)),
}


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_signal_to_any_process_stops_all_at_the_same_step(tmp_path: Path, rank: int) -> None:
    found = together(3, meddled, tmp_path, rank, 5, "is stopped")
    assert [(name, step) for name, _, step, _ in found] == [("TrainingInterrupted", 6)] * 3
    assert found[0][1].startswith(f"SIGTERM at step 6; saved in {tmp_path}")
    assert training_state.read(tmp_path).step == 6


def test_time_that_is_over_stops_all_at_the_same_step(tmp_path: Path) -> None:
    found = together(2, partial(run_points, out=tmp_path, max_seconds=1e-9, steps=9))
    assert [each["step"] for each in found] == [1, 1]
    assert training_state.read(tmp_path).step == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_all_and_the_last_save_stays(tmp_path: Path, rank: int) -> None:
    found: list[Outcome] = outcomes(2, partial(failing, tmp_path, rank))
    assert found[rank].error == "OSError: the file of sample 17 is cut"
    assert "OtherProcessError: another process of the run has ended" in str(found[1 - rank].error)
    assert training_state.read(tmp_path).step == 4
    assert [each["step"] for each in together(2, partial(again, tmp_path))] == [12, 12]


def failing(out: Path, rank: int) -> None:
    """As in a process that a command ends."""
    name, message, _, _ = meddled(out, rank, 6, "fails")
    raise OSError(message) if name == "OSError" else RuntimeError(f"{name}: {message}")


def again(out: Path) -> dict[str, Any]:
    return run_points(resume=True, out=out, steps=12, checkpoint_every=4)


def test_processes_that_drift_apart_are_found_before_they_are_saved(tmp_path: Path) -> None:
    for name, message, step, _ in together(2, meddled, tmp_path, 1, 5, "drifts"):
        assert (name, step) == ("TrainingError", 8)
        assert message.startswith("the processes have other weights at step 8, though they did")
    assert training_state.read(tmp_path).step == 4


def test_a_disk_that_fills_up_stops_nothing_before_the_end(tmp_path: Path) -> None:
    first, second = together(2, meddled, tmp_path, 0, 2, "finds a full disk")
    assert (first[0], second[0]) == ("", "")
    assert [text for text in first[3] if "step 4 could not be saved" in text]
    assert training_state.read(tmp_path).step == 12


@pytest.mark.parametrize("what", ["finds a disk that stays full", "finds its folder gone"])
def test_what_cannot_be_saved_in_the_end_is_an_error_of_all(tmp_path: Path, what: str) -> None:
    out = tmp_path / "run"
    first, second = together(2, meddled, out, 0, 2, what)
    assert first[0] in ("OSError", "NoFolderError")
    assert (second[0], first[2], second[2]) == ("OtherProcessError", 12, 12)
    assert f"process 0 of 2 failed: {first[0]}: {first[1]}" == second[1]


def began(other: dict[str, Any]) -> str:
    """With which weights a process begins, the second with something else than the first; or why
    it does not."""
    settings = other if os.environ["RANK"] == "1" else {}
    try:
        trainer = trainer_of(points(settings.get("seed", 0)), data=settings.get("data"))
    except ValueError as error:
        return str(error)
    return str(weights(trainer.net).tolist())


def test_a_process_with_other_data_is_refused() -> None:
    _, second = together(2, began, {"data": torch.rand(40, 4)})
    assert second.startswith("process 0 belongs to another run (data: ")


def test_weights_are_those_of_the_first() -> None:
    first, second = together(2, began, {"seed": 7})
    assert first == second == str(weights(points()).tolist())


def test_fewer_samples_than_processes_are_refused() -> None:
    first, second, third = outcomes(3, partial(run_points, batch_size=2))
    assert first.error == (
        "ValueError: batch_size = 2 for 3 processes, which share a batch: start fewer, or give "
        "more samples"
    )
    assert f"process 0 of 3 failed: {first.error}" in str(second.error)
    assert second.error == third.error


def test_a_folder_in_use_is_refused_to_all(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        first, second = outcomes(2, partial(run_points, out=tmp_path))
    assert "ValueError: another process is writing to" in str(first.error)
    assert f"process 0 of 2 failed: {first.error}" in str(second.error)


def test_the_tolerance_is_far_below_what_training_does() -> None:
    moved = weights(points()) - torch.tensor(one(run_points, steps=STEPS)["weights"])
    assert float(moved.abs().max()) > 10 * ROUNDING * STEPS
