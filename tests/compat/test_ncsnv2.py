"""The official sampler's signature and return value."""

import inspect

import numpy as np
import pytest
import torch
from helpers import networks
from helpers.official import Official

import ncsn_fast as nf
from ncsn_fast.compat import ncsn
from ncsn_fast.compat.ncsnv2 import (
    anneal_Langevin_dynamics,
    anneal_Langevin_dynamics_inpainting,
    anneal_Langevin_dynamics_interpolation,
)
from ncsn_fast.device import memory
from ncsn_fast.support import progress

SIGMAS = np.exp(np.linspace(np.log(5.0), np.log(0.01), 6)).astype(np.float32)


def scorenet(x, labels):
    assert labels.dtype == torch.int64
    assert labels.shape == (len(x),)
    return -x / (1 + torch.from_numpy(SIGMAS)[labels].view(-1, 1, 1, 1) ** 2)


def own(name):
    return networks.network(name, seed=7, sigmas=SIGMAS, channels=2).eval()


def official(name):
    return Official(name, seed=7, sigmas=SIGMAS, channels=2)


# A foreign network, an official one and both generations of this package's, all of which see
# 2 × 8 × 8.
NETWORKS = {
    "foreign": lambda: scorenet,
    "official": lambda: official("NCSNv2"),
    "NCSNv2": lambda: own("NCSNv2"),
    "NCSN": lambda: own("NCSN"),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def step_sizes(steps, epsilon):
    """(level, α) of every step of algorithm 1, with the code's α."""
    for level, sigma in enumerate(SIGMAS):
        for _ in range(steps):
            yield level, float(epsilon * (sigma / SIGMAS[-1]) ** 2)


@torch.no_grad()
def drift(score, x, level, alpha):
    return x + alpha * score(x, torch.full((len(x),), level))


def published_formula(score, x, steps, epsilon, denoise):
    """Annealed Langevin dynamics, one torch draw per step."""
    states = []
    for level, alpha in step_sizes(steps, epsilon):
        x = drift(score, x, level, alpha) + np.sqrt(2 * alpha) * torch.randn_like(x)
        states.append(x)
    if denoise:
        states.append(drift(score, x, len(SIGMAS) - 1, SIGMAS[-1] ** 2))
    return states


def published_inpainting(score, x, reference, steps, epsilon, order):
    """The known left half noised before each step or once per level, then the step."""
    known = reference.repeat_interleave(x.shape[1], 0)[..., :4]
    x, states = x.flatten(0, 1), []
    for i, (level, alpha) in enumerate(step_sizes(steps, epsilon)):
        if order == "ncsnv2" or i % steps == 0:
            noised = known + float(SIGMAS[level]) * torch.randn_like(known)
        shown = x.clone()
        shown[..., :4] = noised
        states.append(shown.clamp(0, 1) if order == "ncsn" else shown)
        z = torch.randn_like(x)
        x = drift(score, shown, level, alpha) + np.sqrt(2 * alpha) * z
    return states


def published_interpolation(score, x, number, steps, epsilon):
    """Sample j of a row sees cos θ_j·p + sin θ_j·q with two draws a row and step."""
    x, states = x.repeat_interleave(number, 0), []
    theta = torch.linspace(0, np.pi / 2, number)
    for level, alpha in step_sizes(steps, epsilon):
        p, q = torch.randn(len(x) // number, 2, 8, 8), torch.randn(len(x) // number, 2, 8, 8)
        z = torch.stack([t.cos() * p + t.sin() * q for t in theta], 1).flatten(0, 1)
        x = drift(score, x, level, alpha) + np.sqrt(2 * alpha) * z
        states.append(x)
    return states


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


EMPTY = inspect.Parameter.empty
COMMON = {"x_mod": EMPTY, "scorenet": EMPTY, "sigmas": EMPTY}
OFFICIAL = {
    anneal_Langevin_dynamics: {
        **COMMON,
        "n_steps_each": 200,
        "step_lr": 8e-6,
        "final_only": False,
        "verbose": False,
        "denoise": True,
    },
    anneal_Langevin_dynamics_inpainting: {
        "x_mod": EMPTY,
        "refer_image": EMPTY,
        "scorenet": EMPTY,
        "sigmas": EMPTY,
        "image_size": EMPTY,
        "n_steps_each": 100,
        "step_lr": 8e-6,
    },
    anneal_Langevin_dynamics_interpolation: {
        **COMMON,
        "n_interpolations": EMPTY,
        "n_steps_each": 200,
        "step_lr": 8e-6,
        "final_only": False,
        "verbose": False,
    },
}


@pytest.mark.parametrize("function", OFFICIAL, ids=lambda function: function.__name__)
def test_the_positional_arguments_are_the_official_ones(function):
    parameters = inspect.signature(function).parameters.items()
    official = [(n, p.default) for n, p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert official == list(OFFICIAL[function].items())


@pytest.mark.parametrize("denoise", [True, False])
def test_with_torch_noise_it_equals_the_published_formula(denoise, network):
    x = torch.rand(3, 2, 8, 8)
    torch.manual_seed(1)
    expected = published_formula(network, x, 2, 8e-6, denoise)
    torch.manual_seed(1)
    states = anneal_Langevin_dynamics(x, network, SIGMAS, 2, 8e-6, denoise=denoise, noise="torch")
    assert len(states) == 12 + denoise
    assert_equal(states, expected)


@pytest.mark.parametrize("order", ["ncsnv2", "ncsn"])
def test_inpainting_with_torch_noise_equals_both_originals(order, network):
    x, reference = torch.rand(2, 3, 2, 8, 8), torch.rand(2, 2, 8, 8)
    before = x.clone()
    torch.manual_seed(1)
    expected = published_inpainting(network, x, reference, 2, 8e-6, order)
    torch.manual_seed(1)
    states = anneal_Langevin_dynamics_inpainting(
        x, reference, network, SIGMAS, 8, 2, 8e-6, order=order, noise="torch"
    )
    assert [tuple(state.shape) for state in states] == [(6, 2, 8, 8)] * 12
    assert_equal(states, expected)
    assert torch.equal(x, before)


def test_interpolation_with_torch_noise_equals_the_published_formula(network):
    x = torch.rand(2, 2, 8, 8)
    torch.manual_seed(1)
    expected = published_interpolation(network, x, 3, 2, 8e-6)
    torch.manual_seed(1)
    states = anneal_Langevin_dynamics_interpolation(x, network, SIGMAS, 3, 2, noise="torch")
    assert_equal(states, expected)
    torch.manual_seed(1)
    last = anneal_Langevin_dynamics_interpolation(
        x, network, SIGMAS, 3, 2, 8e-6, True, noise="torch"
    )
    assert len(last) == 1
    assert torch.equal(last[0], states[-1])


@pytest.mark.parametrize("name", ["NCSNv2", "NCSN"])
@pytest.mark.parametrize("noise", ["philox", "torch"])
def test_an_official_network_runs_as_ours_unless_it_shall_not(noise, name):
    def run(net, **adopt):
        images, states = torch.rand(2, 2, 8, 8), []
        for function, given in (
            (anneal_Langevin_dynamics, (images, net, SIGMAS)),
            (anneal_Langevin_dynamics_interpolation, (images, net, SIGMAS, 2)),
            (anneal_Langevin_dynamics_inpainting, (images[:, None], images, net, SIGMAS, 8)),
        ):
            torch.manual_seed(1)
            # Scores of the untrained NCSN are no smaller where steps are large.
            how = {"n_steps_each": 2, "step_lr": 8e-8 if name == "NCSN" else 8e-6}
            states += function(*given, **how, noise=noise, **adopt)
        return states

    net, other = official(name), official(name)
    torch.manual_seed(0)
    found = run(net)
    torch.manual_seed(0)
    assert_equal(found, run(other, adopt=False))
    assert net.calls == 3  # compared each time
    assert other.calls >= 36


def test_inpainting_with_philox_noise_equals_the_engines_mask():
    x, reference = torch.rand(1, 3, 2, 8, 8), torch.rand(1, 2, 8, 8)
    states = anneal_Langevin_dynamics_inpainting(x, reference, scorenet, SIGMAS, 8, 2, seed=4)
    sampler = nf.Sampler(
        scorenet, (2, 8, 8), SIGMAS, step_size=8e-6, steps_per_level=2, denoise=False
    )
    mask = torch.arange(8).expand(1, 8, 8) < 4
    _, trajectory = sampler(3, seed=4, initial=x[0], mask=mask, known=reference, every=1)
    assert_equal(states, list(trajectory[:-1]))


def test_in_the_first_order_the_known_half_stays_for_a_whole_level():
    x, reference = torch.rand(1, 2, 2, 8, 8), 0.5 * torch.ones(1, 2, 8, 8)
    states = anneal_Langevin_dynamics_inpainting(
        x, reference, scorenet, SIGMAS, 8, 2, order="ncsn", seed=4
    )
    halves = [state[..., :4] for state in states]
    assert torch.equal(halves[0], halves[1])
    assert not torch.equal(halves[1], halves[2])


def test_the_ends_of_an_interpolation_see_one_noise_each():
    x = torch.rand(1, 2, 8, 8)
    (row,) = anneal_Langevin_dynamics_interpolation(
        x, scorenet, SIGMAS, 3, 2, final_only=True, seed=3
    )
    (plain,) = anneal_Langevin_dynamics(
        x, scorenet, SIGMAS, 2, final_only=True, denoise=False, seed=3
    )
    assert torch.allclose(row[:1], plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(row[2:], plain, rtol=0.1, atol=0.1)


def test_inpainting_refuses_other_shapes_and_orders():
    x, reference = torch.rand(2, 3, 2, 8, 8), torch.rand(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"x_mod has shape .* needed is \(references, repeats"):
        anneal_Langevin_dynamics_inpainting(x[0], reference, scorenet, SIGMAS, 8)
    with pytest.raises(ValueError, match="refer_image has shape"):
        anneal_Langevin_dynamics_inpainting(x, reference[:1], scorenet, SIGMAS, 8)
    with pytest.raises(ValueError, match="order = 'v3'"):
        anneal_Langevin_dynamics_inpainting(x, reference, scorenet, SIGMAS, 8, order="v3")


def test_final_only_returns_a_list_of_the_last_state():
    x = torch.rand(3, 1, 4, 4)
    every = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 4, seed=2)
    last = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 4, final_only=True, seed=2)
    assert isinstance(last, list)
    assert len(last) == 1
    assert torch.equal(last[0], every[-1])
    assert last[0].device.type == "cpu"


def test_the_initial_states_are_left_alone():
    x = torch.rand(2, 1, 4, 4)
    before = x.clone()
    anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2)
    assert torch.equal(x, before)


def test_philox_noise_follows_torch_or_the_seed():
    x = torch.rand(2, 1, 4, 4)

    def run(**keywords):
        return anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2, final_only=True, **keywords)[0]

    torch.manual_seed(0)
    a, b = run(), run()
    torch.manual_seed(0)
    assert torch.equal(run(), a)
    assert not torch.equal(a, b)
    assert torch.equal(run(seed=5), run(seed=5))


