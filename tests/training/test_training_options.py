"""What a training run can be told: precision, accumulation, samples on the way, what it keeps."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.losses.common import draw_labels
from ncsn_fast.training import state as training_state
from ncsn_fast.training.log import LossSums, by_level

SIGMAS = nf.geometric_sigmas(5, 0.01, 8)
SAMPLING = {"method": "annealed_langevin", "step_size": 2e-5, "steps_per_level": 1, "denoise": True}


def network(cls=nf.NCSNv2):
    torch.manual_seed(0)
    net = cls(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    net.sampling = dict(SAMPLING)
    return net


def images(n=40):
    return digits("train").images[:n]


def config(**keywords):
    return nf.TrainConfig(
        **{"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "log_every": 1, **keywords}
    )


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained(cls=nf.NCSNv2, data=None, held_out=None, **keywords):
    trainer = nf.Trainer(
        network(cls), images() if data is None else data, config(**keywords), held_out=held_out
    )
    trainer.fit()
    return trainer


def test_a_batch_in_four_parts_is_the_batch():
    whole = trained(batch_size=64, steps=5)
    parts = trained(batch_size=64, steps=5, accumulate=4)
    for (_, a), (_, b) in zip(whole.history, parts.history, strict=True):
        assert b == pytest.approx(a, rel=1e-6)
    assert torch.allclose(weights(parts.net), weights(whole.net), atol=1e-4)


def test_the_parts_of_a_batch_are_equal():
    with pytest.raises(ValueError, match="accumulate = 3 does not divide batch_size = 8"):
        config(accumulate=3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_train_like_thirty_two(precision):
    # Long enough for the scale of fp16, which begins too high and skips steps until it fits.
    settings = {"steps": 50, "log_every": 25}
    full, half = trained(**settings), trained(**settings, precision=precision)
    assert half.history[-1][1] == pytest.approx(full.history[-1][1], rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.net.parameters())
    assert not torch.equal(weights(half.net), weights(full.net))


def test_the_first_convolution_sees_the_smallest_noise_in_sixteen_bits():
    net = network()
    seen = []
    net.begin_conv.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    x = torch.rand(2, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net.normalized(x, None)
    ((given, result),) = seen
    assert torch.equal(given, 2 * x - 1)
    assert given.dtype == result.dtype == torch.float32


def test_the_scale_of_fp16_is_resumed(tmp_path):
    settings = {"precision": "fp16", "steps": 6, "checkpoint_every": 3}
    whole = trained(out=tmp_path / "whole", **settings)
    trained(out=tmp_path / "halves", **{**settings, "steps": 3})
    resumed = nf.Trainer(
        network(), images(), config(out=tmp_path / "halves", **settings), resume=True
    )
    resumed.fit()
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert torch.equal(weights(resumed.net), weights(whole.net))


@pytest.mark.parametrize(
    ("name", "message"),
    [("tf32", "'tf32' is a mode of NVIDIA GPUs"), ("half", "choose one of .*'bf16'")],
)
def test_a_precision_that_is_not_there_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        trained(precision=name)


def test_a_gradient_is_clipped_where_that_is_asked_for():
    free, clipped = (nf.Trainer(network(), images(), config(clip_gradient=c)) for c in (None, 1e-3))
    norms = []
    for trainer in (free, clipped):
        step, norm = trainer.optimizer.step, []
        parameters = list(trainer.net.parameters())

        def spy(*arguments, step=step, norm=norm, parameters=parameters, **keywords):
            gradients = [p.grad.norm() for p in parameters if p.grad is not None]
            norm.append(float(torch.stack(gradients).norm()))
            return step(*arguments, **keywords)

        trainer.optimizer.step = spy
        trainer._train_step()
        norms += norm
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_rises_over_the_warmup():
    trainer = nf.Trainer(network(), images(), config(warmup=4))
    rates = []
    for _ in range(6):
        trainer._train_step()
        rates.append(float(trainer.optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_levels_may_be_continuous():
    assert trained(continuous=True).history != trained().history
    with pytest.raises(ValueError, match="NCSN is told the noise level as a label"):
        trained(nf.NCSN, continuous=True)


def test_losses_are_counted_by_level():
    sums = LossSums(4, torch.device("cpu"))
    sums.add(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2]))
    sums.add(torch.tensor([3.0]), torch.tensor([0]))
    assert sums.mean(2) == pytest.approx((3 + 3) / 2)
    assert by_level(sums.take_levels()) == [2.0, None, 4.0, None]
    assert by_level(sums.take_levels()) == [None] * 4


def test_the_loss_of_each_level_is_in_the_folder(tmp_path):
    trained(out=tmp_path, steps=30, checkpoint_every=30)
    report = json.loads((tmp_path / "levels.json").read_text())
    assert report["step"] == 30
    assert report["sigma"] == pytest.approx(SIGMAS.tolist())
    assert len(report["loss"]) == 8
    # A network that has learned nothing pays ½·64 where noise is small; less where it is large.
    assert all(loss is None or 1 < loss < 60 for loss in report["loss"])


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
    from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance

    again = pixel_frechet_distance(images, held_out)
    assert again == pytest.approx(trainer.log.distances[-1][1], rel=1e-3)


def test_the_best_model_is_kept(tmp_path, monkeypatch):
    distances = iter([3.0, 1.0, 2.0])
    from ncsn_fast.training import samples as training_samples

    monkeypatch.setattr(training_samples, "pixel_frechet_distance", lambda *_: next(distances))
    kept = {}
    settings = config(out=tmp_path, sample_every=2, samples=4, checkpoint_every=2, keep_every=2)
    trainer = nf.Trainer(network(), images(), settings, held_out=images(4))
    trainer.fit()
    for name in ("best", "model_0000004", "model_0000006", "model"):
        kept[name] = weights(nf.load_checkpoint(tmp_path / f"{name}.safetensors"))
    assert torch.equal(kept["best"], kept["model_0000004"])
    assert torch.equal(kept["model"], kept["model_0000006"])
    assert not torch.equal(kept["best"], kept["model"])


def test_the_best_distance_is_remembered_on_resume(tmp_path):
    settings = {"out": tmp_path, "sample_every": 2, "samples": 4, "checkpoint_every": 2}
    first = trained(steps=4, held_out=images(4), **settings)
    resumed = nf.Trainer(network(), images(), config(**settings), held_out=images(4), resume=True)
    assert resumed.log.distances == first.log.distances
    assert resumed.log.best == first.log.best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "draws samples for nobody"),
        ({"samples": 2.5}, "samples"),
        ({"learning_rate": "fast"}, "has to be a number"),
        ({"held_out": torch.full((4, 1, 8, 8), 2.0)}, "in .0, 1."),
        ({"held_out": torch.zeros(4, 1, 9, 9)}, "held_out is .*9, 9"),
        ({"held_out": torch.zeros(1, 1, 8, 8)}, "at least 2"),
        ({"keep_every": 7, "checkpoint_every": 2}, "no multiple of checkpoint_every"),
        ({"samples": 1}, "at least 2"),
        ({"clip_gradient": -1.0}, "positive and finite"),
        ({"warmup": -1}, "warmup"),
        ({"tensorboard": True}, "needs a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        trained(**{"sample_every": 2, **change})


def test_samples_need_to_know_how(tmp_path):
    net = network()
    net.sampling = None
    with pytest.raises(ValueError, match="sample_every needs to know how to sample"):
        nf.Trainer(net, images(), config(sample_every=2))


def test_tensorboard_is_refused_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        trained(out=tmp_path, tensorboard=True)


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
    trainer = nf.Trainer(network(), images(), config(out=tmp_path), resume=True)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    assert trainer.step == 6
    assert nf.Trainer(network(), images(), config(out=tmp_path), resume=True).step == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises((OSError, ValueError), match=r"writable|cannot make the folder"):
        trained(out=tmp_path / "run")


def test_a_file_in_the_place_of_the_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=r"cannot make the folder .*choose another"):
        trained(out=tmp_path / "run")


# Forked from a process that has imported everything and computed nothing: a start takes little
# time, and autograd does not survive a fork.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
sys.path.insert(0, {training!r})
import conftest  # one thread, as in the run to compare with: sums depend on the number
from test_training_options import config, images, network, nf
out, chance = Path({out!r}), random.Random(0)
def resume_from(out):
    return (out / "checkpoint.safetensors").exists()
def saved(out):
    return os.stat(out / "checkpoint.safetensors").st_mtime_ns if resume_from(out) else 0
for _ in range({kills}):
    child = os.fork()
    if child == 0:
        settings = config(out=out, steps=10_000, checkpoint_every=2)
        nf.Trainer(network(), images(), settings, resume=resume_from(out)).fit()
        os._exit(1)
    before = saved(out)
    while saved(out) == before:
        time.sleep(0.01)  # until it has got on, however busy the machine is
    time.sleep(chance.uniform(0, 0.4))
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_run_that_was_not(tmp_path):
    """kill -9 at random moments, while computing, logging or writing; every resume is exact."""
    script = KILLER.format(
        tests=str(Path(__file__).parents[1]),
        training=str(Path(__file__).parent),
        out=str(tmp_path),
        kills=20,
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
    settings = config(out=tmp_path, steps=1, checkpoint_every=2)
    resumed = nf.Trainer(network(), images(), settings, resume=True)
    assert resumed.step > 20
    whole = nf.Trainer(network(), images(), replace(settings, out=None, steps=resumed.step))
    whole.fit()
    assert resumed.history == whole.history
    assert torch.equal(weights(resumed.net), weights(whole.net))
    assert torch.equal(weights(resumed.average), weights(whole.average))


def test_a_log_on_a_full_disk_is_written_when_there_is_room_again(tmp_path, caplog):
    trainer = nf.Trainer(network(), images(), config(out=tmp_path, steps=8))
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


def test_samples_that_fail_do_not_end_the_run(tmp_path, monkeypatch, caplog):
    from ncsn_fast.training import samples as training_samples

    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training_samples, "pixel_frechet_distance", too_large)
    trainer = trained(out=tmp_path, sample_every=2, samples=4, held_out=images(4))
    assert trainer.step == 6
    assert "no samples at step 2 (CUDA out of memory): training goes on" in caplog.text


def test_a_signal_while_samples_are_drawn_ends_the_run_at_once(tmp_path, monkeypatch):
    from ncsn_fast.training import samples as training_samples

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
    trainer = nf.Trainer(network(), images(), config(out=tmp_path, sample_every=2, samples=4))
    with pytest.raises(nf.TrainingInterrupted, match="SIGTERM at step 2; saved"):
        trainer.fit()
    assert len(rows) == 3
    assert nf.Trainer(network(), images(), config(out=tmp_path), resume=True).step == 2


def test_numbers_of_numpy_are_numbers(tmp_path):
    settings = {"batch_size": np.int64(8), "seed": np.int64(1), "ema": np.float32(0.5)}
    assert trained(out=tmp_path, **settings).config == config(out=tmp_path, seed=1, ema=0.5)


def test_what_cannot_be_saved_is_refused_before_any_work(tmp_path):
    net = network()
    net.sampling["step_size"] = object()
    with pytest.raises(TypeError, match="not JSON serializable"):
        nf.Trainer(net, images(), config(out=tmp_path))


def test_fp16_that_only_overflows_is_an_error(tmp_path):
    net = network()
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(nf.TrainingError, match="fp16 overflows: its scale is down to 0"):
        nf.Trainer(net, images(), config(precision="fp16", steps=100)).fit()


def test_narrow_weights_are_refused():
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16 .*call net.float\(\)"):
        nf.Trainer(network().bfloat16(), images(), config())


def test_a_resumed_report_by_level_counts_nothing_twice(tmp_path):
    settings = {"checkpoint_every": 3, "batch_size": 32}
    trained(out=tmp_path / "whole", **settings)
    trained(out=tmp_path / "halves", **{**settings, "steps": 3})
    nf.Trainer(network(), images(), config(out=tmp_path / "halves", **settings), resume=True).fit()
    reports = [(tmp_path / name / "levels.json").read_text() for name in ("whole", "halves")]
    assert reports[0] == reports[1]


def test_a_step_that_fails_loses_nothing(tmp_path):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return images()[i]

    trainer = nf.Trainer(network(), Broken(), config(out=tmp_path))
    at = trainer.batches.at

    def failing(step):
        if step == 4:
            raise OSError("the file of sample 17 is cut")
        return at(step)

    trainer.batches.at = failing
    with pytest.raises(OSError, match="sample 17"):
        trainer.fit()
    assert nf.Trainer(network(), Broken(), config(out=tmp_path), resume=True).step == 4


def test_levels_that_differ_in_the_last_bit_are_those_of_the_checkpoint(tmp_path):
    """Chosen from the data, they depend on the machine."""
    first = trained(out=tmp_path, steps=2)
    other = network()
    other.sigmas.copy_(torch.nextafter(other.sigmas, torch.tensor(9.0)))
    resumed = nf.Trainer(other, images(), config(out=tmp_path), resume=True)
    assert torch.equal(resumed.net.sigmas, first.net.sigmas)
    assert torch.equal(resumed.average.sigmas, first.net.sigmas)


def test_a_trainer_that_only_looks_changes_nothing(tmp_path):
    trained(out=tmp_path, steps=4, checkpoint_every=2)
    before = (tmp_path / "log.jsonl").read_text() + '{"step": 99, "loss": 1.0}\n'
    (tmp_path / "log.jsonl").write_text(before)
    looking = nf.Trainer(network(), images(), config(out=tmp_path), resume=True)
    assert [step for step, _ in looking.history] == [1, 2, 3, 4]
    assert (tmp_path / "log.jsonl").read_text() == before


def test_labels_of_the_statistics_are_those_of_the_loss():
    ids = torch.arange(64)
    labels = draw_labels(8, seed=3, step=5, sample_ids=ids)
    net, x = network(), images(40).repeat(2, 1, 1, 1)[:64]
    key = {"seed": 3, "step": 5, "sample_ids": ids, "reduction": "none"}
    drawn = nf.dsm_loss(net, x, SIGMAS, **key)
    assert torch.equal(drawn, nf.dsm_loss(net, x, SIGMAS, labels, **key))
