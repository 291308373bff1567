"""What a run leaves on the way: samples, the best model, and what a disk without room costs."""

import errno
import json
import os
import shutil
import signal

import pytest
import torch
from helpers.command import invoke
from helpers.training import images, network, train_small, trained, trainer_of, weights

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance
from ncsn_fast.training import samples as training_samples
from ncsn_fast.training import state as training_state


def test_samples_are_drawn_and_judged_on_the_way(tmp_path):
    held_out = digits("test").images[:50]
    trainer = trained(out=tmp_path, sample_every=3, samples=20, held_out=held_out)
    assert [step for step, _ in trainer.log.distances] == [3, 6]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "step_0000003.png",
        "step_0000006.png",
    ]
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = {e["step"]: e["pixel_frechet_distance"] for e in entries if "loss" not in e}
    assert logged == dict(trainer.log.distances)
    images = nf.sample(nf.load_checkpoint(tmp_path / "model.safetensors"), 20, seed=0)
    again = pixel_frechet_distance(images, held_out)
    assert again == pytest.approx(trainer.log.distances[-1][1], rel=1e-3)


def test_the_best_model_is_kept(tmp_path, monkeypatch):
    distances = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(training_samples, "pixel_frechet_distance", lambda *_: next(distances))
    kept = {}
    settings = {"sample_every": 2, "samples": 4, "checkpoint_every": 2, "keep_every": 2}
    trained(out=tmp_path, held_out=images(4), **settings)
    for name in ("best", "model_0000004", "model_0000006", "model"):
        kept[name] = weights(nf.load_checkpoint(tmp_path / f"{name}.safetensors"))
    assert torch.equal(kept["best"], kept["model_0000004"])
    assert torch.equal(kept["model"], kept["model_0000006"])
    assert not torch.equal(kept["best"], kept["model"])


@pytest.mark.parametrize(("ema", "words"), [(0.9, "averaged (EMA) weights"), (0, "as trained")])
def test_the_models_of_a_run_say_whether_they_are_averaged(tmp_path, ema, words):
    settings = {"sample_every": 2, "samples": 4, "checkpoint_every": 2, "keep_every": 2}
    trained(out=tmp_path, held_out=images(4), ema=ema, **settings)
    for name in ("best", "model_0000002", "model", "checkpoint"):
        source = nf.load_checkpoint(tmp_path / f"{name}.safetensors").source
        assert source.endswith(words), source


def test_the_best_distance_is_remembered_on_resume(tmp_path):
    settings = {"out": tmp_path, "sample_every": 2, "samples": 4, "checkpoint_every": 2}
    first = trained(steps=4, held_out=images(4), **settings)
    resumed = trainer_of(**settings, held_out=images(4), resume=True)
    assert resumed.log.distances == first.log.distances
    assert resumed.log.best == first.log.best


def test_samples_need_to_know_how(tmp_path):
    net = network()
    net.sampling = None
    with pytest.raises(ValueError, match="sample_every needs to know how to sample"):
        trainer_of(net, sample_every=2)


def test_samples_that_fail_do_not_end_the_run(tmp_path, monkeypatch, caplog):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training_samples, "pixel_frechet_distance", too_large)
    trainer = trained(out=tmp_path, sample_every=2, samples=4, held_out=images(4))
    assert trainer.step == 6
    assert "no samples at step 2 (CUDA out of memory): training goes on" in caplog.text


def test_a_signal_while_samples_are_drawn_ends_the_run_at_once(tmp_path, monkeypatch):
    sampler = training_samples.Sampler
    rows = []

    def slow(net):
        inner = sampler(net)

        def call(*arguments, progress, **keywords):
            def watch(done, total):
                rows.append(done)
                if len(rows) == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                progress(done, total)

            return inner(*arguments, progress=watch, **keywords)

        return call

    monkeypatch.setattr(training_samples, "Sampler", slow)
    trainer = trainer_of(out=tmp_path, sample_every=2, samples=4)
    with pytest.raises(nf.TrainingInterrupted, match="SIGTERM at step 2; saved"):
        trainer.fit()
    assert len(rows) == 3
    assert trainer_of(out=tmp_path, resume=True).step == 2


def test_a_disk_without_room_is_refused_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="MB of disk left") as error:
        trained(out=tmp_path / "run")
    assert error.value.errno == errno.ENOSPC


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_stops_nothing_before_the_end(tmp_path, monkeypatch, caplog):
    write, calls = training_state.write_tensors, []

    def sometimes(*arguments):
        calls.append(arguments)
        full_disk() if len(calls) == 2 else write(*arguments)

    monkeypatch.setattr(training_state, "write_tensors", sometimes)
    trainer = trained(out=tmp_path, checkpoint_every=2)
    assert trainer.step == 6
    assert "step 4 could not be saved ([Errno 28] No space left on device)" in caplog.text
    assert "tries again in 2 steps" in caplog.text
    assert torch.equal(
        weights(nf.load_checkpoint(tmp_path / "model.safetensors")), weights(trainer.average)
    )


def test_a_disk_that_stays_full_is_an_error_that_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    trained(out=tmp_path, steps=2)
    monkeypatch.setattr(training_state, "write_tensors", full_disk)
    trainer = trainer_of(out=tmp_path, resume=True)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    assert trainer.step == 6
    assert trainer_of(out=tmp_path, resume=True).step == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises((OSError, ValueError), match=r"writable|cannot make the folder"):
        trained(out=tmp_path / "run")


def test_a_file_in_the_place_of_the_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(
        ValueError, match=r"cannot make the folder .*run: it is a file; choose another"
    ):
        trained(out=tmp_path / "run")


def test_a_log_on_a_full_disk_is_written_when_there_is_room_again(tmp_path, caplog):
    trainer = trainer_of(out=tmp_path, steps=8)
    entry = trainer.log.loss

    def fill_the_disk(step, *rest):
        if step == 3:
            (tmp_path / "log.jsonl").unlink()
            (tmp_path / "log.jsonl").symlink_to("/dev/full")
        entry(step, *rest)

    trainer.log.loss = fill_the_disk
    trainer.fit()
    assert "the log of step 3 could not be written" in caplog.text
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_cannot_be_saved_is_refused_before_any_work(tmp_path):
    net = network()
    net.sampling["step_size"] = object()
    with pytest.raises(TypeError, match="not JSON serializable"):
        trainer_of(net, out=tmp_path)


def test_a_run_without_its_checkpoint_replaces_no_model(tmp_path):
    train_small(tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    result = invoke("train", "--resume", "--out", tmp_path)
    assert result.exit_code == 1
    assert "holds model.safetensors, but no checkpoint.safetensors to go on from" in result.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_samples_of_a_network_that_knows_classes_are_of_each_in_turn(tmp_path):
    net = network(classes=3)
    for module in net.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight[:3].detach(), 0, 0.5)
    held_out = images(20)
    drawn = training_samples.TrainingSamples(1, 7, 5, held_out)
    extra = {"classes": torch.tensor([0, 1, 2, 0, 1, 2, 0])}
    expected = pixel_frechet_distance(nf.sample(net, 7, seed=5, extra=extra), held_out)
    assert drawn.draw(net, 1, tmp_path, lambda done, total: True) == pytest.approx(
        expected, rel=1e-4
    )
    other = pixel_frechet_distance(nf.sample(net, 7, seed=5), held_out)
    assert other != pytest.approx(expected, rel=1e-2)
