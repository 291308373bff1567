"""Denoising, sliced and explicit score matching: one minimiser on a Gaussian; sliced by hand.

On N(μ, Σ) the score of the data perturbed by σ is A·x + b with A = -(Σ + σ²I)⁻¹ and b = -Aμ. Each
loss is minimised over a large sample in float64, and has to land there within four standard errors
of the sample's size.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ncsn_fast as nf
from ncsn_fast import noise as noise_source
from ncsn_fast.losses.sliced import sliced_score_matching

N = 60_000
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
LADDER = [2.0, 0.9, 0.4]
SIGMA = 0.5
SEED = 7


def gaussian(n=N, seed=0) -> Tensor:
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return MEAN + z @ torch.linalg.cholesky(COVARIANCE).T


def affine_optimum(sigma: float) -> Tensor:
    """[A | b] of the score of the perturbed Gaussian, (2, 3)."""
    slope = -torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64))
    return torch.cat([slope, -(slope @ MEAN)[:, None]], dim=1)


def affine(parameters: Tensor, x: Tensor) -> Tensor:
    """A·x + b with parameters [A | b], (2, 3) or one such per sample."""
    return (parameters[..., :2] @ x[..., None]).squeeze(-1) + parameters[..., 2]


def affine_score(parameters: Tensor, sigmas=None) -> nf.Score:
    return nf.Score(lambda x: affine(parameters, x), "score", "none", sigmas)


def perturbed(x: Tensor, sigma: float) -> Tensor:
    z = noise_source.normal(
        x.shape[1:],
        seed=SEED,
        stream=noise_source.PERTURB,
        sample_ids=range(len(x)),
        dtype=x.dtype,
    )
    return x + sigma * z


def minimise(
    loss_of: Callable[[Tensor], Tensor], start: Tensor, newton_steps: int = 1
) -> tuple[Tensor, Tensor]:
    """Where the mean of the losses (n,) is least, and the standard error of that.

    Newton's method; a loss that is quadratic in the parameters needs one step. With the Hessian H
    and the covariance G of the gradients of single samples, the minimiser over n samples has the
    covariance H⁻¹GH⁻¹/n.
    """
    theta = start.clone()
    for done in range(newton_steps + 1):
        theta = theta.detach().requires_grad_()
        per_sample = loss_of(theta)
        # The gradient of Σ uℓ is linear in u: its derivatives by u are the samples' gradients.
        u = torch.ones_like(per_sample, requires_grad=True)
        (slope,) = torch.autograd.grad((u * per_sample).sum(), theta, create_graph=True)
        both = [torch.autograd.grad(s, (theta, u), retain_graph=True) for s in slope.flatten()]
        hessian = torch.stack([h.flatten() for h, _ in both])
        if done < newton_steps:
            theta = theta - torch.linalg.solve(hessian, slope.flatten()).view_as(theta)
    gradients = torch.stack([g for _, g in both], dim=1)
    inverse = torch.linalg.inv(hessian)
    variance = (inverse @ (gradients.T @ gradients) @ inverse).diagonal()
    return theta.detach(), variance.clamp(min=0).sqrt().view_as(theta)


def assert_lands_on(optimum: Tensor, found: tuple[Tensor, Tensor]) -> None:
    estimate, error = found
    assert bool((4 * error < 0.1 * optimum.abs().max()).all())  # else anything would pass
    assert bool(((estimate - optimum).abs() < 4 * error + 1e-9).all()), (estimate, optimum, error)


def test_vincents_scaling_of_one_level_is_anneal_power_zero():
    score = affine_score(torch.ones(2, 3, dtype=torch.float64))
    x = gaussian(50)
    noisy = perturbed(x, SIGMA)
    target = -(noisy - x) / SIGMA**2
    published = 0.5 * (score.fn(noisy) - target).square().sum(1).mean()
    loss = nf.dsm_loss(score, x, [SIGMA], anneal_power=0, seed=SEED)
    assert torch.allclose(loss, published, rtol=1e-9)


@pytest.mark.parametrize("loss_function", [nf.dsm_loss, sliced_score_matching])
def test_a_loss_over_a_ladder_finds_the_score_of_every_level(loss_function):
    def loss(parameters):
        def score(x, labels):
            return affine(parameters[labels], x)

        return loss_function(score, gaussian(), LADDER, seed=SEED, reduction="none")

    optimum = torch.stack([affine_optimum(float(s)) for s in torch.tensor(LADDER)])
    estimate, error = minimise(loss, torch.zeros(3, 2, 3, dtype=torch.float64))
    for level in range(3):
        assert_lands_on(optimum[level], (estimate[level], error[level]))


def radial_losses(parameters: Tensor, **keywords) -> Tensor:
    """Losses of s = -(x - μ)/(v + σ²) with parameters (μ, ln v), on N(MEAN, 0.49·I)."""
    z = torch.randn(N, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def score(x, sigma):
        return -(x - parameters[:2]) / (parameters[2].exp() + sigma.square())[:, None]

    return nf.dsm_loss(
        nf.Score(score, "score", "sigma"),
        MEAN + 0.7 * z,
        LADDER,
        seed=SEED,
        reduction="none",
        continuous=True,
        **keywords,
    )


RADIAL_OPTIMUM = torch.cat([MEAN, torch.tensor([0.49], dtype=torch.float64).log()])
RADIAL_START = torch.tensor([0.8, -0.3, -0.5], dtype=torch.float64)


def test_denoising_at_continuous_noise_levels_finds_the_parameters_of_the_data():
    assert_lands_on(RADIAL_OPTIMUM, minimise(radial_losses, RADIAL_START, newton_steps=6))


def test_a_weight_changes_the_value_and_not_the_minimiser():
    def loss(parameters):
        return radial_losses(parameters, weight=lambda sigma: sigma)

    assert_lands_on(RADIAL_OPTIMUM, minimise(loss, RADIAL_START, newton_steps=6))
    plain, weighted = (float(f(RADIAL_START).mean()) for f in (radial_losses, loss))
    assert abs(weighted / plain - 1) > 0.1


def test_explicit_score_matching_on_the_perturbed_data_finds_the_same():
    """½‖s(x̃) - ∇ log p_σ(x̃)‖², possible only where the score is known: exact, with no residual."""
    noisy = perturbed(gaussian(2000), SIGMA)
    target = affine(affine_optimum(SIGMA), noisy)

    def loss(parameters):
        return 0.5 * (affine(parameters, noisy) - target).square().sum(1)

    estimate, _ = minimise(loss, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.allclose(estimate, affine_optimum(SIGMA), rtol=1e-9)


@pytest.mark.parametrize(
    ("loss_function", "sigmas", "how"),
    [
        (nf.dsm_loss, [SIGMA], {}),
        (sliced_score_matching, None, {"directions": "rademacher"}),
        (sliced_score_matching, [SIGMA], {"directions": "rademacher"}),
        (sliced_score_matching, None, {"directions": "gaussian"}),
        (sliced_score_matching, [SIGMA], {"directions": "gaussian"}),
    ],
)
def test_a_loss_finds_the_score_of_the_data_or_of_the_perturbed_data(loss_function, sigmas, how):
    def loss(parameters):
        score = affine_score(parameters)
        return loss_function(score, gaussian(), sigmas, seed=SEED, reduction="none", **how)

    optimum = affine_optimum(SIGMA if sigmas else 0.0)
    assert_lands_on(optimum, minimise(loss, torch.zeros(2, 3, dtype=torch.float64)))


def network() -> nf.MLPScore:
    torch.manual_seed(0)
    net = nf.MLPScore(2, 16, 2, sigmas=LADDER).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def test_denoising_costs_half_the_dimension_more_than_sliced_for_any_network():
    net, x = network(), gaussian()
    with torch.no_grad():
        denoising = nf.dsm_loss(net, x, LADDER, seed=SEED, reduction="none")
        sliced = sliced_score_matching(net, x, LADDER, seed=SEED, reduction="none")
    excess = denoising - sliced
    error = float(excess.std()) / N**0.5
    assert 4 * error < 0.05
    assert float(excess.mean()) == pytest.approx(1.0, abs=4 * error)


@pytest.mark.parametrize("directions", ["rademacher", "gaussian"])
def test_sliced_score_matching_is_the_published_formula(directions):
    """σ²(½‖s‖² + mean over v of vᵀ∇s v), from the whole Jacobian of each sample."""
    net, x, labels = network(), gaussian(5), torch.tensor([0, 1, 2, 2, 0])
    draws = noise_source.normal(
        (4, 2),
        seed=3,
        stream=noise_source.PERTURB,
        sample_ids=range(5),
        step=9,
        dtype=x.dtype,
    )
    v = draws[:, 1:].sign() if directions == "rademacher" else draws[:, 1:]
    sigma = net.sigmas.double()[labels]
    expected = []
    for i, point in enumerate(x + sigma[:, None] * draws[:, 0]):

        def score(point, i=i):
            return net(point[None], labels[i : i + 1])[0]

        jacobian = torch.autograd.functional.jacobian(score, point)
        trace = torch.einsum("mi,ij,mj->m", v[i], jacobian, v[i]).mean()
        expected.append(sigma[i] ** 2 * (0.5 * score(point).square().sum() + trace))
    given = {"projections": 3, "directions": directions, "seed": 3, "step": 9}
    found = sliced_score_matching(net, x, LADDER, labels, reduction="none", **given)
    assert torch.allclose(found, torch.stack(expected), rtol=1e-6)


def test_rademacher_directions_are_exact_in_one_dimension():
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    found = sliced_score_matching(lambda x: -(x**3), x, seed=0, reduction="none")
    assert torch.allclose(found, (0.5 * x**6 - 3 * x**2)[:, 0])


def test_both_losses_show_the_network_the_same_points():
    seen = []

    def score(x, labels):
        seen.append((x.detach().clone(), labels))
        return -x

    for loss in (nf.dsm_loss, sliced_score_matching):
        loss(score, gaussian(9), LADDER, seed=2, step=3, sample_ids=range(50, 59))
    (denoised, labels), (sliced, same) = seen
    assert torch.equal(denoised, sliced)
    assert torch.equal(labels, same)


def test_sliced_score_matching_does_not_depend_on_the_batch():
    net, x = network(), gaussian(6)

    def loss(part):
        ids = range(6)[part]
        return sliced_score_matching(
            net, x[part], LADDER, seed=1, step=2, sample_ids=ids, reduction="none"
        )

    parts = torch.cat([loss(slice(0, 2)), loss(slice(2, 6))])
    assert torch.allclose(loss(slice(0, 6)), parts, rtol=1e-12)


def test_its_gradient_reaches_every_parameter_in_single_precision():
    net, x = network().float(), gaussian(8).float()
    exact = network()
    sliced_score_matching(net, x, LADDER, seed=1).backward()
    sliced_score_matching(exact, x.double(), LADDER, seed=1).backward()
    for found, wanted in zip(net.parameters(), exact.parameters(), strict=True):
        assert found.grad is not None
        assert torch.allclose(found.grad.double(), wanted.grad, rtol=1e-3, atol=1e-4)


def test_the_data_are_left_as_they_were():
    x = gaussian(4)
    sliced_score_matching(lambda x: -(x**3), x, seed=0)
    assert not x.requires_grad


def test_under_no_grad_the_value_is_the_same_and_holds_no_graph():
    net, x = network(), gaussian(8)
    with torch.no_grad():
        value = sliced_score_matching(net, x, LADDER, seed=1, projections=2)
    assert not value.requires_grad
    trained = sliced_score_matching(net, x, LADDER, seed=1, projections=2)
    assert trained.requires_grad
    assert float(value) == pytest.approx(float(trained.detach()), rel=1e-12)


def test_a_second_derivative_is_prepared_only_for_training():
    prepared = []

    def score(x):
        output = -(x**3)
        output.register_hook(lambda slope: prepared.append(torch.is_grad_enabled()))
        return output

    sliced_score_matching(score, gaussian(2), seed=0)
    with torch.no_grad():
        sliced_score_matching(score, gaussian(2), seed=0)
    assert prepared == [True, False]


def test_its_reductions_agree():
    net, x = network(), gaussian(8)
    with torch.no_grad():
        each, mean, values = (
            sliced_score_matching(net, x, LADDER, seed=1, reduction=name)
            for name in ("none", "mean", "mean_values")
        )
    assert each.shape == (8,)
    assert float(mean) == pytest.approx(float(each.mean()))
    assert float(values) == pytest.approx(float(each.mean()) / 2)


@pytest.mark.parametrize(
    "score",
    [
        lambda x: torch.zeros_like(x),
        lambda x: -x.detach(),
        lambda x: torch.ones(2, requires_grad=True) * x.detach(),
        nf.Score(lambda x, labels: -x.detach(), "normalized", "label"),
    ],
    ids=["constant", "detached", "input detached", "normalised"],
)
def test_a_network_that_cannot_be_differentiated_by_its_input_is_refused(score):
    sigmas = LADDER if isinstance(score, nf.Score) else None
    with pytest.raises(ValueError, match="does not depend on its input as autograd sees it"):
        sliced_score_matching(score, gaussian(3), sigmas, seed=0)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"reduction": "sum"}, "reduction = 'sum'"),
        ({"projections": 0}, "projections = 0: give a whole number of at least 1"),
        ({"directions": "uniform"}, "directions = 'uniform'.*'rademacher', 'gaussian'"),
        ({"x": torch.zeros(0, 2)}, "a batch of floating-point data"),
        ({"seed": -1}, "seed = -1"),
        ({"sample_ids": [1]}, "1 sample_ids for 4 samples"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "give sigmas too, or leave the labels out"),
        ({"net": nf.MLPScore(2, 4, 1, sigmas=LADDER)}, r"without sigmas .* \(sigmas=net.sigmas\)"),
        ({"net": nf.Score(lambda x: x, "epsilon", "none")}, "a function of x alone"),
        ({"net": nf.Score(lambda x, s: x, "score", "sigma")}, "a function of x alone"),
        ({"net": lambda x: x[:, :1]}, r"returned \(4, 1\)"),
        ({"sigmas": [0.1, 1.0]}, "noise levels descend"),
    ],
)
def test_bad_input_is_refused(keywords, message):
    given = {"net": lambda x: -x, "x": torch.zeros(4, 2), **keywords}
    with pytest.raises(ValueError, match=message):
        sliced_score_matching(given.pop("net"), given.pop("x"), **given)


@pytest.mark.parametrize("sigmas", [None, LADDER])
def test_in_inference_mode_the_value_is_the_same(sigmas):
    net = torch.sin if sigmas is None else network()
    expected = sliced_score_matching(net, gaussian(5), sigmas, seed=SEED)
    with torch.inference_mode():
        data = gaussian(5)  # of that mode, too
        labels = None if sigmas is None else torch.tensor([0, 1, 2, 0, 1])
        found = sliced_score_matching(net, data, sigmas, seed=SEED)
        assert sliced_score_matching(net, data, sigmas, labels, seed=SEED).isfinite()
    assert torch.equal(found, expected)
    assert not found.requires_grad
