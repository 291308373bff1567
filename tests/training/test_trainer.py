"""The trainer: it learns, logs, stops, resumes exactly, and refuses what it cannot do."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.data.digits import digits

SIGMAS = nf.geometric_sigmas(5, 0.01, 8)


def network(**keywords):
    torch.manual_seed(0)
    return nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS, **keywords)


def images(n=40):
    return digits("train").images[:n]


def config(**keywords):
    return nf.TrainConfig(
        **{"steps": 12, "batch_size": 8, "learning_rate": 1e-3, "log_every": 3, **keywords}
    )


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_training_learns_the_score_of_points_in_the_plane():
    """On N(m, ½² I) the trained MLP is close to the score -(x - m)/(¼ + σ²) where data lie."""
    mean = torch.tensor([1.0, -0.5])
    points = mean + 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = nf.MLPScore(dim=2, hidden=64, layers=2, sigmas=nf.geometric_sigmas(3, 0.1, 5))
    trainer = nf.Trainer(
        net, points, config(steps=800, batch_size=256, learning_rate=3e-3, ema=0.98)
    )
    trained = trainer.fit()
    for level, sigma in enumerate(net.sigmas):
        x = mean + (0.25 + sigma**2).sqrt() * torch.randn(1000, 2)
        exact = -(x - mean) / (0.25 + sigma**2)
        with torch.no_grad():
            error = trained(x, torch.full((1000,), level)) - exact
        assert float(error.norm() / exact.norm()) < 0.3
    assert trainer.history[-1][1] < trainer.history[0][1]


def test_the_loss_of_digits_falls():
    trainer = nf.Trainer(network(), images(200), config(steps=60, batch_size=32, log_every=10))
    trainer.fit()
    assert trainer.history[-1][1] < 0.8 * trainer.history[0][1]
    assert [step for step, _ in trainer.history] == [10, 20, 30, 40, 50, 60]


def test_a_run_is_a_function_of_its_seed():
    runs = [nf.Trainer(network(), images(), config(seed=seed)) for seed in (1, 1, 2)]
    nets = [weights(run.fit()) for run in runs]
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


def test_every_image_comes_once_an_epoch_and_in_another_order_the_next():
    trainer = nf.Trainer(network(), images(40), config())
    first = trainer.batches.shuffled(torch.arange(40))
    second = trainer.batches.shuffled(torch.arange(40, 80))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert first.tolist() != second.tolist()
    # A batch may lie across two epochs.
    across = trainer.batches.shuffled(torch.arange(36, 44))
    assert across.tolist() == [*first[36:].tolist(), *second[:4].tolist()]


def test_the_average_is_the_moving_average_of_the_weights():
    net = network()
    trainer = nf.Trainer(net, images(), config(steps=1, ema=0.9))
    expected = weights(net)
    for _ in range(4):
        trainer._train_step()
        expected = 0.9 * expected + 0.1 * weights(net)
    assert torch.allclose(weights(trainer.average), expected, atol=1e-7)
    assert not torch.allclose(weights(net), expected, atol=1e-5)


def test_without_a_rate_there_is_no_average():
    net = network()
    trainer = nf.Trainer(net, images(), config(ema=0.0))
    assert trainer.fit() is net


@pytest.mark.parametrize("stop_after", [5, 6])
def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path, stop_after):
    settings = config(out=tmp_path / "whole", checkpoint_every=4, flip=True, dequantize="uniform")
    whole = nf.Trainer(network(), images(), settings)
    whole.fit()

    halves = replace(settings, out=tmp_path / "halves")
    first = nf.Trainer(network(), images(), replace(halves, steps=stop_after))
    first.fit()
    second = nf.Trainer(network(), images(), halves, resume=True)
    assert second.step == stop_after
    second.fit()

    assert torch.equal(weights(second.net), weights(whole.net))
    assert torch.equal(weights(second.average), weights(whole.average))
    assert second.history == whole.history
    assert (tmp_path / "halves" / "log.jsonl").read_text().count("\n") == 4


SCRIPT = """
import sys, torch, ncsn_fast as nf
from ncsn_fast.data import digits
torch.manual_seed(0)
torch.set_num_threads(1)
net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 8))
config = nf.TrainConfig(
    steps=100000, batch_size=8, log_every=1, checkpoint_every=3, out=sys.argv[1]
)
nf.Trainer(net, digits("train").images[:40], config, resume="--resume" in sys.argv).fit()
"""


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def started(out, *arguments, until):
    """Run SCRIPT until its log has so many lines."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(lines(out / "log.jsonl")) < until and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process


