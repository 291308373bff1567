"""Which implementation runs, and what is said when a wish cannot be met."""

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.ops import backends


def test_the_specification_runs_where_nothing_faster_is_there():
    name, reason = backends.resolve()
    assert name == "torch"
    assert "no cpp kernels" in reason


def test_use_backend_stays_or_ends_with_its_block():
    with nf.use_backend("torch"):
        assert backends.resolve()[1] == "asked for by use_backend"
    assert "cpp" in backends.resolve()[1]
    nf.use_backend("torch")
    assert backends.resolve()[1] == "asked for by use_backend"
    nf.use_backend("auto")
    assert "cpp" in backends.resolve()[1]


def test_the_environment_is_asked_last(monkeypatch):
    monkeypatch.setenv("NCSN_FAST_BACKEND", "torch")
    assert backends.resolve()[1] == "asked for by NCSN_FAST_BACKEND"
    assert backends.resolve("torch")[1] == "asked for by the backend argument"


@pytest.mark.parametrize("name", ["triton", "cpp"])
def test_a_backend_that_cannot_run_is_refused_with_the_reason(name, monkeypatch):
    message = f"backend '{name}' cannot run here, because this version .* has no {name} kernels"
    with pytest.raises(ValueError, match="use_backend: " + message):
        nf.use_backend(name)
    with pytest.raises(ValueError, match="the backend argument: " + message):
        nf.Sampler(
            lambda x, y: x, (2,), [1.0, 0.5], step_size=1e-3, steps_per_level=1, backend=name
        )
    monkeypatch.setenv("NCSN_FAST_BACKEND", name)
    with pytest.raises(ValueError, match="NCSN_FAST_BACKEND: " + message):
        backends.resolve()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend 'cuda' is unknown; choose one of"):
        backends.resolve("cuda")


def test_devices_do_not_need_a_fast_backend():
    x = torch.zeros(2, 3)
    ids = torch.arange(2)
    row = torch.tensor([1.0] + [0.0] * 8)
    from ncsn_fast import ops

    new = ops.sampler_update(x, x + 1, row, seed=0, step=0, sample_ids=ids, add_noise=False)
    assert torch.equal(new.x, x)
