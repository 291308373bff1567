"""The specification against the mathematics it states, in float64."""

import pytest
import torch

from ncsn_fast import ops, reference
from ncsn_fast.reference import ROW

N, SHAPE = 3, (2, 5)


def tensors(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(N, *SHAPE, dtype=dtype, generator=generator) for _ in range(count)]


def row(**values):
    return torch.tensor([values.get(name, 0.0) for name in ROW], dtype=torch.float64)


def test_sampler_update_is_its_formula():
    x, n, h, z, g = tensors(5)
    values = {"a": 0.9, "b": 0.3, "c": -0.2, "d": 0.7, "e": 1.1, "f": -0.4, "w": 0.6}
    got = reference.sampler_update(
        x, n, row(**values, next_c_in=0.5), z, history=h, guidance=g, scale_input=True
    )
    new = 0.9 * x + 0.3 * n - 0.2 * h + 0.7 * z + 0.6 * g
    assert torch.allclose(got.x, new, atol=1e-14)
    assert torch.allclose(got.history, 1.1 * x - 0.4 * n, atol=1e-14)
    assert torch.allclose(got.network_input, 0.5 * new, atol=1e-14)


def test_sampler_update_without_extras_needs_none_of_them():
    x, n = tensors(2)
    got = reference.sampler_update(x, n, row(a=1.0, b=0.3, c=9.0, d=9.0, w=9.0))
    assert torch.allclose(got.x, x + 0.3 * n, atol=1e-14)
    assert got.history is None
    assert got.network_input is got.x


def test_the_known_region_is_imposed_at_the_next_noise_level():
    x, n, known, z = tensors(4)
    mask = torch.zeros(N, *SHAPE, dtype=torch.bool)
    mask[:, 0] = True
    got = reference.sampler_update(
        x, n, row(a=1.0, b=0.3, next_sigma=0.1), mask=mask, known=known, known_z=z
    )
    assert torch.allclose(got.x[:, 0], known[:, 0] + 0.1 * z[:, 0], atol=1e-14)
    assert torch.allclose(got.x[:, 1], (x + 0.3 * n)[:, 1], atol=1e-14)


def test_a_half_precision_output_is_widened_before_the_sum():
    x, n = tensors(2, torch.float32)
    half = n.half()
    got = reference.sampler_update(x, half, row(a=1.0, b=0.3).float())
    assert got.x.dtype == torch.float32
    assert torch.equal(got.x, x + torch.tensor(0.3) * half.float())


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 3.0])
def test_dsm_loss_is_the_published_formula(power):
    x, z, s = tensors(3)
    sigma = torch.tensor([2.0, 0.5, 0.1], dtype=torch.float64)
    wide = sigma.view(-1, 1, 1)
    published = 0.5 * ((s + z / wide) ** 2).sum((1, 2)) * sigma**power
    losses = reference.dsm_loss(wide * s, z, sigma ** (power - 2))
    assert torch.allclose(losses, published, rtol=1e-12)
    assert torch.equal(reference.perturb(x, sigma, z), x + wide * z)


def test_the_gradient_of_dsm_loss_is_that_of_the_formula():
    n, z = tensors(2)
    sigma = torch.tensor([2.0, 0.5, 0.1], dtype=torch.float64)
    n.requires_grad_()
    reference.dsm_loss(n, z, sigma).sum().backward()
    assert torch.allclose(n.grad, (n.detach() + z) * sigma.view(-1, 1, 1), rtol=1e-12)


def straightforward_norm(x, gamma, alpha, beta):
    """Sample by sample and channel by channel, as the paper writes it."""
    y = torch.empty_like(x)
    for i in range(len(x)):
        means = x[i].mean((1, 2))
        m, v = means.mean(), means.var(unbiased=True)
        for c in range(x.shape[1]):
            h = (x[i, c] - means[c]) / (x[i, c].var(unbiased=False) + 1e-5).sqrt()
            g, a, b = (p[i, c] if p.ndim == 2 else p[c] for p in (gamma, alpha, beta))
            y[i, c] = g * (h + a * (means[c] - m) / (v + 1e-5).sqrt()) + b
    return y


@pytest.mark.parametrize("rows", [(), (4,)])
@pytest.mark.parametrize("channels", [2, 7])
def test_instance_norm_plus_is_its_formula(rows, channels):
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x = draw(4, channels, 3, 5)
    parameters = [draw(*rows, channels) for _ in range(3)]
    expected = straightforward_norm(x, *parameters)
    assert torch.allclose(reference.instance_norm_plus(x, *parameters), expected, atol=1e-12)
    assert torch.equal(
        ops.instance_norm_plus(x, *parameters), reference.instance_norm_plus(x, *parameters)
    )


def test_instance_norm_plus_survives_a_large_mean():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1000
    ones, zeros = torch.ones(3), torch.zeros(3)
    exact = reference.instance_norm_plus(x.double(), ones.double(), zeros.double(), zeros.double())
    single = reference.instance_norm_plus(x, ones, zeros, zeros)
    # The input itself has a spacing of 6e-5 at 1000; nothing may be lost beyond a few of those.
    assert float((single - exact).abs().max()) < 3e-4


def test_instance_norm_plus_refuses_one_channel():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="at least 2 channels, got 1"):
        ops.instance_norm_plus(torch.randn(2, 1, 4, 4), one, one, one)
