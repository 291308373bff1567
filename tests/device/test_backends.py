"""Which implementation runs, and what is said when a wish cannot be met."""

import functools
import sys

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast import ops
from ncsn_fast.device import backends, native


@pytest.fixture
def machine(monkeypatch):
    """Says whether the machine has the kernels of the CPU, and if not, why."""

    def has(reason):
        monkeypatch.setattr(native, "missing", functools.cache(lambda: reason))
        backends.missing.cache_clear()

    yield has
    backends.missing.cache_clear()


def test_a_cpu_gets_its_kernels(machine):
    machine(None)
    assert backends.resolve() == ("cpp", "the fastest on cpu")


def test_the_specification_runs_where_nothing_faster_is_there(machine):
    machine("there is no C++ compiler")
    assert backends.resolve() == ("torch", "cpp is not available: there is no C++ compiler")


def test_other_devices_do_not_wait_for_the_kernels_of_the_cpu(monkeypatch):
    monkeypatch.setattr(native, "missing", lambda: pytest.fail("built"))
    backends.missing.cache_clear()
    name, reason = backends.resolve("auto", "mps")
    assert name == "torch"
    assert "its kernels run on CPUs, and the tensors are on mps" in reason


def test_who_wants_pytorch_does_not_wait_for_a_build(monkeypatch):
    monkeypatch.setattr(native, "missing", lambda: pytest.fail("built"))
    backends.missing.cache_clear()
    x, ids = torch.zeros(2, 3), torch.arange(2)
    ops.perturb(x, x[:, 0], seed=0, step=0, sample_ids=ids, backend="torch")
    monkeypatch.setenv("NCSN_FAST_BACKEND", "torch")
    ops.perturb(x, x[:, 0], seed=0, step=0, sample_ids=ids)


def test_use_backend_stays_or_ends_with_its_block(machine):
    machine(None)
    with nf.use_backend("torch"):
        assert backends.resolve()[1] == "asked for by use_backend"
    assert backends.resolve()[0] == "cpp"
    nf.use_backend("torch")
    assert backends.resolve()[1] == "asked for by use_backend"
    nf.use_backend("auto")
    assert backends.resolve()[0] == "cpp"


def test_the_environment_is_asked_last(monkeypatch):
    monkeypatch.setenv("NCSN_FAST_BACKEND", "torch")
    assert backends.resolve()[1] == "asked for by NCSN_FAST_BACKEND"
    assert backends.resolve("torch")[1] == "asked for by the backend argument"


def test_a_backend_that_cannot_run_is_refused_with_the_reason(machine, monkeypatch):
    machine("there is no ninja")
    message = "backend 'cpp' cannot run here, because there is no ninja"
    with pytest.raises(ValueError, match="use_backend: " + message):
        nf.use_backend("cpp")
    with pytest.raises(ValueError, match="the backend argument: " + message):
        nf.Sampler(
            lambda x, y: x, (2,), [1.0, 0.5], step_size=1e-3, steps_per_level=1, backend="cpp"
        )
    monkeypatch.setenv("NCSN_FAST_BACKEND", "cpp")
    with pytest.raises(ValueError, match="NCSN_FAST_BACKEND: " + message):
        backends.resolve()


def test_the_kernels_of_the_cpu_leave_float16_to_the_specification(machine, caplog):
    machine(None)
    backends._tell.cache_clear()
    cpu = torch.device("cpu")
    with caplog.at_level("INFO", "ncsn_fast"):
        assert backends.choose("auto", cpu, half=True) == "torch"
    assert "float32 and bfloat16, not float16" in caplog.text
    with pytest.raises(ValueError, match="float32 and bfloat16, not float16"):
        backends.choose("cpp", cpu, half=True)


