"""What a training run can be told: precision, accumulation, rates; and what it refuses."""

import sys

import numpy as np
import pytest
import torch
from helpers.training import config, network, trained, trainer_of, weights

import ncsn_fast as nf


def test_a_batch_in_four_parts_is_the_batch():
    whole = trained(batch_size=64, steps=5)
    parts = trained(batch_size=64, steps=5, accumulate=4)
    for (_, a), (_, b) in zip(whole.history, parts.history, strict=True):
        assert b == pytest.approx(a, rel=1e-6)
    assert torch.allclose(weights(parts.net), weights(whole.net), atol=1e-4)


def test_the_parts_of_a_batch_are_equal():
    with pytest.raises(ValueError, match="accumulate = 3 does not divide batch_size = 8"):
        config(accumulate=3)


@pytest.fixture(scope="module")
def full():
    """A run in fp32, long enough for the scale of fp16, which begins too high and skips steps until
    it fits."""
    return trained(steps=50, log_every=25)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_train_like_thirty_two(full, precision):
    half = trained(steps=50, log_every=25, precision=precision)
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


@pytest.mark.parametrize(
    ("name", "message"),
    [("tf32", "'tf32' is a mode of NVIDIA GPUs"), ("half", "choose one of .*'bf16'")],
)
def test_a_precision_that_is_not_there_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        trained(precision=name)


def test_a_gradient_is_clipped_where_that_is_asked_for():
    free, clipped = (trainer_of(clip_gradient=c) for c in (None, 1e-3))
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
    trainer = trainer_of(warmup=4)
    rates = []
    for _ in range(6):
        trainer._train_step()
        rates.append(float(trainer.optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, [1, 1, 1, 0.75, 0.5, 0.25]),
        ({"warmup": 5}, [0.2, 0.4, 0.6, 0.75, 0.5, 0.25]),
        ({"cooldown": 12}, [0.5, 5 / 12, 4 / 12, 0.25, 2 / 12, 1 / 12]),
    ],
)
def test_the_learning_rate_falls_in_the_cooldown(settings, shares):
    trainer = trainer_of(**{"steps": 6, "cooldown": 4} | settings)
    rates = []
    for _ in range(6):
        trainer._train_step()
        rates.append(float(trainer.optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([1e-3 * share for share in shares])


def test_levels_may_be_continuous():
    assert trained(continuous=True).history != trained().history
    with pytest.raises(ValueError, match="NCSN is told the noise level as a label"):
        trained(network(nf.NCSN), continuous=True)


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


def test_numbers_of_numpy_are_numbers(tmp_path):
    settings = {"batch_size": np.int64(8), "seed": np.int64(1), "ema": np.float32(0.5)}
    assert trained(out=tmp_path, **settings).config == config(out=tmp_path, seed=1, ema=0.5)


def test_fp16_that_only_overflows_is_an_error(tmp_path):
    net = network()
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(nf.TrainingError, match="fp16 overflows: its scale is down to 0"):
        trained(net, precision="fp16", steps=100)


def test_narrow_weights_are_refused():
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16 .*call net.float\(\)"):
        trainer_of(network().bfloat16())


def test_tensorboard_is_refused_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        trained(out=tmp_path, tensorboard=True)
