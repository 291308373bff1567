"""Captured sampling on a GPU: python -m pytest -m gpu tests/sampling/test_gpu_graphs.py."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from torch import nn

import ncsn_fast as nf
from ncsn_fast.device import capture
from ncsn_fast.device.capture import CaptureError
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.table import Table

pytestmark = pytest.mark.gpu
SIGMAS = nf.geometric_sigmas(5, 0.01, 10)
TABLE = annealed_langevin(SIGMAS, 2e-5, 5)
SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def _repeatable():
    """The same kernels for eager runs and captures, and none that adds in any order."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def network(kind):
    torch.manual_seed(0)
    if kind == "MLPScore":
        net = nf.MLPScore(sigmas=SIGMAS)
        nn.init.normal_(net.head.weight)
    else:
        net = getattr(nf, kind)(channels=3, image_size=16, ngf=16, sigmas=SIGMAS)
    return net.cuda().eval()


class Conv(nn.Module):
    """A foreign network whose answers are laid out in one memory format."""

    def __init__(self, memory_format=torch.contiguous_format):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1).to(memory_format=memory_format)
        self.memory_format = memory_format

    def forward(self, x, labels):
        h = self.conv(x.contiguous(memory_format=self.memory_format))
        return -(x + 0.1 * h) / (1 + 25 * 0.8 ** labels.view(-1, 1, 1, 1))


def pair(score, *arguments, **settings):
    return [nf.Sampler(score, *arguments, graph=graph, **settings) for graph in (False, True)]


@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16"])
@pytest.mark.parametrize("kind", ["NCSN", "NCSNv2", "MLPScore"])
def test_replay_equals_eager_bit_for_bit(kind, precision):
    if kind == "MLPScore" and precision == "bf16":
        pytest.skip("it has no convolutions")
    eager, captured = pair(network(kind), method=TABLE, precision=precision)
    expected = eager(4, seed=1)
    assert torch.equal(captured(4, seed=1), expected)
    assert not torch.equal(captured(4, seed=2), expected)
    assert torch.equal(captured(4, seed=1), expected)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_both_memory_formats_and_backends_replay_as_they_run(memory_format, backend):
    net = Conv(memory_format).cuda()
    eager, captured = pair(net, SHAPE, SIGMAS, TABLE, backend=backend)
    assert torch.equal(captured(4, seed=1), eager(4, seed=1))


def test_history_and_scaled_input_replay_as_they_run():
    columns = {"b": [2.0, 1.0], "c": [0.0, -1.0], "f": [1.0, 0.0], "c_in": [0.2, 0.4]}
    table = Table.of([2.0, 0.5] * 8, **{name: values * 8 for name, values in columns.items()})
    score = nf.Score(lambda x, sigma: x / (1 + sigma.view(-1, 1)), "denoiser", "sigma")
    eager, captured = pair(score, (5,), method=table, device="cuda")
    for call in ({}, {"clip": 0.5}):
        assert torch.equal(captured(3, seed=1, **call), eager(3, seed=1, **call))