@pytest.fixture
def compiled(monkeypatch):
    """Triton as its users have it, without the interpreter that the other tests run kernels in."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    backends.missing.cache_clear()
    yield triton
    backends.missing.cache_clear()


def test_kernels_without_a_gpu_are_refused(compiled, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="because there is no GPU that this torch can use"):
        nf.use_backend("triton")
    assert backends.resolve("auto", "cuda") == (
        "torch",
        "triton is not available: there is no GPU that this torch can use",
    )


def test_kernels_on_the_tensors_of_a_cpu_are_refused(compiled, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="run on GPUs, and the tensors are on cpu"):
        backends.resolve("triton", "cpu")


def test_a_gpu_gets_the_kernels(compiled, machine, monkeypatch):
    machine(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.resolve("auto", "cuda") == ("triton", "the fastest on cuda")
    assert backends.resolve("auto", "cpu")[0] == "cpp"


def test_an_old_triton_is_not_used(compiled, monkeypatch):
    monkeypatch.setattr(compiled, "__version__", "3.3.1")
    with pytest.raises(ValueError, match=r"Triton 3.3.1 is installed and the kernels need 3.4"):
        backends.resolve("triton", "cuda")


def test_without_triton_the_specification_runs(compiled, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "Triton cannot be imported" in backends.resolve("auto", "cuda")[1]
    with pytest.raises(ValueError, match="pip install triton"):
        backends.resolve("triton", "cuda")


def test_auto_says_once_which_path_it_took(machine, caplog):
    machine("there is no ninja")
    backends._tell.cache_clear()
    x = torch.zeros(2, 3)
    with caplog.at_level("INFO", "ncsn_fast"):
        for _ in range(3):
            ops.perturb(x, x[:, 0], seed=0, step=0, sample_ids=torch.arange(2))
    (message,) = caplog.messages
    assert message.startswith("operations on cpu run on backend 'torch' (cpp is not available: ")


def test_a_gpu_left_to_the_specification_is_a_warning(compiled, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    backends._tell.cache_clear()
    assert backends.choose("auto", torch.device("cuda")) == "torch"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no GPU" in record.message


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend 'cuda' is unknown; choose one of"):
        backends.resolve("cuda")


def test_a_sampler_follows_the_backend_of_the_moment(machine):
    machine("there is no ninja")
    sampler = nf.Sampler(lambda x, y: x, (2,), [1.0, 0.5], step_size=1e-3, steps_per_level=1)
    asked = []
    resolve = backends.resolve

    def spy(*arguments):
        asked.append(resolve(*arguments))
        return asked[-1]

    backends.resolve = spy
    try:
        with nf.use_backend("torch"):
            sampler(1, seed=0)
        sampler(1, seed=0)
    finally:
        backends.resolve = resolve
    reasons = [reason for _, reason in asked]
    assert "asked for by use_backend" in reasons
    assert any("cpp is not available" in reason for reason in reasons)


@pytest.mark.parametrize(
    "change",
    [
        {"n": torch.zeros(1, 3)},
        {"z": torch.zeros(3)},
        {"history": torch.zeros(1, 3)},
        {"guidance": torch.zeros(1, 3)},
        {"known": torch.zeros(1, 3), "mask": torch.zeros(2, 3, dtype=torch.bool)},
        {"sample_ids": torch.arange(1)},
    ],
)
def test_operations_refuse_what_would_broadcast(change):
    x = torch.zeros(2, 3)
    row = torch.tensor([1.0] + [0.0] * 8)
    given = {"n": x, "sample_ids": torch.arange(2), **change}
    with pytest.raises(ValueError, match=r"shape and device have to agree|one id per sample"):
        ops.sampler_update(x, given.pop("n"), row, seed=0, step=0, **given)


def test_training_operations_refuse_what_would_broadcast():
    x, sigma, ids = torch.zeros(2, 3), torch.ones(2), torch.arange(2)
    which = {"seed": 0, "step": 0}
    for operation in (ops.perturb, ops.dsm_loss):
        with pytest.raises(ValueError, match="each sample has one of both"):
            operation(x, sigma, sample_ids=ids[:1], **which)
        with pytest.raises(ValueError, match="each sample has one of both"):
            operation(x, sigma[:1], sample_ids=ids, **which)
        with pytest.raises(ValueError, match="z has shape"):
            operation(x, sigma, sample_ids=ids, z=torch.zeros(3), **which)
