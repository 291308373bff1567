"""The networks: golden values of the official ones, settings, refusals."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers.golden import GOLDEN, geometric, load_golden
from helpers.networks import IMAGE_NETWORKS, SIGMAS, inputs, network, short
from torch import Tensor

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.blocks import PooledConv
from ncsn_fast.models.by_name import NETWORKS, build
from ncsn_fast.models.mlp import MLPScore
from ncsn_fast.reference import ACTIVATIONS

SMALLEST = {"NCSN": 4, "NCSNv2": 4, "NCSNv2Deeper": 8, "NCSNv2Deepest": 16}


def small(name: str, **changes: object) -> ScoreNetwork:
    config = {"channels": 2, "image_size": SMALLEST[name], "ngf": 4}
    return network(name, **{**config, **changes}).eval()


# Golden values.


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_shapes_and_order_are_the_official_ones(name: str) -> None:
    golden = load_golden(name)
    net = golden.network()
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == golden.settings["keys"]
    assert list(net.state_dict()) == list(golden.settings["keys"])
    assert [k for k, _ in net.named_parameters()] == golden.settings["param_order"]


@pytest.mark.parametrize("name", GOLDEN)
def test_score_is_the_official_one(name: str) -> None:
    golden = load_golden(name)
    with torch.no_grad():
        score = golden.network()(golden.x, golden.labels)
    official = torch.from_numpy(golden.values["score"])
    error = (score - official).flatten(1).norm(dim=1) / official.flatten(1).norm(dim=1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("name", GOLDEN)
def test_loss_and_gradient_norms_are_the_official_ones(name: str) -> None:
    golden = load_golden(name)
    net = golden.network().train()
    sigma = net.sigmas[golden.labels].view(-1, 1, 1, 1)
    score = net(golden.x + sigma * golden.z, golden.labels)
    losses = 0.5 * ((score + golden.z / sigma) ** 2).flatten(1).sum(1) * sigma.flatten() ** 2
    np.testing.assert_allclose(losses.detach(), golden.values["dsm_loss_per_sample"], rtol=1e-5)
    losses.mean().backward()
    norms = np.array([float(p.grad.norm()) for p in net.parameters() if p.grad is not None])
    official = golden.values["grad_norms"]
    assert np.linalg.norm(norms - official) < 1e-4 * np.linalg.norm(official)
    np.testing.assert_allclose(norms, official, rtol=1e-3, atol=1e-4 * official.max())


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("NCSN", 30_117_635, 173),
        ("NCSNv2", 29_694_083, 154),
        ("NCSNv2Deeper", 83_445_379, 192),
        ("NCSNv2Deepest", 94_132_611, 230),
    ],
)
def test_published_sizes(name: str, parameters: int, tensors: int) -> None:
    config = {"network": name, "channels": 3, "image_size": 256, "ngf": 128}
    with torch.device("meta"):
        net = build(config, geometric(1.0, 0.01, 10))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == tensors


def test_deepest_numbers_its_parameters_like_the_official_network() -> None:
    names = [k.partition(".")[0] for k, _ in small("NCSNv2Deepest").named_parameters()]
    stages = ["res1", "res2", "res3", "res31", "res4", "res5"]
    refines = ["refine1", "refine2", "refine3", "refine31", "refine4", "refine5"]
    order = ["begin_conv", "normalizer", "end_conv", *stages, *refines]
    assert list(dict.fromkeys(names)) == order


# What the networks compute.


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_normalized_is_sigma_times_score(name: str) -> None:
    net = small(name)
    x, labels = inputs(net)
    score, normalized = net(x, labels), net.normalized(x, labels)
    assert score.shape == normalized.shape == x.shape
    torch.testing.assert_close(normalized, score * net.sigmas[labels].view(-1, 1, 1, 1))


def test_only_the_first_version_sees_the_noise_level() -> None:
    for name in IMAGE_NETWORKS:
        net = small(name)
        x, _ = inputs(net, 1)
        n = [net.normalized(x, torch.tensor([i])) / net.sigmas[i] for i in (0, 3)]
        body_depends = not torch.allclose(n[0] * net.sigmas[0], n[1] * net.sigmas[3])
        assert net.sees_sigma == (name == "NCSN") == body_depends


def test_second_version_needs_no_labels_for_the_normalised_score() -> None:
    net = small("NCSNv2")
    x, labels = inputs(net)
    assert torch.equal(net.normalized(x), net.normalized(x, labels))


def test_undivided_network_returns_its_body_and_saves_no_noise_levels() -> None:
    net = small("NCSNv2", divided=False)
    x, labels = inputs(net)
    assert torch.equal(net(x, labels), net.normalized(x))
    assert "sigmas" not in net.state_dict()


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_activation_gives_finite_scores_and_gradients(name: str, activation: str) -> None:
    net = small(name, activation=activation)
    score = net(*inputs(net))
    score.square().mean().backward()
    assert torch.isfinite(score).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_activations_are_the_published_functions() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    formulas = {
        "elu": torch.where(x > 0, x, x.exp() - 1),
        "relu": x.clamp_min(0),
        "lrelu": torch.where(x > 0, x, 0.2 * x),
        "swish": x / (1 + (-x).exp()),
    }
    assert set(formulas) == set(ACTIVATIONS)
    for name, expected in formulas.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), expected)


def test_images_in_other_spaces_are_taken_as_they_are() -> None:
    plain = small("NCSNv2")
    x, labels = inputs(plain)
    for space in ("rescaled", "logit_transform"):
        net = small("NCSNv2", **{space: True})
        torch.testing.assert_close(net(2 * x - 1, labels), plain(x, labels))


def test_body_takes_images_that_are_not_square() -> None:
    net = small("NCSNv2Deepest", image_size=[16, 64])
    assert net.shape == (2, 16, 64)
    assert net(*inputs(net)).shape == (3, 2, 16, 64)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_pooled_convolution_is_the_mean_of_four_outputs(kernel_size: int) -> None:
    torch.manual_seed(0)
    layer = PooledConv(3, 5, kernel_size).double()
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    y = layer.conv(x)
    mean = (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(layer(x), mean)


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_memory_format_does_not_change_the_score(name: str) -> None:
    net = small(name)
    x, labels = inputs(net)
    expected = net(x, labels)
    other = net.to(memory_format=torch.channels_last)
    score = other(x.contiguous(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


# Noise levels.


def test_noise_levels_stay_float32_in_a_half_precision_network() -> None:
    net = small("NCSNv2").to(torch.bfloat16)
    assert net.sigmas.dtype == torch.float32
    assert net.sigmas.tolist() == torch.tensor(SIGMAS).tolist()
    x, labels = inputs(net)
    assert net.normalized(x).dtype == torch.bfloat16
    assert net(x, labels).dtype == torch.float32


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2"])
def test_noise_levels_survive_a_network_built_without_memory(name: str) -> None:
    with torch.device("meta"):
        net = small(name)
    assert net.to_empty(device="cpu").sigmas.tolist() == torch.tensor(SIGMAS).tolist()


def test_network_keeps_a_copy_of_the_noise_levels() -> None:
    sigmas = torch.tensor(SIGMAS)
    net = MLPScore(sigmas=sigmas)
    sigmas.zero_()
    assert net.sigmas.tolist() == torch.tensor(SIGMAS).tolist()


def test_unusable_noise_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="noise levels descend"):
        MLPScore(sigmas=[0.1, 1.0])


# Settings and refusals.


@pytest.mark.parametrize(
    "config",
    [
        {"network": "NCSN", "channels": 1, "image_size": 28, "ngf": 2, "activation": "lrelu"},
        {"network": "NCSNv2", "channels": 3, "image_size": [8, 16], "ngf": 4, "divided": False},
        {"network": "NCSNv2Deeper", "channels": 2, "image_size": None, "ngf": 3, "rescaled": True},
        {"network": "MLPScore", "dim": 3, "hidden": 5, "layers": 2, "activation": "ELU"},
    ],
)
def test_config_rebuilds_the_network(config: dict[str, object]) -> None:
    net = build(config, SIGMAS)
    again = build(net.config, net.sigmas)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    assert type(again) is type(net) is NETWORKS[str(config["network"])]


def test_copy_of_a_network_is_independent() -> None:
    net = small("NCSN")
    twin = copy.deepcopy(net)
    x, labels = inputs(net)
    before = net(x, labels)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(net(x, labels), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ngf": 1}, "ngf must be a whole number ≥ 2"),
        ({"channels": 0}, "channels must be a whole number ≥ 1"),
        ({"channels": True}, "channels"),
        ({"activation": "gelu"}, "unknown activation 'gelu': choose one of elu, relu"),
        ({"activation": None}, "unknown activation None"),
        ({"image_size": 0}, "multiple of 2"),
        ({"image_size": 5}, "multiple of 2"),
        ({"image_size": 2}, "single pixel"),
        ({"image_size": 8.0}, "whole number"),
        ({"image_size": [4, 4, 4]}, "whole number"),
        ({"width": 3}, "NCSNv2 cannot be built"),
        ({"network": "UNet"}, "unknown network 'UNet': choose one of NCSN"),
    ],
)
def test_unusable_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("NCSNv2", **changes)


@pytest.mark.parametrize(("name", "bad"), [("NCSNv2Deeper", 6), ("NCSNv2Deepest", 12)])
def test_sizes_that_cannot_be_halved_often_enough_are_refused(name: str, bad: int) -> None:
    with pytest.raises(ValueError, match="multiple of"):
        small(name, image_size=bad)
    net = small(name, image_size=None)
    with pytest.raises(ValueError, match="multiple of"):
        net(torch.rand(1, 2, bad, bad), torch.tensor([0]))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 3, 4, 4), (1, 2, 4, 5)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images"):
        small("NCSNv2")(torch.rand(shape), torch.tensor([0]))


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0], "int64"),
        ([True], "int64"),
        ([-1], "from -1 to -1"),
        ([4], "4 noise levels 0 to 3"),
        ([0, 0, 0], r"shape \(1,\), got \(3,\)"),
    ],
)
def test_unusable_labels_are_refused(name: str, labels: list[float], message: str) -> None:
    net = small(name)
    with pytest.raises(ValueError, match=message):
        net(torch.rand(1, *net.shape), torch.tensor(labels))


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2", "MLPScore"])
def test_network_compiles_as_one_graph(name: str) -> None:
    net = MLPScore(sigmas=SIGMAS) if name == "MLPScore" else short(name).eval()
    x, labels = inputs(net)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, labels), net(x, labels))


def test_unknown_image_size_is_explained_when_it_is_needed() -> None:
    net = small("NCSNv2", image_size=None)
    assert net(torch.rand(1, 2, 6, 8), torch.tensor([0])).shape == (1, 2, 6, 8)
    with pytest.raises(ValueError, match="image_size="):
        _ = net.shape


# Points in the plane.


def test_points_network_learns_the_score_of_a_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    sigmas = torch.from_numpy(geometric(10.0, 0.3, 8))
    means = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])
    net = MLPScore(sigmas=sigmas, hidden=64)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)

    def draw(n: int) -> tuple[Tensor, Tensor, Tensor]:
        mode = (torch.rand(n, generator=generator) > 0.2).long()
        points, z = torch.randn(2, n, 2, generator=generator)
        labels = torch.randint(8, (n,), generator=generator)
        return means[mode] + 0.5 * points + sigmas[labels, None] * z, z, labels

    for _ in range(1500):
        x, z, labels = draw(256)
        loss = 0.5 * (net.normalized(x, labels) + z).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, _, labels = draw(4000)
    sigma = sigmas[labels, None]
    variance = 0.25 + sigma**2
    offsets = means - x[:, None]
    weights = torch.tensor([0.2, 0.8]).log() - offsets.square().sum(2) / (2 * variance)
    truth = (weights.softmax(1)[..., None] * offsets).sum(1) * sigma / variance
    with torch.no_grad():
        error = (net.normalized(x, labels) - truth).norm() / truth.norm()
    assert error < 0.1


def test_points_network_divides_by_sigma() -> None:
    net = MLPScore(dim=3, hidden=8, layers=1, sigmas=SIGMAS)
    x, labels = inputs(net, 4)
    assert net.shape == (3,)
    torch.testing.assert_close(net(x, labels), net.normalized(x, labels) / net.sigmas[labels, None])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLPScore(0, sigmas=SIGMAS), "dim must be"),
        (lambda: MLPScore(layers=0, sigmas=SIGMAS), "layers must be"),
        (lambda: MLPScore(sigmas=SIGMAS)(torch.rand(4, 3), torch.zeros(4).long()), r"\(N, 2\)"),
        (lambda: MLPScore(sigmas=SIGMAS).normalized(torch.rand(4, 2), None), "give labels"),
        (lambda: small("NCSN").normalized(torch.rand(1, 2, 4, 4), None), "give labels"),
    ],
)
def test_what_a_network_cannot_do_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
