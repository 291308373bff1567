"""sampler_update and begin_step through their public functions: one answer from every backend."""

import sys

import pytest
import torch
from helpers.operations import (
    KEY,
    LAST,
    SHAPE,
    both,
    close,
    device,
    draw,
    every_backend,
    ids,
    row,
)

import ncsn_fast as nf
from ncsn_fast import ops
from ncsn_fast.reference import StepResult


def everything():
    x = draw(*SHAPE)
    return {
        "history": draw(*SHAPE, seed=2),
        "guidance": draw(*SHAPE, seed=3),
        "mask": x > 0,
        "known": draw(*SHAPE, seed=4),
        "scale_input": True,
        "sample_ids": ids(),
        **KEY,
    }


def test_the_update_is_the_same_on_both_backends(backend):
    n = draw(*SHAPE, dtype=torch.float16, seed=1).contiguous(memory_format=LAST)
    found = both(backend, ops.sampler_update, draw(*SHAPE), n, row(), **everything())
    for a, b in zip(*found, strict=True):
        assert close(a, b)


def test_a_scaled_input_is_the_state_times_its_factor(backend):
    wish = {"scale_input": True, "sample_ids": ids(), **KEY}
    for result in both(backend, ops.sampler_update, draw(*SHAPE), draw(*SHAPE), row(), **wish):
        assert torch.equal(result.network_input, result.x * row()[7])


def test_the_networks_input_is_the_state_itself_unless_it_is_scaled(backend):
    for result in both(
        backend, ops.sampler_update, draw(*SHAPE), draw(*SHAPE), row(), sample_ids=ids(), **KEY
    ):
        assert result.network_input is result.x


@every_backend
def test_the_update_can_be_made_in_place(backend):
    x, n, history = draw(*SHAPE), draw(*SHAPE, seed=1), draw(*SHAPE, seed=2)
    which = {"history": history, "sample_ids": ids(), "backend": backend, **KEY}
    expected = ops.sampler_update(x.clone(), n, row(), **which)
    ops.sampler_update(x, n, row(), **which, out=StepResult(x, history, x))
    assert torch.equal(x, expected.x)
    assert torch.equal(history, expected.history)


def memory(offset, like):
    """A tensor on the memory of another one, some elements further on."""
    size = like.numel()
    buffer = torch.zeros(size + offset, device=device())
    return buffer[:size].view(SHAPE), buffer[offset:].view(SHAPE)


def outputs(**change):
    return StepResult(*{**dict.fromkeys(StepResult._fields, None), **change}.values())


def bad_outputs():
    x, other = memory(7, draw(*SHAPE))
    good = draw(*SHAPE)
    last = good.clone(memory_format=LAST)
    yield "it has to be", x, outputs(x=torch.empty(2, 3, 4, 5, device=device()), network_input=good)
    yield "has to be contiguous", x, outputs(x=last, network_input=good)
    yield "out.x is torch.float64", x, outputs(x=good.double(), network_input=good)
    yield "shares memory with an input", x, outputs(x=other, network_input=good)
    yield "out.network_input has strides", x, outputs(x=good, network_input=last)
    yield "out.network_input is .1, 3", x, outputs(x=good, network_input=good[:1])
    yield "the input is not scaled: give out.x", x, outputs(x=good, network_input=good.clone())
    yield "out.history belongs to history", x, outputs(x=good, history=x, network_input=good)


@pytest.mark.parametrize("case", range(8))
def test_outputs_that_would_corrupt_something_are_refused(case, backend):
    message, x, out = list(bad_outputs())[case]
    for name in ("torch", backend):
        which = {"sample_ids": ids(), "out": out, "backend": name, **KEY}
        with pytest.raises(ValueError, match=message):
            ops.sampler_update(x, draw(*SHAPE), row(), **which)


