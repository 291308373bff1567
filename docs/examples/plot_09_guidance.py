"""
Classifier-free guidance, seen from above
=========================================

A network that is told the class of a point, and for a tenth of them nothing, knows the score of
each class and that of all of them. What guidance does is a line through both, s +
scale·(s_class - s): 0 forgets the class, 1 is the law of the class as it is, and more moves
away from what the other classes share with it. Points that could be of two classes go first (Ho
& Salimans 2022).
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import ncsn_fast as nf

torch.manual_seed(0)
classes = torch.arange(6000) % 3
centre = 2 * torch.pi * (classes / 3 + 0.25)
points = torch.stack([centre.cos(), centre.sin()], 1) + 0.75 * torch.randn(6000, 2)


class Net(nn.Module):
    """The noise in points (B, 2), of a class (B,) or of any (3)."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Embedding(4, 16)
        self.body = nn.Sequential(
            nn.Linear(2 + 1 + 16, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x, log_sigma, y):
        told = log_sigma[:, None]
        seen = x / (1 + (2 * told).exp()).sqrt()
        return self.body(torch.cat([seen, told / 4, self.classes(y)], 1))


sigmas = nf.geometric_sigmas(8, 0.02, 16)
net = Net()
score = nf.Score(net, "epsilon", "log_sigma", sigmas)
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for step in range(800):
    rows = torch.randint(len(points), (512,))
    y = classes[rows].masked_fill(torch.rand(512) < 0.1, 3)
    told = nf.Score(lambda x, t, y=y: net(x, t, y), "epsilon", "log_sigma", sigmas)
    loss = nf.dsm_loss(told, points[rows], sigmas, seed=0, step=step)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# The same seeds at four scales.

figure, panels = plt.subplots(1, 5, figsize=(7.4, 1.9), sharex=True, sharey=True)
drawn = {"data": (points[:1800], classes[:1800])}
asked = torch.arange(1800) % 3
for scale in (0.0, 1.0, 2.0, 5.0):
    guided = nf.guided(score, scale, unconditional={"y": 3})
    sampler = nf.Sampler(guided, (2,), sigmas, "dpmpp_2m")
    drawn[f"scale {scale:g}"] = sampler(1800, seed=0, extra={"y": asked}), asked
for panel, (title, (some, which)) in zip(panels, drawn.items(), strict=True):
    for k, color in enumerate(("#2f6f9f", "#d9713c", "#3d9a7d")):
        panel.scatter(*some[which == k].T, s=1.6, alpha=0.5, color=color)
    panel.set(xlim=(-4, 4), ylim=(-3.2, 4.4), aspect="equal", xticks=[], yticks=[], title=title)
    panel.spines[:].set_visible(False)
plt.show()

# %%
# How many of the points lie nearer to the middle of their own class than to those of the
# others:

middle = torch.stack([points[classes == k].mean(0) for k in range(3)])
for title, (some, which) in drawn.items():
    own = torch.cdist(some, middle).argmin(1) == which
    print(f"{title}: {float(own.float().mean()):.0%}")