def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path):
    process = started(tmp_path, until=10)
    process.kill()
    process.wait()
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    settings = config(steps=30, log_every=1, checkpoint_every=3, learning_rate=1e-4, out=tmp_path)
    resumed = nf.Trainer(net, images(), settings, resume=True)
    assert resumed.step >= 9
    assert resumed.step % 3 == 0
    assert len(resumed.history) == resumed.step  # log lines after the checkpoint are gone
    resumed.fit()
    whole = nf.Trainer(network(), images(), replace(settings, out=None))
    whole.fit()
    assert resumed.history == whole.history
    assert torch.equal(weights(resumed.net), weights(whole.net))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    process = started(tmp_path, until=5)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    last = len(lines(tmp_path / "log.jsonl"))
    assert f"TrainingInterrupted: {number.name} at step {last}; saved in {tmp_path}" in error
    assert nf.load_checkpoint(tmp_path / "model.safetensors").sigmas.shape == (8,)
    resumed = nf.Trainer(network(), images(), config(learning_rate=1e-4, out=tmp_path), resume=True)
    assert resumed.step == last


def test_signal_handlers_are_put_back_and_other_threads_may_train():
    before = signal.getsignal(signal.SIGINT)
    nf.Trainer(network(), images(), config(steps=1)).fit()
    assert signal.getsignal(signal.SIGINT) is before
    done = []

    def work():
        done.append(nf.Trainer(network(), images(), config(steps=1)).fit())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(done) == 1


def test_the_log_has_one_json_object_a_line(tmp_path):
    nf.Trainer(network(), images(), config(out=tmp_path)).fit()
    entries = [json.loads(line) for line in lines(tmp_path / "log.jsonl")]
    assert [entry["step"] for entry in entries] == [3, 6, 9, 12]
    assert all(set(entry) == {"step", "loss", "images_per_second"} for entry in entries)


def test_the_trained_network_is_loaded_by_its_averaged_weights(tmp_path):
    net = network()
    net.sampling = {"method": "annealed_langevin", "step_size": 2e-5, "steps_per_level": 2}
    trainer = nf.Trainer(net, images(), config(out=tmp_path))
    average = trainer.fit()
    for name in ("model", "checkpoint"):
        loaded = nf.load_checkpoint(tmp_path / f"{name}.safetensors")
        assert torch.equal(weights(loaded), weights(average))
        assert loaded.sampling == net.sampling


def test_a_finished_run_killed_before_its_model_was_written_is_completed(tmp_path, monkeypatch):
    from ncsn_fast.training import state as training_state

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_state, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            nf.Trainer(network(), images(), config(out=tmp_path)).fit()
    assert not (tmp_path / "model.safetensors").exists()
    resumed = nf.Trainer(network(), images(), config(out=tmp_path), resume=True)
    assert resumed.step == 12
    average = weights(resumed.fit())
    assert torch.equal(weights(nf.load_checkpoint(tmp_path / "model.safetensors")), average)


def test_a_network_that_does_not_know_how_to_sample_is_told_of(tmp_path, caplog):
    nf.Trainer(network(), images(), config(out=tmp_path / "a"))
    assert "net.sampling is not set" in caplog.text
    net = network()
    net.sampling = nf.auto_schedule(images()).sampling
    caplog.clear()
    nf.Trainer(net, images(), config(steps=1, out=tmp_path / "b")).fit()
    assert caplog.text == ""
    assert nf.sample(nf.load_checkpoint(tmp_path / "b" / "model.safetensors"), 1).shape[0] == 1


def test_time_may_end_a_run():
    trainer = nf.Trainer(network(), images(), config(steps=10**6, max_seconds=0.3))
    trainer.fit()
    assert 0 < trainer.step < 10**6


def test_a_dataset_of_pairs_is_read():
    pairs = torch.utils.data.TensorDataset(images(), torch.zeros(40))
    assert torch.equal(nf.Trainer(network(), pairs, config()).batches.data, images())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    trainer = nf.Trainer(network(), images(), config(steps=4, checkpoint_every=2, out=tmp_path))
    trainer.fit()
    kept = (tmp_path / "checkpoint.safetensors").read_bytes()
    trainer.config = replace(trainer.config, steps=100)
    with torch.no_grad():
        next(trainer.net.parameters())[:] = torch.nan
    with pytest.raises(nf.TrainingError, match=r"lower learning_rate \(now 0\.001\).*from before"):
        trainer.fit()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == kept