def test_unknown_noise_and_a_seed_beside_torch_noise_are_refused():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="noise = 'numpy': choose 'philox' or 'torch'"):
        anneal_Langevin_dynamics(x, scorenet, SIGMAS, noise="numpy")
    with pytest.raises(ValueError, match=r"torch\.manual_seed governs"):
        anneal_Langevin_dynamics(x, scorenet, SIGMAS, noise="torch", seed=1)


def test_a_batch_that_does_not_fit_is_cut_only_where_that_changes_nothing():
    def small(x, labels):
        if len(x) > 2:
            raise torch.OutOfMemoryError("does not fit")
        return scorenet(x, labels)

    x = torch.rand(4, 1, 4, 4)
    (cut,) = anneal_Langevin_dynamics(x, small, SIGMAS, 2, final_only=True, seed=1)
    (whole,) = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2, final_only=True, seed=1)
    assert torch.allclose(cut, whole, atol=1e-5)
    for keywords in ({"seed": 1}, {"noise": "torch", "final_only": True}):
        with pytest.raises(
            RuntimeError, match="4 samples at once do not fit in memory: give fewer"
        ):
            anneal_Langevin_dynamics(x, small, SIGMAS, 2, **keywords)
    with pytest.raises(RuntimeError, match="4 samples at once do not fit in memory"):
        anneal_Langevin_dynamics_inpainting(x[None], x[:1], small, SIGMAS, 4, 2)


