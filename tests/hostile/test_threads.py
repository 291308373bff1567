"""What threads share: a sampler gives eight of them the images that it gives to one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import ncsn_fast as nf
from ncsn_fast.device import backends
from ncsn_fast.models.base import evaluating, whole_weights

SIGMAS = nf.geometric_sigmas(5, 0.01, 6)
JOBS = [(n, seed) for n in (1, 2, 3) for seed in range(4)]
METHODS = {
    "annealed_langevin": {"method": "annealed_langevin", "step_size": 2e-5, "steps_per_level": 1},
    "dpmpp_2m": {"method": "dpmpp_2m", "steps": 5},
}


def network() -> nf.NCSNv2:
    torch.manual_seed(0)
    return nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=SIGMAS).eval()


def weights(net: nn.Module, factor: float) -> dict[str, Tensor]:
    return {k: v.clone() if k == "sigmas" else v * factor for k, v in net.state_dict().items()}


def tally(sampler: nf.Sampler, wanted: dict[str, list[Tensor]], repeat: int = 2) -> Counter[str]:
    """Which images eight threads got for the jobs, by name; "other" for none of them."""

    def which(k: int) -> str:
        n, seed = JOBS[k]
        x = sampler(n, seed=seed, batch_size=2)
        return next((name for name, all_ in wanted.items() if torch.equal(x, all_[k])), "other")

    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(which, list(range(len(JOBS))) * repeat))


def alone(sampler: nf.Sampler) -> list[Tensor]:
    return [sampler(n, seed=seed, batch_size=2) for n, seed in JOBS]


@contextlib.contextmanager
def meanwhile(work: Callable[[int], object]) -> Iterator[None]:
    """Another thread does it again and again inside; what it raises is raised here."""
    stop, failed = threading.Event(), []

    def run() -> None:
        turn = 0
        try:
            while not stop.wait(0.002):
                work(turn)
                turn += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_shared_sampler_gives_the_images_that_it_gives_to_one(method: str, precision: str):
    sampler = nf.Sampler(network(), precision=precision, **METHODS[method])
    assert tally(sampler, {"same": alone(sampler)}) == {"same": 2 * len(JOBS)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_call_has_the_old_weights_or_the_new_ones_as_a_whole(precision: str):
    net = network()
    states = [weights(net, factor) for factor in (1.0, 1.3)]
    sampler = nf.Sampler(net, precision=precision, **METHODS["annealed_langevin"])
    wanted = {}
    for name, state in zip(("old", "new"), states, strict=True):
        net.load_state_dict(state)
        wanted[name] = alone(sampler)
    assert not any(map(torch.equal, wanted["old"], wanted["new"]))
    found: Counter[str] = Counter()
    with meanwhile(lambda turn: net.load_state_dict(states[turn % 2])):
        for _ in range(100):  # the other thread may get no turn for a while
            found += tally(sampler, wanted)
            if len(found) > 1:
                break
    assert set(found) == {"old", "new"}


def test_weights_changed_without_a_lock_are_taken_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("ncsn_fast.models.base._PATIENCE", 600.0)
    net = network()
    states = [weights(net, factor) for factor in (1.0, 1.3)]
    sampler = nf.Sampler(net, precision="bf16", **METHODS["dpmpp_2m"])
    wanted = {}
    for name, state in zip(("old", "new"), states, strict=True):
        net.load_state_dict(state)
        wanted[name] = alone(sampler)

    @torch.no_grad()
    def change(turn: int) -> None:
        began = time.monotonic()
        for name, parameter in net.named_parameters():
            parameter.copy_(states[turn % 2][name])
        # Long enough to take them all, also where threads wait for their turns.
        pause.wait(0.1 + 10 * (time.monotonic() - began))

    pause = threading.Event()
    with meanwhile(change):
        found = tally(sampler, wanted, repeat=1)
    assert not set(found) - {"old", "new"}


def test_weights_that_never_stop_changing_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ncsn_fast.models.base._PATIENCE", 0.05)
    net = network()

    def change(turn: int) -> None:
        with torch.no_grad():
            net.end_conv.weight.mul_(1.0)

    def take() -> None:  # while another thread changes them
        before = net.end_conv.weight._version
        while net.end_conv.weight._version == before:
            pass

    with (
        meanwhile(change),
        pytest.raises(RuntimeError, match=r"changed all the time.*copy\.deepcopy"),
    ):
        whole_weights(net, take)


def test_a_trainer_may_run_beside_a_sampler():
    net = network()
    data = torch.rand(16, 1, 8, 8)
    config = nf.TrainConfig(steps=20, batch_size=4, ema=0.5, log_every=10)
    trainer = nf.Trainer(net, data, config)
    sampler = nf.Sampler(net, precision="bf16", **METHODS["dpmpp_2m"])
    reference = network()
    nf.Trainer(reference, data, config).fit()
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(trainer.fit)
        while not training.done():
            assert sampler(2, seed=0).isfinite().all()
        training.result()
    same = zip(net.state_dict().values(), reference.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    fresh = nf.Sampler(net, precision="bf16", **METHODS["dpmpp_2m"])
    assert torch.equal(sampler(2, seed=0), fresh(2, seed=0))


def test_saving_and_loading_beside_a_sampler_changes_no_image(tmp_path):
    net = network()
    sampler = nf.Sampler(net, precision="bf16", **METHODS["dpmpp_2m"])
    wanted = {"same": alone(sampler)}

    def there_and_back(turn: int) -> None:
        nf.save_checkpoint(net, tmp_path / "net.safetensors")
        net.load_state_dict(nf.load_checkpoint(tmp_path / "net.safetensors").state_dict())

    with meanwhile(there_and_back):
        assert tally(sampler, wanted, repeat=1) == {"same": len(JOBS)}


def test_a_prepared_network_refreshed_by_one_thread_computes_right_in_another():
    net = network()
    prepared = nf.prepare_for_inference(net, "bf16")
    states = [weights(net, factor) for factor in (1.0, 1.3)]
    x = torch.rand(2, 1, 8, 8)
    wanted = []
    for state in states:
        net.load_state_dict(state)
        prepared.refresh()
        wanted.append(prepared.normalized(x))

    def change(turn: int) -> None:
        net.load_state_dict(states[turn % 2])
        prepared.refresh()

    with meanwhile(change):
        found = [prepared.normalized(x) for _ in range(100)]
    assert all(any(torch.equal(one, whole) for whole in wanted) for one in found)


class Dropping(nn.Module):
    """A network of others that is not the same in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.mean = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        sigma = SIGMAS[labels].view(-1, 1)
        return (self.mean - x + self.drop(torch.ones_like(x)) - 1) / (1 + sigma**2)


