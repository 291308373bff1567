"""The captured training step on a GPU: python -m pytest -m gpu."""

import logging

import pytest
import torch
from helpers.training import OF_STEPS, Waiting, config

import ncsn_fast as nf

pytestmark = pytest.mark.gpu
SIGMAS = nf.geometric_sigmas(5, 0.01, 10)
STEPS = 8
SETTINGS = [*OF_STEPS, {"precision": "tf32"}]


@pytest.fixture(autouse=True)
def _same_algorithms():
    """Every run convolves by the same algorithm, in full precision."""
    cudnn, before = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(before)


def trainer_of(cls=nf.NCSNv2, *, resume=False, **keywords):
    torch.manual_seed(0)
    net = cls(channels=3, image_size=16, ngf=8, sigmas=SIGMAS).cuda()
    data = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return nf.Trainer(net, data, config(**{"steps": STEPS, **keywords}), resume=resume)


def trained(*arguments, **keywords):
    trainer = trainer_of(*arguments, **keywords)
    trainer.fit()
    return trainer


def weights(trainer):
    tensors = [*trainer.net.parameters(), *trainer.average.parameters()]
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def distance(a, b):
    return float((weights(a) - weights(b)).abs().max())


def assert_as_eager_runs_are(run, **keywords):
    """Bit for bit, as two eager runs agree."""
    eager, again = (trained(graph=False, **keywords) for _ in range(2))
    assert distance(again, eager) == 0
    assert distance(run, eager) == 0
    assert [loss for _, loss in run.history] == pytest.approx(
        [loss for _, loss in eager.history], rel=1e-4
    )
    assert run.scaler.state_dict() == eager.scaler.state_dict()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_captured_run_is_the_eager_run(settings):
    assert_as_eager_runs_are(trained(graph=True, **settings), **settings)


def test_a_network_that_sees_labels_sees_those_of_each_step():
    run = trained(nf.NCSN, graph=True)
    eager, again = (trained(nf.NCSN, graph=False) for _ in range(2))
    assert distance(again, eager) == 0
    assert distance(run, eager) == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_neither_replays_nor_eager_steps_wait_for_the_device(settings):
    for graph in (True, False):
        trainer = trainer_of(graph=graph, **settings)
        for _ in range(4):
            trainer._train_step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                trainer._train_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(trainer.sums.sum)


@pytest.mark.parametrize("first", [True, False])
def test_a_run_is_resumed_with_a_graph_or_without(tmp_path, first):
    settings = {"out": tmp_path, "precision": "fp16"}
    trained(**settings, steps=5, graph=first)
    resumed = trained(**settings, steps=10, graph=not first, resume=True)
    assert_as_eager_runs_are(resumed, steps=10, precision="fp16")


def test_every_replay_trains_on_other_noise():
    trainer = trainer_of(graph=True, learning_rate=1e-12)  # the weights stay as they are
    trainer.fit()
    losses = [loss for _, loss in trainer.history]
    assert len(set(losses)) == STEPS


def test_the_end_of_a_run_gives_the_memory_of_its_graph_back():
    trainer = trainer_of(graph=True, batch_size=32)
    for _ in range(4):
        trainer._train_step()
    torch.cuda.synchronize()
    held = torch.cuda.memory_reserved()
    trainer._graph.release()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < held
    trainer._train_step()  # and the next step does without
    assert torch.isfinite(trainer.sums.sum)


# What fails in a capture, or waits in one, comes last: what it leaves behind harms no other test.


def test_a_network_that_waits_for_the_device_is_trained_without_a_graph(caplog):
    before = torch.cuda.current_stream()
    with caplog.at_level(logging.WARNING, "ncsn_fast"):
        run = trained(Waiting)
    (warning,) = [message for message in caplog.messages if "cannot be captured" in message]
    assert "graph=False" in warning
    assert torch.cuda.current_stream() == before
    assert_as_eager_runs_are(run)


def test_a_graph_that_is_demanded_and_fails_is_an_error():
    trainer = trainer_of(Waiting, graph=True)
    with pytest.raises(RuntimeError):
        trainer.fit()
    assert trainer.step == 3