def test_every_input_of_a_call_replays_as_it_runs():
    mask = torch.zeros(SHAPE, device="cuda")
    mask[:, :8] = 1
    target = torch.rand(SHAPE, device="cuda")

    def guidance(x, n, sigma, row):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return sigma * torch.autograd.grad(-(leaf - target).square().sum(), leaf)[0]

    heard = []
    call = {
        "seed": 1,
        "mask": mask,
        "known": torch.rand(SHAPE, device="cuda"),
        "guidance": guidance,
        "clip": 50.0,
        "temperature": 0.5,
        "every": 7,
        "batch_size": 2,
        "callback": lambda row, x, n: heard.append((x, n)),
    }
    eager, captured = pair(Conv().cuda(), SHAPE, SIGMAS, TABLE)
    expected, states = eager(3, **call)
    found, kept = captured(3, **call)
    assert torch.equal(found, expected)
    assert torch.equal(kept, states)
    half = len(heard) // 2
    for one, other in zip(heard[:half], heard[half:], strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("kind", ["NCSN", "NCSNv2"])
def test_a_chain_does_not_wait_for_the_device(kind, graph):
    sampler = nf.Sampler(network(kind), method=TABLE, graph=graph)
    expected, states = sampler(4, seed=1, every=10)
    last = 4 * len(TABLE)

    def watch(done, total):
        torch.cuda.set_sync_debug_mode("default" if done == last else "error")

    try:
        found, kept = sampler(4, seed=1, every=10, progress=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)
    assert torch.equal(kept, states)


def test_two_samplers_do_not_disturb_each_other():
    one, two = (nf.Sampler(network(k), method=TABLE, graph=True) for k in ("NCSN", "NCSNv2"))
    first, second = one(4, seed=1), two(4, seed=1)
    assert torch.equal(one(4, seed=1), first)
    assert torch.equal(two(4, seed=1), second)


def test_release_frees_the_memory():
    net = network("NCSNv2")
    sampler = nf.Sampler(net, method=TABLE, graph=True)
    sampler(64, seed=1)
    sampler.release()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    expected = sampler(64, seed=1)
    assert torch.cuda.memory_reserved() > before[1]
    sampler.release()
    del expected
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before[0]
    assert torch.cuda.memory_reserved() <= before[1]


@pytest.mark.parametrize("change", ["in place", "assign", "moved"])
def test_changed_weights_are_followed(change):
    net = network("NCSNv2")
    sampler = nf.Sampler(net, method=TABLE, graph=True)
    before = sampler(2, seed=1)
    if change == "in place":
        with torch.no_grad():
            net.end_conv.bias.add_(1)
    elif change == "assign":
        state = {name: value.clone() for name, value in net.state_dict().items()}
        state["end_conv.bias"] += 1
        net.load_state_dict(state, assign=True)
    else:
        with torch.no_grad():
            net.cpu().end_conv.bias.add_(1)
        net.cuda()
    after = sampler(2, seed=1)
    assert not torch.equal(after, before)
    assert torch.equal(after, nf.Sampler(net, method=TABLE, graph=False)(2, seed=1))


def test_nan_is_found_with_the_last_good_state():
    class Broken(Conv):
        def forward(self, x, labels):
            return torch.where(labels.view(-1, 1, 1, 1) == 5, torch.nan, super().forward(x, labels))

    net = Broken().cuda()
    sampler = nf.Sampler(net, SHAPE, SIGMAS, TABLE, graph=True)
    with pytest.raises(nf.SamplingError, match="after row 25 of 51") as error:
        sampler(2, seed=1)
    assert torch.isfinite(error.value.state).all()


def test_a_network_that_casts_its_weights_itself_is_followed():
    class Casts(Conv):
        forward = torch.autocast("cuda", torch.float16)(Conv.forward)

    net = Casts().cuda()
    eager, captured = pair(net, SHAPE, SIGMAS, TABLE)
    before = captured(4, seed=1, batch_size=2)
    with torch.no_grad():
        net.conv.weight.mul_(2)
    after = captured(4, seed=1, batch_size=2)
    assert not torch.equal(after, before)
    assert torch.equal(after, eager(4, seed=1, batch_size=2))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one_is_captured_on():
    eager, captured = pair(Conv().to("cuda:1"), SHAPE, SIGMAS, TABLE)
    assert torch.cuda.current_device() == 0
    found = captured(4, seed=1)
    assert found.device == torch.device("cuda", 1)
    assert torch.equal(found, eager(4, seed=1))
    assert torch.cuda.current_device() == 0


def add(total):
    total.add_(1)


def test_work_is_captured_and_replayed_on_the_same_memory():
    total, device = torch.zeros(4, device="cuda"), torch.device("cuda")
    graph = capture.capture(lambda: add(total), device)
    assert total.tolist() == [3] * 4
    graph.replay()
    assert total.tolist() == [4] * 4
    graph.release()
    with pytest.raises(RuntimeError, match="has been released"):
        graph.replay()


def test_threads_capture_without_disturbing_each_other():
    device, totals = torch.device("cuda"), [torch.zeros(4, device="cuda") for _ in range(4)]

    def work(total):
        for _ in range(5):
            graph = capture.capture(lambda: add(total), device)
            graph.replay()

    threads = [threading.Thread(target=work, args=(total,)) for total in totals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert [total.tolist() for total in totals] == [[20.0] * 4] * 4


# What fails in a capture, or waits in one, comes last: what it leaves behind harms no other test.


def waits(x, labels):
    return -x * float((labels[0] >= 0).float()) / 26


def fails_inside(x, labels):
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()
    return -x / 26


@pytest.mark.parametrize("score", [waits, fails_inside])
def test_a_failure_leaves_stream_modes_and_generator_as_they_were(score, caplog):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), caplog.at_level(logging.WARNING, "ncsn_fast"):
        captured = nf.Sampler(score, SHAPE, SIGMAS, TABLE, device="cuda", graph=True)
        with pytest.raises(CaptureError, match="cannot be captured"):
            captured(2, seed=1)
        assert torch.cuda.current_stream() == stream
        automatic = nf.Sampler(score, SHAPE, SIGMAS, TABLE, device="cuda")
        found = automatic(2, seed=1)
        assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    assert not torch.cuda.is_current_stream_capturing()
    torch.cuda.empty_cache()  # an internal error while a capture is under way
    assert torch.rand(3, device="cuda").isfinite().all()  # likewise
    assert [record.message.count("cannot be captured") for record in caplog.records] == [1]
    eager = nf.Sampler(score, SHAPE, SIGMAS, TABLE, device="cuda", graph=False)
    assert torch.equal(found, eager(2, seed=1))
    good = pair(Conv().cuda(), SHAPE, SIGMAS, TABLE)  # captures go on working
    assert torch.equal(good[0](2, seed=1), good[1](2, seed=1))


def test_what_waits_is_named_with_its_line():
    x = torch.zeros(4, device="cuda")
    with pytest.raises(CaptureError, match=r"it waits for the device \(.*line \d+: .*item"):
        capture.capture(lambda: x.sum().item(), torch.device("cuda"))
