"""The trainer: it learns, averages, logs, and refuses what it cannot do."""

import json

import pytest
import torch
from helpers.training import SIGMAS, images, lines, network, trained, trainer_of, weights

import ncsn_fast as nf
from ncsn_fast.training.log import LossSums, by_level


def test_training_learns_the_score_of_points_in_the_plane():
    """On N(m, ½² I) the trained MLP is close to the score -(x - m)/(¼ + σ²) where data lie."""
    mean = torch.tensor([1.0, -0.5])
    points = mean + 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = nf.MLPScore(dim=2, hidden=64, layers=2, sigmas=nf.geometric_sigmas(3, 0.1, 5))
    trainer = trainer_of(net, points, steps=800, batch_size=256, learning_rate=3e-3, ema=0.98)
    trained = trainer.fit()
    for level, sigma in enumerate(net.sigmas):
        x = mean + (0.25 + sigma**2).sqrt() * torch.randn(1000, 2)
        exact = -(x - mean) / (0.25 + sigma**2)
        with torch.no_grad():
            error = trained(x, torch.full((1000,), level)) - exact
        assert float(error.norm() / exact.norm()) < 0.3
    assert trainer.history[-1][1] < trainer.history[0][1]


def test_the_loss_of_digits_falls():
    trainer = trained(data=images(200), steps=30, batch_size=32, log_every=5)
    assert trainer.history[-1][1] < 0.8 * trainer.history[0][1]
    assert [step for step, _ in trainer.history] == [5, 10, 15, 20, 25, 30]


def test_a_run_is_a_function_of_its_seed():
    runs = [trainer_of(seed=seed) for seed in (1, 1, 2)]
    nets = [weights(run.fit()) for run in runs]
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


def test_every_image_comes_once_an_epoch_and_in_another_order_the_next():
    trainer = trainer_of(data=images(40))
    first = trainer.batches.shuffled(torch.arange(40))
    second = trainer.batches.shuffled(torch.arange(40, 80))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert first.tolist() != second.tolist()
    # A batch may lie across two epochs.
    across = trainer.batches.shuffled(torch.arange(36, 44))
    assert across.tolist() == [*first[36:].tolist(), *second[:4].tolist()]


def test_the_average_is_the_moving_average_of_the_weights():
    net = network()
    trainer = trainer_of(net, steps=1, ema=0.9)
    expected = weights(net)
    for _ in range(4):
        trainer._train_step()
        expected = 0.9 * expected + 0.1 * weights(net)
    assert torch.allclose(weights(trainer.average), expected, atol=1e-7)
    assert not torch.allclose(weights(net), expected, atol=1e-5)


def test_without_a_rate_there_is_no_average():
    net = network()
    trainer = trainer_of(net, ema=0.0)
    assert trainer.fit() is net


def test_the_average_warms_up_where_that_is_asked_for():
    net = network()
    trainer = trainer_of(net, ema=0.9, ema_warmup=True)
    expected = weights(net)
    for step in range(3):
        trainer._train_step()
        rate = min(0.9, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * weights(net)
    assert torch.allclose(weights(trainer.average), expected, atol=1e-7)


def test_adam_has_the_settings_of_the_run():
    trainer = trainer_of(beta1=0.8, beta2=0.95, eps=1e-3)
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.8, 0.95), 1e-3)


def test_the_weight_of_the_loss_is_that_of_the_run():
    losses = []
    for power in (2.0, 0.0):
        trainer = trainer_of(anneal_power=power)
        trainer._train_step()
        losses.append(float(trainer.sums.sum))
    assert losses[1] > 2 * losses[0]


def test_flips_differ_between_images_and_steps():
    trainer = trainer_of(data=images(8), flip=True)
    plain = trainer_of(data=images(8))
    flipped = []
    for step in range(8):
        x, y = trainer.batches.at(step)[0], plain.batches.at(step)[0]
        same = (x == y).flatten(1).all(1)
        assert torch.equal(torch.where(same[:, None, None, None], y, y.flip(-1)), x)
        flipped.append(same.tolist())
    assert 10 < sum(map(sum, flipped)) < 54
    assert flipped[0] != flipped[1]


def test_time_may_end_a_run():
    trainer = trained(steps=10**6, max_seconds=0.3)
    assert 0 < trainer.step < 10**6


def test_the_log_has_one_json_object_a_line(tmp_path):
    trained(steps=12, log_every=3, out=tmp_path)
    entries = [json.loads(line) for line in lines(tmp_path / "log.jsonl")]
    assert [entry["step"] for entry in entries] == [3, 6, 9, 12]
    assert all(set(entry) == {"step", "loss", "images_per_second"} for entry in entries)


def test_the_trained_network_is_loaded_by_its_averaged_weights(tmp_path):
    net = network()
    net.sampling["steps_per_level"] = 2
    trainer = trainer_of(net, out=tmp_path)
    average = trainer.fit()
    for name in ("model", "checkpoint"):
        loaded = nf.load_checkpoint(tmp_path / f"{name}.safetensors")
        assert torch.equal(weights(loaded), weights(average))
        assert loaded.sampling == net.sampling


def test_a_network_that_does_not_know_how_to_sample_is_told_of(tmp_path, caplog):
    net = network()
    net.sampling = None
    trainer_of(net, out=tmp_path / "a")
    assert "net.sampling is not set" in caplog.text
    net = network()
    net.sampling = nf.auto_schedule(images()).sampling
    caplog.clear()
    trained(net, steps=1, out=tmp_path / "b")
    assert caplog.text == ""
    assert nf.sample(nf.load_checkpoint(tmp_path / "b" / "model.safetensors"), 1).shape[0] == 1


def test_losses_are_counted_by_level():
    sums = LossSums(4, torch.device("cpu"))
    assert by_level(sums.levels) == [None] * 4
    sums.add(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2]), 3)
    sums.add(torch.tensor([3.0]), torch.tensor([0]), 1)
    assert sums.mean(2) == pytest.approx((3 + 3) / 2)
    assert by_level(sums.levels) == [2.0, None, 4.0, None]


def test_the_loss_of_each_level_is_in_the_folder(tmp_path):
    trained(out=tmp_path, steps=30, checkpoint_every=30)
    report = json.loads((tmp_path / "levels.json").read_text())
    assert report["step"] == 30
    assert report["sigma"] == pytest.approx(SIGMAS.tolist())
    assert len(report["loss"]) == 8
    # A network that has learned nothing pays ½·64 where noise is small; less where it is large.
    assert all(loss is None or 1 < loss < 60 for loss in report["loss"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.rand(4, 1, 9, 9), r"the network takes .* of shape \(1, 8, 8\)"),
        (255 * torch.rand(4, 1, 8, 8), "divide 8-bit images by 255"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(data=data)


@pytest.mark.parametrize(
    ("net", "keywords", "message"),
    [
        (network, {"dequantize": "both"}, "dequantize = 'both': choose"),
        (lambda: nf.MLPScore(sigmas=SIGMAS), {"flip": True}, "points have no left and right"),
        (lambda: torch.nn.Linear(2, 2), {}, "a Trainer takes a network of ncsn_fast, got Linear"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_refused_at_once(net, keywords, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(net(), **keywords)