def test_a_scaled_input_needs_memory_of_its_own():
    x, new = draw(*SHAPE), draw(*SHAPE)
    which = {"sample_ids": ids(), "out": StepResult(new, None, new), **KEY}
    with pytest.raises(ValueError, match="the input is to be scaled"):
        ops.sampler_update(x, x.clone(), row(), scale_input=True, **which)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": torch.zeros(3)}, "row is .3,. on"),
        ({"row": torch.zeros(1, 9)}, "row is .1, 9. on"),
        ({"sample_ids": torch.zeros(2, 1, dtype=torch.int64)}, "one id per sample"),
        ({"seed": -1}, "a seed is an integer"),
        ({"seed": torch.tensor(1.0)}, "needed|0-d int64"),
        ({"seed": torch.tensor([1, 2])}, "0-d int64"),
        ({"step": 1 << 32}, "allowed are 0 to"),
        ({"step": torch.tensor(1, dtype=torch.int32)}, "0-d int64"),
        ({"mask": torch.zeros(SHAPE), "known": torch.zeros(SHAPE)}, "has to be bool"),
    ],
)
def test_what_the_kernel_would_misread_is_refused(change, message, backend):
    change = {k: v.to(device()) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    given = {"row": row(), "sample_ids": ids(), **KEY, **change}
    with pytest.raises(ValueError, match=message):
        ops.sampler_update(draw(*SHAPE), draw(*SHAPE), backend=backend, **given)


def test_strides_of_what_enters_do_not_matter(backend):
    wide = draw(2, 3, 4, 8)
    strided = {"n": wide[..., ::2], "history": wide[..., 1::2], "guidance": wide[..., ::2].half()}
    coefficients = torch.stack([row(), row()], 1)[:, 0]
    known = draw(1, 1, 4, 4).expand(SHAPE)
    which = {"sample_ids": torch.arange(4, device=device())[::2], "mask": known > 0, "known": known}
    n = strided.pop("n")
    given = {**strided, **which, **KEY}
    a, b = both(backend, ops.sampler_update, draw(*SHAPE), n, coefficients, **given)
    assert close(a.x, b.x)
    assert close(a.history, b.history)


def test_a_step_refuses_what_is_not_contiguous():
    given = [torch.zeros(2, dtype=torch.int64), torch.zeros(4, 18)[:, :9], torch.arange(4)]
    given += [torch.zeros(9), torch.tensor(0), torch.zeros(2, dtype=torch.int64)]
    with pytest.raises(ValueError, match=r"table has strides .* has to be contiguous"):
        ops.begin_step(*given)


@every_backend
def test_a_step_begins_with_its_row(backend):
    table, conditions = draw(4, 9), torch.arange(4, device=device())
    counter = torch.tensor([2, 7], device=device())
    current, step = torch.empty(9, device=device()), torch.tensor(0, device=device())
    condition = torch.empty(5, dtype=torch.int64, device=device())
    for expected in (0, 2, 3, 3):
        if expected == 0:  # before the first row, as beyond the last
            counter[0] = -4
        elif expected == 2:
            counter[0] = 2
        noise_step = int(counter[1])
        ops.begin_step(counter, table, conditions, current, step, condition, backend=backend)
        assert torch.equal(current, table[expected])
        assert condition.tolist() == [expected] * 5
        assert int(step) == noise_step
    assert counter.tolist() == [5, 11]


@pytest.mark.parametrize(
    "change",
    [
        {"counter": torch.zeros(3, dtype=torch.int64)},
        {"counter": torch.zeros(2)},
        {"row": torch.zeros(8)},
        {"table": torch.zeros(4, 9, dtype=torch.float64)},
        {"condition": None},
        {"conditions": torch.zeros(4)},
    ],
)
def test_a_step_refuses_what_does_not_fit(change):
    given = {
        "counter": torch.zeros(2, dtype=torch.int64),
        "table": torch.zeros(4, 9),
        "conditions": torch.arange(4),
        "row": torch.zeros(9),
        "step": torch.tensor(0),
        "condition": torch.zeros(2, dtype=torch.int64),
        **change,
    }
    with pytest.raises(ValueError, match=r"needed are|has to be int64|float32|belong together"):
        ops.begin_step(*given.values())


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_on_a_cpu_a_step_begins_without_triton(backend, monkeypatch):
    module = sys.modules["ncsn_fast.ops.begin_step"]
    monkeypatch.setattr(module, "triton_kernel", lambda name: pytest.fail("Triton's kernel"))
    counter, step = torch.zeros(2, dtype=torch.int64), torch.tensor(0)
    ops.begin_step(counter, draw(4, 9), None, row(), step, backend=backend)
    assert counter.tolist() == [1, 1]


def test_a_chain_is_the_same_on_both_backends(monkeypatch, backend):
    torch.manual_seed(0)
    sigmas = nf.geometric_sigmas(5, 0.01, 4)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=sigmas).to(device()).eval()
    # TF32 would round the same state differently where it differs in the last bit.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = {"step_size": 1e-5, "steps_per_level": 2, "seed": (1 << 63) + 5, "precision": "fp32"}
    mask = torch.zeros(8, 8, device=device())
    mask[:4] = 1
    inpainting = {"mask": mask, "known": draw(1, 8, 8), "guidance": lambda x, n, sigma, row: -x}
    for more in ({}, inpainting):
        a, b = (nf.sample(net, 3, backend=name, **settings, **more) for name in ("torch", backend))
        assert close(a, b, 1e-5)