OTHERS = {
    "array": SIGMAS,
    "view": SIGMAS[::-1].copy()[::-1],
    "list": SIGMAS.tolist(),
    "doubles": SIGMAS.astype(np.float64),
    "other bytes": SIGMAS.astype(">f4"),
    "tensor": torch.from_numpy(SIGMAS),
    "gradient": torch.from_numpy(SIGMAS).requires_grad_(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_levels_may_be_numbers_tensors_and_views_of_arrays(name):
    x, reference = torch.rand(2, 2, 8, 8), torch.rand(2, 2, 8, 8)

    def run(sigmas):
        settings = {"seed": 1, "final_only": True}
        yield anneal_Langevin_dynamics(x, scorenet, sigmas, 1, **settings)
        yield anneal_Langevin_dynamics_interpolation(x, scorenet, sigmas, 2, 1, **settings)
        yield anneal_Langevin_dynamics_inpainting(
            x[:, None], reference, scorenet, sigmas, 8, 1, seed=1
        )

    for found, expected in zip(run(OTHERS[name]), run(SIGMAS), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_network_is_shown_the_dtype_of_the_initial_states(dtype):
    def net(x, labels):
        assert x.dtype == dtype
        return scorenet(x, labels).to(dtype)

    x = torch.rand(3, 2, 8, 8, dtype=dtype)
    torch.manual_seed(1)
    expected = published_formula(scorenet, x.double(), 2, 8e-6, True)
    torch.manual_seed(1)
    found = anneal_Langevin_dynamics(x, net, SIGMAS, 2, 8e-6, noise="torch")
    assert all(state.dtype == dtype for state in found)
    if dtype == torch.float64:  # torch draws other noise in other dtypes
        assert_equal(found, expected)
    states = anneal_Langevin_dynamics_inpainting(x[:, None], x, net, SIGMAS, 8, 1, seed=1)
    assert all(state.dtype == dtype for state in states)


def test_a_module_is_evaluated_and_left_in_its_mode():
    class Net(torch.nn.Module):
        def forward(self, x, labels):
            assert not self.training
            return scorenet(x, labels)

    net, x = Net().train(), torch.rand(2, 2, 8, 8)
    for states in (x, x.double()):
        anneal_Langevin_dynamics(states, net, SIGMAS, 1)
        anneal_Langevin_dynamics_inpainting(states[:, None], states, net, SIGMAS, 8, 1)
        assert net.training


@pytest.mark.parametrize("number", [1, 5])
def test_the_bar_counts_steps(number, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_is_watched", lambda: True)
    anneal_Langevin_dynamics(torch.rand(number, 1, 4, 4), scorenet, SIGMAS, 2, verbose=True)
    assert "/13 " in capfd.readouterr().err
    anneal_Langevin_dynamics(torch.rand(number, 1, 4, 4), scorenet, SIGMAS, 2)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("wrap", [lambda net: net, torch.nn.DataParallel])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_count_the_networks_own_levels(wrap, dtype):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("sigmas", torch.from_numpy(SIGMAS))

        def forward(self, x, labels):
            seen.append(int(labels[0]))
            return scorenet(x, labels)

    net, x = wrap(Net()), torch.rand(2, 2, 8, 8, dtype=dtype)
    for part in (SIGMAS, SIGMAS[2:], SIGMAS[::2]):
        wanted = [SIGMAS.tolist().index(sigma) for sigma in part.tolist()]
        seen = []
        anneal_Langevin_dynamics(x, net, part, 1, 8e-6, denoise=False)
        anneal_Langevin_dynamics_inpainting(x[:, None], x, net, part, 8, 1, 8e-6)
        assert seen == wanted * 2
    for run in (
        lambda: anneal_Langevin_dynamics(x, net, [4.0, 0.5], 1),
        lambda: anneal_Langevin_dynamics_inpainting(x[:, None], x, net, [4.0, 0.5], 8, 1),
    ):
        with pytest.raises(ValueError, match="knows only its 6 levels"):
            run()


def test_a_list_that_does_not_fit_is_refused_before_the_network_is_called(monkeypatch):
    """12 or 13 states of 4 images of 8 bytes; the images alone would fit."""
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 12 * 4 * 8 - 1)

    def never(x, labels):
        raise AssertionError

    x = torch.rand(4, 2, 1, 1)
    known = {"image_size": 2, "n_steps_each": 2}
    for call, states in (
        (lambda: anneal_Langevin_dynamics(x, never, SIGMAS, 2), 13),
        (lambda: anneal_Langevin_dynamics_interpolation(x[:2], never, SIGMAS, 2, 2), 12),
        (lambda: ncsn.anneal_Langevin_dynamics(x, never, SIGMAS, 2), 12),
        (
            lambda: anneal_Langevin_dynamics_inpainting(
                torch.rand(1, 2, 1, 2, 2), torch.rand(1, 1, 2, 2), never, SIGMAS, **known
            ),
            12,
        ),
    ):
        with pytest.raises(ValueError, match=f"the list of {states} states takes .* fewer images"):
            call()
    (last,) = anneal_Langevin_dynamics(x, scorenet, SIGMAS, 2, final_only=True)
    assert last.shape == x.shape
