"""An official checkpoint, a score, a measurement and images, all of them small."""

import torch
import yaml
from helpers.checkpoints import CONFIG, network, weights_of

import ncsn_fast as nf

SMALLER = {
    "nf.sample(net, 64": "nf.sample(net, 2",
    "range(64, 128)": "range(64, 66)",
    "steps=50": "steps=5",
    "(50, 0.01, 232)": "(50, 0.01, 8)",
    "shape=(3, 32, 32)": "shape=(3, 8, 8)",
    "sampler(128": "sampler(2",
    "every=100": "every=10",
    "sigma=0.5": "sigma=20.0",
    "grey_levels=256)": "grey_levels=256, steps=2)",
}
net = network(channels=3)
torch.save([weights_of(net)], "checkpoint_300000.pth")
data = {**CONFIG["data"], "channels": 3}
with open("cifar10.yml", "w", encoding="utf-8") as file:
    yaml.safe_dump({**CONFIG, "data": data}, file)

levels = nf.geometric_sigmas(50, 0.01, 8).view(-1, 1, 1, 1)


def score(x, labels):
    return (0.5 - x) / levels[labels] ** 2


def drift(x):
    return torch.zeros_like(x)


images = pixels = torch.randint(0, 256, (2, 3, 8, 8)) / 255
mask, known, image = torch.ones(3, 8, 8), images[0], images[0]
A, noise_std = nf.operators.Downsample(2, (3, 8, 8)), 0.1
y = A.forward(images)