def test_weights_that_became_nan_do_not_replace_good_ones(tmp_path):
    trainer = nf.Trainer(network(), images(), config(steps=4, checkpoint_every=2, out=tmp_path))
    trainer.fit()
    kept = (tmp_path / "model.safetensors").read_bytes()
    trainer.config = replace(trainer.config, steps=100, checkpoint_every=1)
    # The loss of the step is finite, its gradient is not.
    next(trainer.net.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(nf.TrainingError, match="weights are no longer finite at step 5"):
        trainer.fit()
    assert (tmp_path / "model.safetensors").read_bytes() == kept
    # The remedy that the message names works.
    again = nf.Trainer(network(), images(), config(learning_rate=1e-5, out=tmp_path), resume=True)
    assert again.step == 4
    again.fit()


def test_without_a_checkpoint_none_is_promised(tmp_path):
    trainer = nf.Trainer(network(), images(), config(out=tmp_path))
    with torch.no_grad():
        next(trainer.net.parameters())[:] = torch.nan
    with pytest.raises(nf.TrainingError) as error:
        trainer.fit()
    assert "checkpoint" not in str(error.value)


def test_frozen_parameters_are_left_alone_and_resumed(tmp_path):
    def frozen():
        net = network()
        net.begin_conv.requires_grad_(False)
        return net

    before = frozen().begin_conv.weight
    nf.Trainer(frozen(), images(), config(steps=3, out=tmp_path)).fit()
    resumed = nf.Trainer(frozen(), images(), config(steps=6, out=tmp_path), resume=True)
    resumed.fit()
    assert torch.equal(resumed.net.begin_conv.weight, before)
    whole = nf.Trainer(frozen(), images(), config(steps=6))
    whole.fit()
    assert torch.equal(weights(resumed.net), weights(whole.net))


def test_a_run_may_be_saved_before_its_first_step(tmp_path):
    nf.Trainer(network(), images(), config(out=tmp_path)).save()
    resumed = nf.Trainer(network(), images(), config(out=tmp_path), resume=True)
    assert resumed.step == 0
    assert torch.equal(
        weights(resumed.fit()), weights(nf.Trainer(network(), images(), config()).fit())
    )


def test_a_run_on_other_noise_levels_is_not_resumed(tmp_path):
    def old(sigmas):
        torch.manual_seed(0)
        return nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=sigmas)

    nf.Trainer(old(SIGMAS), images(), config(steps=1, out=tmp_path)).fit()
    with pytest.raises(ValueError, match=r"belongs to another run .*noise levels: "):
        nf.Trainer(old(2 * SIGMAS), images(), config(out=tmp_path), resume=True)


def test_the_average_warms_up_where_that_is_asked_for():
    net = network()
    trainer = nf.Trainer(net, images(), config(ema=0.9, ema_warmup=True))
    expected = weights(net)
    for step in range(3):
        trainer._train_step()
        rate = min(0.9, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * weights(net)
    assert torch.allclose(weights(trainer.average), expected, atol=1e-7)


def test_adam_has_the_settings_of_the_run():
    trainer = nf.Trainer(network(), images(), config(beta1=0.8, beta2=0.95, eps=1e-3))
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.8, 0.95), 1e-3)


def test_the_weight_of_the_loss_is_that_of_the_run():
    losses = []
    for power in (2.0, 0.0):
        trainer = nf.Trainer(network(), images(), config(anneal_power=power))
        trainer._train_step()
        losses.append(float(trainer.sums.sum))
    assert losses[1] > 2 * losses[0]


def test_flips_differ_between_images_and_steps():
    trainer = nf.Trainer(network(), images(8), config(flip=True))
    plain = nf.Trainer(network(), images(8), config())
    flipped = []
    for step in range(8):
        x, y = trainer.batches.at(step)[0], plain.batches.at(step)[0]
        same = (x == y).flatten(1).all(1)
        assert torch.equal(torch.where(same[:, None, None, None], y, y.flip(-1)), x)
        flipped.append(same.tolist())
    assert 10 < sum(map(sum, flipped)) < 54
    assert flipped[0] != flipped[1]


