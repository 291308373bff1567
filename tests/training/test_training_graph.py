"""The captured training step, through a stand-in that needs no GPU: it is the eager step."""

import logging
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.training import OF_STEPS, SIGMAS, Waiting, config, weights

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.device import capture

pytest_plugins = ["helpers.recorded_capture"]
STEPS = 8


@pytest.fixture(autouse=True)
def _no_values_read_back(monkeypatch):
    from helpers.recorded_capture import read_no_values_back

    read_no_values_back(monkeypatch)


def network(cls=nf.MLPScore):
    torch.manual_seed(0)
    if cls is nf.MLPScore:
        return cls(dim=4, hidden=16, layers=2, sigmas=SIGMAS)
    return cls(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)


def data(net):
    images = digits("train").images[:40]
    return images if len(net.shape) == 3 else images[:, 0, 3, 2:6].contiguous()


def trainer_of(cls=nf.MLPScore, resume=False, **keywords):
    net = network(cls)
    classes = torch.arange(40) % 3 if getattr(net, "classes", ()) else None
    settings = config(**{"steps": STEPS, **keywords})
    return nf.Trainer(net, data(net), settings, classes=classes, resume=resume)


def trained(*arguments, **keywords):
    trainer = trainer_of(*arguments, **keywords)
    trainer.fit()
    return trainer


def assert_same_run(a, b):
    assert a.history == b.history
    assert torch.equal(weights(a.net), weights(b.net))
    assert torch.equal(weights(a.average), weights(b.average))
    assert a.scaler.state_dict() == b.scaler.state_dict()


def failing_capture(monkeypatch, error):
    def fail(step, device, *, warm_ups):
        raise error

    monkeypatch.setattr(capture, "capture", fail)


@pytest.mark.parametrize("settings", OF_STEPS, ids=str)
def test_a_captured_run_is_the_eager_run_bit_for_bit(recorded, settings):
    run = trained(nf.NCSNv2, **settings)
    (graph,) = recorded.captured
    assert graph.replays == STEPS - 3
    assert_same_run(run, trained(nf.NCSNv2, graph=False, **settings))
    assert len(recorded.captured) == 1


@pytest.mark.parametrize("cls", [nf.NCSN, nf.MLPScore, partial(nf.NCSNv2, classes=3)])
def test_a_network_that_sees_labels_sees_those_of_each_step(recorded, cls):
    run = trained(cls)
    assert recorded.captured[0].replays == STEPS - 3
    assert_same_run(run, trained(cls, graph=False))


def test_the_kernels_are_captured_too(recorded):
    settings = {"steps": 5, "batch_size": 2, "ema": 0.0}
    with nf.use_backend("triton"):
        run, eager = trained(**settings), trained(**settings, graph=False)
    (graph,) = recorded.captured
    assert graph.replays == 2
    assert_same_run(run, eager)


