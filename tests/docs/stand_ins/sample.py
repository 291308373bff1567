"""A score, a measurement and photos, all of them small."""

import torch

import ncsn_fast as nf

SMALLER = {
    "nf.sample(net, 64": "nf.sample(net, 2",
    "range(64, 128)": "range(64, 66)",
    "steps=10": "steps=2",
    "(50, 0.01, 232)": "(50, 0.01, 8)",
    "shape=(3, 32, 32)": "shape=(3, 8, 8)",
    "sampler(128": "sampler(2",
    "every=100": "every=10",
    "sigma=0.5": "sigma=20.0",
    "grey_levels=256)": "grey_levels=256, steps=2)",
}
levels = nf.geometric_sigmas(50, 0.01, 8).view(-1, 1, 1, 1)


def score(x, labels):
    return (0.5 - x) / levels[labels] ** 2


def drift(x):
    return torch.zeros_like(x)


photos = torch.rand(2, 3, 8, 8)
pixels = torch.randint(0, 256, (2, 1, 8, 8)) / 255
mask, known, image = torch.ones(3, 8, 8), photos[0], photos[0]
A, noise_std = nf.operators.Downsample(2, (3, 8, 8)), 0.1
y = A.forward(photos)