@pytest.mark.parametrize("line", ["{}", "3", "[]", '{"step": 3, "loss": 1.0}', '{"st'])
def test_a_damaged_log_does_not_stop_a_resume(tmp_path, line):
    nf.Trainer(network(), images(), config(steps=6, out=tmp_path)).fit()
    log = tmp_path / "log.jsonl"
    first, second = log.read_text().splitlines()
    log.write_text("\n".join((first, line, second)) + "\n")
    resumed = nf.Trainer(network(), images(), config(steps=9, out=tmp_path), resume=True)
    resumed.fit()
    assert [step for step, _ in resumed.history] == [3, 6, 9]


def test_a_second_process_is_kept_out_of_the_folder(tmp_path):
    from ncsn_fast.support.files import folder_lock

    trainer = nf.Trainer(network(), images(), config(out=tmp_path))
    with (
        folder_lock(tmp_path),
        pytest.raises(ValueError, match="another process is writing to"),
    ):
        trainer.fit()


def test_what_a_killed_process_left_is_removed(tmp_path):
    leftover = tmp_path / ".checkpoint-0123abcd.safetensors"
    leftover.write_bytes(b"half")
    mine = tmp_path / ".my-notes.txt"
    mine.write_text("x")
    nf.Trainer(network(), images(), config(out=tmp_path)).fit()
    assert not leftover.exists()
    assert mine.exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    nf.Trainer(network(), images(), config(out=tmp_path)).fit()
    with pytest.raises(ValueError, match=r"holds a trained network already .* resume"):
        nf.Trainer(network(), images(), config(out=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "seed: 0 there, 5 here"),
        ({"batch_size": 4}, "batch_size: 8 there, 4 here"),
        ({"ema": 0.5}, "ema: 0.999 there, 0.5 here"),
    ],
)
def test_a_run_of_other_settings_is_not_resumed(tmp_path, change, message):
    nf.Trainer(network(), images(), config(out=tmp_path)).fit()
    with pytest.raises(ValueError, match=message):
        nf.Trainer(network(), images(), config(out=tmp_path, **change), resume=True)


def test_a_run_on_other_data_or_another_network_is_not_resumed(tmp_path):
    nf.Trainer(network(), images(), config(out=tmp_path)).fit()
    with pytest.raises(ValueError, match=r"belongs to another run \(data: "):
        nf.Trainer(network(), images() / 2, config(out=tmp_path), resume=True)
    with pytest.raises(ValueError, match=r"belongs to another run \(network: "):
        nf.Trainer(network(activation="relu"), images(), config(out=tmp_path), resume=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.rand(4, 1, 9, 9), r"the network takes .* of shape \(1, 8, 8\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), "the data are torch.int64"),
        (torch.rand(0, 1, 8, 8), "the data set is empty"),
        (255 * torch.rand(4, 1, 8, 8), "divide 8-bit images by 255"),
        (torch.full((4, 1, 8, 8), torch.nan), "not finite"),
        (iter([]), "has no length"),
        ([object()], "the data set gives object, needed are tensors"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        nf.Trainer(network(), data, config())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": 1.5}, "batch_size = 1.5"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
        ({"ema": 1.0}, "ema = 1.0: give a rate"),
        ({"max_seconds": 0}, "max_seconds = 0"),
        ({"precision": "fp8"}, "precision = 'fp8': choose one of"),
        ({"seed": -1}, "seed = -1"),
        ({"anneal_power": float("nan")}, "anneal_power = nan"),
        ({"learning_rate": float("inf")}, "learning_rate = inf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        config(**keywords)


@pytest.mark.parametrize(
    ("net", "keywords", "message"),
    [
        (network, {"dequantize": "both"}, "dequantize = 'both': choose"),
        (
            lambda: network(logit_transform=True),
            {"dequantize": "gaussian"},
            "where the logit is undefined",
        ),
        (lambda: torch.nn.Linear(2, 2), {}, "a Trainer takes a network of ncsn_fast, got Linear"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_refused_at_once(net, keywords, message):
    with pytest.raises(ValueError, match=message):
        nf.Trainer(net(), images(), config(**keywords))


def test_points_have_no_mirror_image():
    net = nf.MLPScore(dim=2, sigmas=SIGMAS)
    with pytest.raises(ValueError, match="points have no left and right"):
        nf.Trainer(net, torch.rand(5, 2), config(flip=True))


def test_resume_without_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="resume needs the folder of the run"):
        nf.Trainer(network(), images(), config(), resume=True)
    with pytest.raises((ValueError, FileNotFoundError), match=r"checkpoint\.safetensors"):
        nf.Trainer(network(), images(), config(out=tmp_path), resume=True)
