"""The numbers of the official networks, from a checkpoint file to the end of a chain."""

import numpy as np
import pytest
import torch
from helpers.golden import GOLDEN, load_golden

import ncsn_fast as nf


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request):
    return load_golden(request.param)


@pytest.fixture(scope="module")
def net(golden, tmp_path_factory):
    """The network from a file as the official code writes it: v1 and v2 lists, `module.` prefix."""
    state = {f"module.{key}": value for key, value in golden.state_dict().items()}
    optimizer = {"state": {}, "param_groups": []}
    old = golden.settings["network"] == "NCSN"
    content = [state, optimizer] if old else [state, optimizer, 1, 1000]
    path = tmp_path_factory.mktemp("official") / "checkpoint_1000.pth"
    torch.save(content, path)
    s = golden.settings
    return nf.load_checkpoint(
        path,
        config={
            "model": {
                "sigma_begin": s["sigma_begin"],
                "sigma_end": s["sigma_end"],
                "num_classes": s["num_levels"],
                "ngf": s["ngf"],
            },
            "data": {"image_size": s["image_size"], "channels": s["channels"]},
        },
    )


def worst(found, expected):
    """Largest error of any sample, relative to the largest value of that sample."""
    found, expected = np.asarray(found, dtype=np.float64), expected.astype(np.float64)
    axes = tuple(range(1, expected.ndim))
    scale = np.abs(expected).max(axis=axes) if axes else np.abs(expected)
    error = np.abs(found - expected).max(axis=axes) if axes else np.abs(found - expected)
    return float((error / scale).max())


def test_the_checkpoint_gives_the_official_network(golden, net):
    assert type(net).__name__ == golden.settings["network"]
    assert sum(p.numel() for p in net.parameters()) == golden.settings["param_count"]
    assert list(net.state_dict()) == list(golden.settings["keys"])


def test_score(golden, net):
    with torch.no_grad():
        score = net(golden.x, golden.labels)
    assert worst(score, golden.values["score"]) < 1e-5


def test_loss_and_gradients(golden, net):
    arguments = {"labels": golden.labels, "noise": golden.z}
    losses = nf.dsm_loss(net, golden.x, golden.sigmas, **arguments, reduction="none")
    assert worst(losses.detach(), golden.values["dsm_loss_per_sample"]) < 1e-5
    net.zero_grad()
    loss = nf.dsm_loss(net, golden.x, golden.sigmas, **arguments)
    assert loss.item() == pytest.approx(float(golden.values["dsm_loss"]), rel=1e-5)
    loss.backward()
    parameters = dict(net.named_parameters())
    assert list(parameters) == golden.settings["param_order"]
    norms = np.array([float(p.grad.norm()) for p in parameters.values()])
    expected = golden.values["grad_norms"]
    assert np.linalg.norm(norms - expected) < 1e-4 * np.linalg.norm(expected)
    np.testing.assert_allclose(norms, expected, rtol=1e-3)


@pytest.mark.parametrize("denoise", [False, True])
def test_annealed_langevin(golden, net, denoise):
    s = golden.settings
    sampler = nf.Sampler(
        net,
        step_size=s["step_lr"],
        steps_per_level=s["steps_per_level"],
        denoise=denoise,
        precision="fp32",
    )
    states = sampler(2, initial=golden.x, noise=golden.ald_noise)
    assert worst(states, golden.values["ald_denoised" if denoise else "ald"]) < 1e-5


def test_annealed_langevin_by_the_official_signature(golden, net):
    from ncsn_fast.compat.ncsnv2 import anneal_Langevin_dynamics

    s = golden.settings
    step = iter(range(10**6))
    original = torch.randn_like
    try:
        torch.randn_like = lambda x: golden.ald_noise(next(step))
        states = anneal_Langevin_dynamics(
            golden.x, net, golden.sigmas, s["steps_per_level"], s["step_lr"], noise="torch"
        )
    finally:
        torch.randn_like = original
    assert len(states) == s["num_levels"] * s["steps_per_level"] + 1
    assert worst(states[-1], golden.values["ald_denoised"]) < 1e-5
    assert worst(states[-2], golden.values["ald"]) < 1e-5