def test_a_module_of_others_is_in_evaluation_mode_until_the_last_thread_has_left():
    net = Dropping().train()
    first, second = evaluating(net), evaluating(net)
    first.__enter__()
    second.__enter__()
    first.__exit__(None)
    assert not net.drop.training
    second.__exit__(None)
    assert net.training
    assert net.drop.training
    sampler = nf.Sampler(net, (3,), SIGMAS, **METHODS["annealed_langevin"])
    assert tally(sampler, {"same": alone(sampler)}) == {"same": 2 * len(JOBS)}
    assert net.drop.training


def test_parameters_of_others_that_change_during_a_chain_are_told():
    net = Dropping()

    def change(row: int, x: Tensor, n: Tensor) -> None:
        with torch.no_grad():
            net.mean.add_(1)

    sampler = nf.Sampler(net, (3,), SIGMAS, **METHODS["annealed_langevin"])
    with pytest.raises(RuntimeError, match="parameters were changed while it was sampled from"):
        sampler(2, seed=0, callback=change)
    as_function = nf.Sampler(lambda *a: net(*a), (3,), SIGMAS, **METHODS["annealed_langevin"])
    as_function(2, seed=0, callback=change)


def test_a_network_put_into_training_mode_during_a_chain_is_told():
    net = Dropping().eval()
    sampler = nf.Sampler(net, (3,), SIGMAS, **METHODS["annealed_langevin"])

    def validate(row: int, x: Tensor, n: Tensor) -> None:
        net.eval()
        net.train()

    with pytest.raises(RuntimeError, match=r"put into training mode.*copy\.deepcopy"):
        sampler(2, seed=0, callback=validate)
    assert net.training
    net.eval()
    sampler(2, seed=0, callback=lambda row, x, n: net.eval())


def test_blocks_of_use_backend_that_overlap_leave_the_choice_as_it_was():
    before = backends.wished()
    first = nf.use_backend("torch")
    second = nf.use_backend("auto")
    first.__exit__(None, None, None)
    assert backends.wished()[0] == before[0]
    second.__exit__(None, None, None)
    third, fourth = nf.use_backend("auto"), nf.use_backend("torch")
    third.__exit__(None, None, None)
    assert backends.wished() == ("torch", "use_backend")
    fourth.__exit__(None, None, None)
    assert backends.wished() == before


def test_weights_that_change_inside_a_chain_do_not_reach_it():
    net = network()
    sampler = nf.Sampler(net, precision="bf16", **METHODS["annealed_langevin"])
    expected = sampler(2, seed=0)

    def change(row: int, x: Tensor, n: Tensor) -> None:
        if row == 1:
            net.load_state_dict(weights(net, 1.3))
            inner.append(sampler(2, seed=0))

    inner: list[Tensor] = []
    assert torch.equal(sampler(2, seed=0, callback=change), expected)
    assert torch.equal(sampler(2, seed=0), inner[0])
    assert not torch.equal(inner[0], expected)
