"""What strangers give for a score: everything that takes one does right by it or refuses it."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import ncsn_fast as nf

SIGMAS = nf.geometric_sigmas(10, 0.1, 6)


class Official(nn.Module):
    """As NCSNv2 is published: labels count its own noise levels."""

    def __init__(self, sigmas=SIGMAS):
        super().__init__()
        self.register_buffer("sigmas", torch.as_tensor(sigmas))
        self.seen: set[int] = set()

    def forward(self, x, y):
        self.seen |= set(y.tolist())
        return -x / (1 + self.sigmas[y][:, None] ** 2)


class Preconditioned(nn.Module):
    """As EDM is published."""

    sigma_min, sigma_max, sigma_data, label_dim = 0.002, 80, 0.5, 0

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **model_kwargs):
        return x / (1 + sigma.reshape(-1, 1) ** 2)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


class OfDiffusers(nn.Module):
    def forward(self, x, timestep, return_dict=True, **_):
        return SimpleNamespace(sample=x)


class LearnedVariance(nn.Module):
    def forward(self, x, t, **_):
        return torch.cat([x, x], 1)


class Raises:
    """Whose attributes cannot be asked for."""

    def __getattr__(self, name):
        raise AttributeError(f"there is no {name}")

    def __call__(self, x, labels):
        return -x


def sampled(score):
    return nf.Sampler(score, (2,), SIGMAS, method="euler", graph=False)(3, seed=0)


def likelihood(score):
    return nf.log_likelihood(score, torch.zeros(2, 2), SIGMAS)


def trained(score):
    return nf.dsm_loss(score, torch.zeros(4, 2), SIGMAS, seed=0)


def trained_by_slices(score):
    return nf.sliced_score_matching(score, torch.zeros(4, 2), SIGMAS, seed=0)


def guided(score):
    guide = nf.guided(score, 1.0, unconditional={"class_labels": None})
    return nf.Sampler(guide, (2,), SIGMAS, method="euler", graph=False)(
        2, seed=0, extra={"class_labels": None}
    )


def edited(score):
    sampler = nf.Sampler(score, (2,), SIGMAS, method="ancestral", graph=False)
    return nf.edit(sampler, torch.zeros(2, 2), start_level=2, seed=0)


TAKING = [sampled, likelihood, trained, trained_by_slices, guided, edited]
# By name: a score that is recognisably none by label, and what the message says of it.
OTHERS = {
    "EDM": (Preconditioned(), 'nf.Score\\(net, "denoiser", "sigma"\\)'),
    "a method of EDM": (Preconditioned().forward, "EDM's preconditioned networks"),
    "EDM on several devices": (nn.DataParallel(Preconditioned()), "EDM's"),
    "EDM compiled": (torch.compile(Preconditioned(), backend="eager"), "EDM's"),
    "partial of EDM": (functools.partial(Preconditioned(), force_fp32=True), "EDM's"),
    "a class": (Official, "got the class Official"),
    "nothing": (None, "got NoneType"),
    "a name": ("digits", "got str"),
    "weights": ({"weight": torch.ones(1)}, "got dict"),
    "an ascending ladder": (Official(SIGMAS.flip(0)), "ascend"),
    "a ladder with 0": (Official(torch.cat([SIGMAS, torch.zeros(1)])), "leave the 0"),
    "another ladder": (Official(2 * SIGMAS), "levels"),
    "another length": (Official(SIGMAS[:-1]), "levels"),
    "learned variance": (LearnedVariance(), "twice the channels"),
    "diffusers": (OfDiffusers(), r"\.sample"),
    "a tuple": (lambda x, labels, **_: (x, x), r"\[0\]"),
    "an array": (lambda x, labels, **_: x.detach().numpy(), "returned ndarray"),
    "whole numbers": (lambda x, labels, **_: x.long(), "floating-point"),
    "complex numbers": (lambda x, labels, **_: x.to(torch.complex64), "floating-point"),
    "one argument": (lambda x: x, "does not take this"),
    "a number": (lambda x, labels, **_: 0.0, "returned float"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("taking", TAKING, ids=lambda one: one.__name__)
def test_what_is_no_score_by_label_is_refused_in_our_words(taking, name):
    score, message = OTHERS[name]
    with pytest.raises(ValueError, match=message) as refused:
        taking(score)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("taking", [sampled, likelihood, edited], ids=lambda one: one.__name__)
def test_labels_are_those_of_the_networks_own_levels(taking):
    net = Official(nf.geometric_sigmas(10, 0.01, 11)[:])
    part = net.sigmas[2:9]
    expected = set(range(2, 9))
    if taking is sampled:
        nf.Sampler(net, (2,), part, method="euler", graph=False)(2, seed=0)
    elif taking is edited:
        sampler = nf.Sampler(net, (2,), part, method="ancestral", graph=False)
        nf.edit(sampler, torch.zeros(2, 2), start_level=3, seed=0)
        expected = set(range(5, 9))
    else:
        score = nf.Score(net, "score", "label", quantize=True)
        nf.log_likelihood(score, torch.zeros(2, 2), part)
    assert net.seen == expected


@pytest.mark.parametrize("sigmas", [[10, 1, 0.1], (10, 1, 0.1), np.array([10, 1, 0.1], ">f8")])
def test_a_ladder_of_any_kind_of_list_is_the_networks_own(sigmas):
    net = Official(SIGMAS)
    del net.sigmas
    net.sigmas = sigmas
    score = nf.Score(net)
    assert torch.equal(score.sigmas, torch.tensor([10, 1, 0.1]))


def test_an_object_without_attributes_is_a_score():
    assert sampled(Raises()).shape == (3, 2)


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (
            nf.guided(lambda x, labels, y: -x, 1.0, unconditional={"y": 0}),
            r"is a Score: .*nf.Sampler\(nf.guided\(",
        ),
        (nf.operators.Mask(torch.ones(2)), "is a Mask, .*nf.posterior.gaussian_likelihood"),
        ("x", r"is a str, needed is a function \(x, n, σ, row\)"),
        (3, "is a int"),
        (lambda x: x, "called with four arguments"),
        (lambda x, n, sigma: x, "called with four arguments"),
        (nn.Linear(2, 2), "is a Linear"),
    ],
)
def test_what_is_no_guidance_is_refused_before_work_begins(guidance, message):
    seen = []
    sampler = nf.Sampler(lambda x, labels: seen.append(x) or -x, (2,), SIGMAS, method="euler")
    with pytest.raises(ValueError, match=message):
        sampler(2, seed=0, guidance=guidance)
    assert not seen


TRANSFORMS = {
    "vmap": lambda call: torch.func.vmap(call)(torch.rand(2, 3, 2)),
    "grad": lambda call: torch.func.grad(lambda x: call(x).sum())(torch.rand(3, 2)),
    "jvp": lambda call: torch.func.jvp(call, (torch.rand(3, 2),), (torch.rand(3, 2),)),
    "jacrev": lambda call: torch.func.jacrev(call)(torch.rand(3, 2)),
}


@pytest.mark.parametrize("transform", list(TRANSFORMS))
def test_transforms_of_torch_func_around_a_chain_are_refused_in_words(transform):
    ladder = nf.geometric_sigmas(5, 0.01, 6)
    net = nf.MLPScore(sigmas=ladder, hidden=4, layers=1)
    sampler = nf.Sampler(net, step_size=2e-5, steps_per_level=1)
    calls = [
        lambda x: sampler(3, seed=0, initial=x),
        lambda x: sampler(3, seed=0) + x,
        lambda x: nf.sample(net, 3, seed=0, step_size=2e-5, steps_per_level=1, initial=x),
        lambda x: nf.edit(sampler, x, start_level=2, seed=0),
        lambda x: nf.interpolate(sampler, 3, 2, seed=0, initial=x)[0],
        lambda x: nf.langevin(torch.neg, x, 0.1, 2, seed=0),
        lambda x: nf.log_likelihood(net, x, seed=0).log_likelihood,
        lambda x: nf.sliced_score_matching(net, x, ladder, seed=0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"inside of torch\.func\.vmap, grad, jvp"):
            TRANSFORMS[transform](call)


def test_inside_of_a_chain_transforms_are_as_good_as_anything():
    ladder = nf.geometric_sigmas(5, 0.01, 6)
    settings = {"sigmas": ladder, "step_size": 2e-5, "steps_per_level": 1}

    def energy(x):
        return -0.5 * x.square().sum()

    plain = nf.Sampler(lambda x, labels: -x, (2,), **settings)(3, seed=0)
    by_transform = nf.Sampler(
        lambda x, labels: torch.func.vmap(torch.func.grad(energy))(x), (2,), **settings
    )
    assert torch.equal(by_transform(3, seed=0), plain)


def test_a_lazy_module_without_values_is_refused():
    class Lazy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.LazyLinear(2)

        def forward(self, x, labels):
            return self.linear(x)

    ladder, net = nf.geometric_sigmas(5, 0.01, 6), Lazy()
    sampler = nf.Sampler(net, (2,), ladder, step_size=2e-5, steps_per_level=1)
    with pytest.raises(
        ValueError, match=r"Lazy\) has lazy parameters without values: call it once"
    ):
        sampler(3, seed=0)
    net(torch.rand(1, 2), None)
    assert sampler(3, seed=0).isfinite().all()
