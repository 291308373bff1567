"""The Triton kernels on a GPU: python -m pytest -m gpu tests/test_gpu_kernels.py."""

import pytest
import torch
from cases.common import FAST_MATH_LIMIT, SEED, STEP, UNALIGNED, Buffers

pytest.importorskip("triton", reason="Triton is not installed")

from cases.parts import OFFSETS, check_offsets, check_words, normals_at, normals_error
from cases.training import (
    SPLIT,
    Training,
    brief,
    check_loss,
    check_perturb,
    check_split,
    loss_cases,
    loss_inputs,
    run_loss,
    training_cases,
)
from cases.update import (
    EVERYTHING,
    SEVERAL_PROGRAMS,
    WAYS,
    Update,
    check_begin_step,
    check_known_replaces_nan,
    check_update,
    check_update_in_place,
    check_update_of_views,
    run_update,
    update_cases,
    update_inputs,
)

from ncsn_fast import noise
from ncsn_fast.kernels.triton.begin_step import begin_step
from ncsn_fast.kernels.triton.dsm_loss import dsm_loss
from ncsn_fast.kernels.triton.perturb import perturb
from ncsn_fast.kernels.triton.sampler_update import sampler_update
from ncsn_fast.noise import PERTURB, SAMPLER

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
HALF, LAST = torch.float16, torch.channels_last
both_mathematics = pytest.mark.parametrize("fast_math", [True, False], ids=["fast", "exact"])
ways = pytest.mark.parametrize("layout", SEVERAL_PROGRAMS, ids=WAYS)


def everything(layout):
    """All of a sampler update, with a network in half precision."""
    shape, last = layout
    return Update(shape, EVERYTHING, HALF, last)


def test_words_are_those_of_philox():
    check_words(DEVICE)


@pytest.mark.parametrize(("fast_math", "limit"), [(True, FAST_MATH_LIMIT), (False, 2e-6)])
def test_normals_are_accurate(fast_math, limit):
    assert normals_error(DEVICE, fast_math) < limit


def test_the_error_of_fast_mathematics_stays_below_its_limit(record_property):
    """2²⁶ draws, 2²² at a time; the figure is in the property ``fast_math_error``."""
    count = 1 << 22
    x, one = torch.zeros(1, count, device=DEVICE), torch.ones(1, device=DEVICE)
    out, ids = torch.empty_like(x), torch.tensor([7], device=DEVICE)
    seed, largest = torch.tensor(SEED - (1 << 64), device=DEVICE), 0.0
    for step in range(16):
        perturb(x, one, seed, torch.tensor(step, device=DEVICE), ids, out, fast_math=True)
        which = {"seed": SEED, "stream": PERTURB, "sample_ids": ids, "step": step}
        exact = noise.normal((count,), **which, dtype=torch.float64)
        largest = max(largest, float((out - exact).abs().max()))
    record_property("fast_math_error", largest)
    print(f"fast mathematics: largest error of 2^26 normals {largest:.3g}")
    assert largest < FAST_MATH_LIMIT


@both_mathematics
@pytest.mark.parametrize("case", update_cases(), ids=str)
def test_sampler_update_is_its_specification(case, fast_math):
    check_update(case, DEVICE, fast_math)


@both_mathematics
@pytest.mark.parametrize("case", training_cases(), ids=brief)
def test_perturb_is_its_specification(case, fast_math):
    check_perturb(case, DEVICE, fast_math)


@both_mathematics
@pytest.mark.parametrize("case", loss_cases(), ids=str)
def test_dsm_loss_and_its_gradient_are_their_specification(case, fast_math):
    check_loss(case, DEVICE, fast_math)


@both_mathematics
@ways
def test_kernels_take_tensors_that_are_not_aligned(layout, fast_math):
    check_update(everything(layout), DEVICE, fast_math, UNALIGNED)
    check_perturb(Training(*layout, HALF), DEVICE, fast_math, UNALIGNED)
    check_loss(Training(*layout, HALF), DEVICE, fast_math, UNALIGNED)


@both_mathematics
@ways
def test_sampler_update_may_write_where_it_reads(layout, fast_math):
    check_update_in_place(layout, DEVICE, fast_math)


@both_mathematics
def test_sampler_update_takes_any_view_of_the_output_of_a_network(fast_math):
    check_update_of_views(DEVICE, fast_math)


@both_mathematics
def test_only_the_known_region_replaces_a_nan(fast_math):
    check_known_replaces_nan(DEVICE, fast_math)


@both_mathematics
@pytest.mark.parametrize("layout", SPLIT, ids=WAYS)
def test_a_batch_may_take_several_launches(layout, fast_math):
    check_split(layout, DEVICE, fast_math)


@pytest.mark.parametrize("samples", [1, 1500])
@pytest.mark.parametrize(
    "conditions", [torch.tensor([4, 5, 6]), torch.tensor([2.0, 0.5, 0.1]), None]
)
def test_steps_count_up_and_stay_at_the_last_row(conditions, samples):
    check_begin_step(conditions, samples, DEVICE)


@pytest.mark.parametrize(("shape", "plan_last", "last"), OFFSETS)
def test_elements_beyond_32_bits_are_found(shape, plan_last, last):
    check_offsets(shape, plan_last, last, DEVICE)


