"""begin_step against the specification, and the captured loop whose head it is."""

import pytest
import torch
from cases.common import STEP, Buffers, every_triton_way

CONDITIONS = (torch.tensor([4, 5, 6]), torch.tensor([2.0, 0.5, 0.1]), None)
HALF, LAST = torch.float16, torch.channels_last


@every_triton_way
@pytest.mark.parametrize("samples", [1, 1500])
@pytest.mark.parametrize("conditions", CONDITIONS, ids=["labels", "levels", "none"])
def test_steps_count_up_and_stay_at_the_last_row(way, conditions, samples):
    """In noise beyond the end of the table, which holds its last row."""
    from ncsn_fast.kernels.triton.begin_step import begin_step

    buffers = Buffers(way.device)
    values = torch.randn(3, 9, generator=torch.Generator().manual_seed(4))
    table = buffers.input(values)
    counter = torch.tensor([1, STEP], device=way.device)
    row, step = buffers.output((9,), torch.float32), buffers.output((), torch.int64)
    told, condition = None, None
    if conditions is not None:
        told = buffers.input(conditions)
        condition = buffers.output((samples,), conditions.dtype)
    for index in (1, 2, 2, 2):
        before = counter.cpu().clone()
        begin_step(counter, table, told, row, step, condition)
        assert torch.equal(counter.cpu(), before + 1)
        assert torch.equal(row.cpu(), values[index])
        assert step.item() == before[1]
        assert condition is None or torch.equal(condition.cpu(), conditions[index].expand(samples))
    buffers.check()


class Loop:
    """A captured loop as the engine runs it, with a network of one multiplication."""

    rows = 5

    def __init__(self):
        def on_device(*shape, **kind):
            return torch.empty(*shape, device="cuda", **kind)

        self.x, self.history, self.input = on_device(3, 4, 3, 16, 16).unbind()
        self.n = torch.empty_like(self.input, dtype=HALF, memory_format=LAST)
        self.table = torch.rand(self.rows, 9, device="cuda")
        self.row, self.ids = on_device(9), torch.arange(4, device="cuda")
        self.labels = torch.arange(self.rows, device="cuda")
        self.label = on_device(4, dtype=torch.int64)
        self.seed, self.now = torch.tensor([11, 0], device="cuda").unbind()
        self.counter = torch.zeros(2, dtype=torch.int64, device="cuda")

    def reset(self):
        for tensor in (self.x, self.history, self.input, self.counter):
            tensor.zero_()

    def step(self):
        from ncsn_fast.kernels.triton.begin_step import begin_step
        from ncsn_fast.kernels.triton.sampler_update import sampler_update

        begin_step(self.counter, self.table, self.labels, self.row, self.now, self.label)
        torch.mul(self.input, self.label.view(-1, 1, 1, 1) - 2.5, out=self.n)
        sampler_update(
            self.x, self.n, self.row, self.seed, self.now, self.ids,
            None, self.history, None, None, None, self.x, self.history, self.input,
            add_noise=True,
        )  # fmt: skip

    def run(self, step):
        """The state after each step, beyond the end of the table too."""
        states = []
        for _ in range(self.rows + 2):
            step()
            states.append(self.x.clone())
        return torch.stack(states)

    def capture(self):
        """The step as a graph; what is compiled has run before."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.reset()
        return graph


@pytest.fixture
def loop():
    torch.manual_seed(0)
    loop = Loop()
    loop.reset()
    return loop


@pytest.mark.gpu
def test_replays_of_a_graph_are_the_eager_steps_bit_for_bit(loop):
    eager = loop.run(loop.step)
    graph = loop.capture()
    assert torch.equal(loop.run(graph.replay), eager)
    assert torch.isfinite(eager).all()


@pytest.mark.gpu
def test_each_replay_draws_fresh_noise_and_a_reset_repeats_it(loop):
    graph = loop.capture()
    loop.table.copy_(torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1, 0]))  # x ← z
    first = loop.run(graph.replay)
    assert len(first.flatten(1).unique(dim=0)) == len(first)
    loop.reset()
    assert torch.equal(loop.run(graph.replay), first)
    loop.reset()
    loop.seed.fill_(12)
    assert not torch.equal(loop.run(graph.replay), first)