def test_a_replay_tells_all_tensors_that_they_have_changed_at_once(recorded, monkeypatch):
    told, tell = [], torch.autograd.graph.increment_version

    def counted(tensors):
        told.append(tensors)
        tell(tensors)

    monkeypatch.setattr(torch.autograd.graph, "increment_version", counted)
    trainer = trainer_of()
    trainer.fit()
    assert len(told) == recorded.captured[0].replays
    before = [p._version for p in trainer.net.parameters()]
    trainer._graph._captured = recorded.captured
    trainer._graph._replay = [lambda: None]
    trainer._graph()
    assert all(p._version > v for p, v in zip(trainer.net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("cause", "named"),
    [("RuntimeError: CUDA error: operation not permitted", True), ("it waits here", False)],
)
def test_an_error_of_cuda_itself_comes_with_its_likely_cause(
    recorded, monkeypatch, caplog, cause, named
):
    failing_capture(monkeypatch, capture.CaptureError(cause))
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        trained()
    (warning,) = [message for message in caplog.messages if "cannot be captured" in message]
    assert ("is still held" in warning) == named


def test_the_graph_is_released_at_the_end(recorded):
    trained()
    (graph,) = recorded.captured
    assert graph.released


def test_a_run_that_goes_on_is_captured_anew(recorded):
    trainer = trained()
    trainer.config = replace(trainer.config, steps=2 * STEPS)
    trainer.fit()
    assert [graph.replays for graph in recorded.captured] == [STEPS - 3] * 2
    assert_same_run(trainer, trained(graph=False, steps=2 * STEPS))


def test_warm_ups_run_on_the_stream_of_the_capture(recorded, monkeypatch):
    entered = []
    monkeypatch.setattr(capture, "side_stream", lambda device: nullcontext(entered.append(device)))
    trained()
    assert entered == [torch.device("cpu")] * 3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("first", ["auto", False])
def test_a_run_is_resumed_with_a_graph_or_without(tmp_path, recorded, first, precision):
    settings = {"out": tmp_path / "halves", "precision": precision}
    trained(**settings, steps=5, graph=first)
    resumed = trained(**settings, resume=True, steps=10, graph=False if first else "auto")
    assert len(recorded.captured) == 1
    assert_same_run(resumed, trained(steps=10, precision=precision, graph=False))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checkpoint_in_the_middle_is_that_of_the_eager_run(tmp_path, recorded, precision):
    for name, graph in (("captured", "auto"), ("eager", False)):
        trained(out=tmp_path / name, graph=graph, steps=6, precision=precision)
    assert len(recorded.captured) == 1
    for file in ("checkpoint.safetensors", "model.safetensors", "levels.json"):
        captured, eager = ((tmp_path / name / file).read_bytes() for name in ("captured", "eager"))
        assert captured == eager


def test_the_losses_by_level_count_replays_once(tmp_path, recorded):
    settings = {"checkpoint_every": 5, "steps": 10}
    for name, graph in (("captured", "auto"), ("eager", False)):
        trained(out=tmp_path / name, graph=graph, **settings)
    captured, eager = (tmp_path / name / "levels.json" for name in ("captured", "eager"))
    assert captured.read_text() == eager.read_text()


def test_ctrl_c_saves_the_step_of_a_replay(tmp_path, recorded):
    trainer = trainer_of(out=tmp_path)
    at = trainer.batches.at

    def interrupted(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return at(step)

    trainer.batches.at = interrupted
    with pytest.raises(nf.TrainingInterrupted, match="SIGINT at step 6; saved"):
        trainer.fit()
    assert_same_run(trained(out=tmp_path, resume=True), trained(graph=False))


def test_nan_in_a_replay_is_found(recorded):
    trainer = trainer_of(steps=20, log_every=10)
    at = trainer.batches.at

    def broken(step):
        x, ids = at(step)
        return (x * torch.nan if step == 5 else x), ids

    trainer.batches.at = broken
    with pytest.raises(nf.TrainingError, match="loss is nan between steps 0 and 10"):
        trainer.fit()
    assert recorded.captured[0].replays == 7


def test_a_replay_counts_as_a_change_of_the_weights(recorded):
    trainer = trainer_of()
    for _ in range(4):
        trainer._train_step()
    tensors = [*trainer.net.parameters(), *trainer.average.parameters()]
    before = [tensor._version for tensor in tensors]
    trainer._train_step()
    assert recorded.captured[0].replays == 2
    assert all(tensor._version > old for tensor, old in zip(tensors, before, strict=True))


def test_a_network_that_waits_for_the_device_is_trained_without_a_graph(recorded, caplog):
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        run = trained(Waiting)
    (warning,) = caplog.messages
    assert "cannot be captured (it waits for the device" in warning
    assert recorded.captured == []
    assert_same_run(run, trained(nf.NCSNv2, graph=False))


def test_a_capture_without_memory_leaves_the_run_eager(recorded, caplog, monkeypatch):
    failing_capture(monkeypatch, torch.OutOfMemoryError("tried to allocate 3 GiB"))
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        run = trained()
    (warning,) = caplog.messages
    assert "tried to allocate 3 GiB" in warning
    assert_same_run(run, trained(graph=False))


def test_a_capture_that_fails_before_the_weights_are_changed_leaves_fp16_in_order(
    recorded, monkeypatch
):
    settings = {"precision": "fp16", "clip_gradient": 1.0}
    expected = trained(graph=False, **settings)
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def no_memory_in_the_capture(*arguments):
        calls.append(None)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("no memory")
        return clip(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", no_memory_in_the_capture)
    trainer = trained(**settings)
    assert len(calls) == STEPS + 1
    assert_same_run(trainer, expected)


def test_a_graph_that_is_demanded_and_fails_is_an_error_that_loses_no_step(tmp_path, recorded):
    trainer = trainer_of(Waiting, graph=True, out=tmp_path)
    with pytest.raises(capture.CaptureError, match="it waits for the device"):
        trainer.fit()
    assert trainer.step == 3
    assert all(parameter.grad is None for parameter in trainer.net.parameters())
    assert torch.equal(weights(trainer.net), weights(trained(nf.NCSNv2, steps=3).net))


def test_a_graph_without_a_gpu_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"graph = True, but graphs are captured on CUDA devices"):
        trainer_of(graph=True)


def test_auto_says_nothing_where_there_is_no_gpu(caplog):
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        trained(steps=5)
    assert caplog.messages == []


@pytest.mark.parametrize("wish", ["yes", None, 2])
def test_an_unknown_wish_is_refused(wish):
    with pytest.raises(ValueError, match=f"graph = {wish!r}: choose 'auto', True or False"):
        config(graph=wish)


def test_loading_a_step_does_not_wait(recorded):
    trainer = trainer_of(warmup=3, ema_warmup=True)
    x, _ = trainer.batches.at(0)
    with capture.waiting_refused():
        trainer._compute.load(x, 4)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (nf.NCSNv2, {}),
        (nf.NCSNv2, {"continuous": True, "accumulate": 2}),
        (nf.NCSNv2, {"anneal_power": 1.0}),
        (nf.NCSN, {"accumulate": 2}),
        (partial(nf.NCSNv2, classes=3), {"accumulate": 2}),
    ],
)
def test_the_gradient_of_a_step_is_that_of_the_loss(cls, settings):
    trainer = trainer_of(cls, **settings)
    x, ids = trainer.batches.at(3)
    classes = trainer.batches.classes_at(3)
    net, found = network(cls), []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.clone() for p in trainer.net.parameters())
    )
    which = {k: v for k, v in settings.items() if k != "accumulate"}
    score = net if classes is None else partial(net, classes=classes)
    loss = nf.dsm_loss(score, x, SIGMAS, seed=0, step=3, sample_ids=ids, **which)
    loss.backward()
    trainer._compute.load(x, 3, classes)
    trainer._compute()
    assert float(trainer.sums.sum) == pytest.approx(float(loss.detach()), rel=1e-6)
    expected = torch.cat([p.grad.flatten() for p in net.parameters()])
    gradient = torch.cat([g.flatten() for g in found])
    assert float((gradient - expected).norm()) < 1e-5 * float(expected.norm())