@pytest.mark.parametrize(("shape", "last"), [((70_000, 1), False), ((70_000, 3, 2, 2), True)])
def test_more_samples_than_a_grid_has_rows(shape, last):
    check_update(everything((shape, last)), DEVICE, True)
    check_perturb(Training(shape, last, HALF), DEVICE, True)
    check_loss(Training(shape, last, HALF), DEVICE, True)


@ways
def test_two_runs_are_equal_bit_for_bit(layout):
    update, training = everything(layout), Training(*layout, HALF)
    runs = [
        [
            *run_update(update, update_inputs(update), Buffers(DEVICE), True),
            *run_loss(training, *loss_inputs(training), Buffers(DEVICE), True),
        ]
        for _ in range(2)
    ]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


class Loop:
    """A captured loop as the engine runs it, with a network of one multiplication."""

    rows = 5

    def __init__(self):
        self.x, self.history = torch.empty(2, 4, 3, 16, 16, device=DEVICE).unbind()
        self.input = torch.empty(4, 3, 16, 16, device=DEVICE)
        self.n = torch.empty_like(self.input, dtype=HALF, memory_format=LAST)
        self.table = torch.rand(self.rows, 9, device=DEVICE)
        self.row, self.ids = torch.empty(9, device=DEVICE), torch.arange(4, device=DEVICE)
        self.labels = torch.arange(self.rows, device=DEVICE)
        self.label = torch.empty(4, dtype=torch.int64, device=DEVICE)
        self.seed, self.now = torch.tensor([11, 0], device=DEVICE).unbind()
        self.counter = torch.zeros(2, dtype=torch.int64, device=DEVICE)

    def reset(self):
        for tensor in (self.x, self.history, self.input, self.counter):
            tensor.zero_()

    def step(self):
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


def test_replays_of_a_graph_are_the_eager_steps_bit_for_bit(loop):
    eager = loop.run(loop.step)
    graph = loop.capture()
    assert torch.equal(loop.run(graph.replay), eager)
    assert torch.isfinite(eager).all()


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


def need_memory(gigabytes):
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free memory on the GPU")


HUGE = (
    ((1 << 21) + 2, 1024),
    ((1 << 31) // 1023 + 2, 1023),
    ((1 << 31) // 3072 + 2, 3, 32, 32),
)
WHICH_STEP = {"seed": SEED, "step": STEP}


def device_step():
    """The same, where kernels read it."""
    device = torch.device(DEVICE)
    return {"seed": noise.seed_tensor(SEED, device), "step": noise.step_tensor(STEP, device)}


@pytest.mark.parametrize("shape", HUGE, ids=WAYS)
def test_sampler_update_beyond_32_bits(shape):
    need_memory(40)
    x = torch.zeros(shape, device=DEVICE)
    layout = LAST if len(shape) == 4 else torch.contiguous_format
    n = torch.zeros_like(x, dtype=HALF, memory_format=layout)
    network_input = torch.full_like(x, torch.nan)
    row = torch.tensor([1.0, 1, 0, 1, 0, 0, 0, 0.5, 0], device=DEVICE)
    sampler_update(
        x, n, row, **device_step(), sample_ids=torch.arange(len(x), device=DEVICE),
        z=None, history=None, guidance=None, mask=None, known=None,
        x_out=x, history_out=None, input_out=network_input,
        add_noise=True, fast_math=False,
    )  # fmt: skip
    for i in (0, len(x) // 3, len(x) - 2, len(x) - 1):
        z = noise.normal(shape[1:], **WHICH_STEP, stream=SAMPLER, sample_ids=[i])[0]
        assert torch.allclose(x[i].cpu(), z, rtol=0, atol=5e-5)
        assert torch.equal(network_input[i], x[i] / 2)


@pytest.mark.parametrize("elements", [(1 << 31) + 1024, (1 << 31) + 1023])
def test_one_sample_beyond_32_bits(elements):
    need_memory(40)
    x, sigma = torch.zeros(1, elements, device=DEVICE), torch.ones(1, device=DEVICE)
    out, last_id = torch.empty_like(x), (1 << 48) - 1
    ids = torch.tensor([last_id], device=DEVICE)
    perturb(x, sigma, **device_step(), sample_ids=ids, out=out, fast_math=False)
    blocks = torch.cat([torch.arange(256), (1 << 29) + torch.arange(256)])
    z = normals_at(blocks, SEED, PERTURB, last_id, STEP)
    found = torch.cat([out[0, :1024], out[0, 1 << 31 :]]).cpu().double()
    assert (found - z.flatten()[: len(found)]).abs().max() < 5e-5


def test_dsm_loss_beyond_32_bits():
    need_memory(40)
    n = torch.zeros(HUGE[0], dtype=HALF, device=DEVICE)
    loss, gradient = torch.full((len(n),), torch.nan, device=DEVICE), torch.empty_like(n)
    ids, one = torch.arange(len(n), device=DEVICE), torch.ones(1, device=DEVICE)
    which = {**device_step(), "sample_ids": ids, "upstream": one.expand(len(n))}
    dsm_loss(n, None, **which, loss=loss, gradient=gradient, fast_math=False)
    assert torch.isfinite(loss).all()
    for i in (0, len(n) // 3, len(n) - 1):
        z = noise.normal(n.shape[1:], **WHICH_STEP, stream=PERTURB, sample_ids=[i])[0]
        assert float(loss[i]) == pytest.approx(float(z.square().sum()) / 2, rel=1e-5)
        assert torch.allclose(gradient[i].cpu(), z.half(), rtol=0, atol=5e-3)
