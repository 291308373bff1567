"""
A score network of one's own, learned from a spiral
===================================================

Thirty lines from points to new points: the noise levels are chosen from the data, a small
network is trained by denoising score matching over all of them, and annealed Langevin dynamics
draws from it. The arrows are the score that it has learned: at a large level they point to the
middle of the data, at a small one to the nearest piece of the spiral.
"""

import matplotlib.pyplot as plt
import torch

import ncsn_fast as nf

torch.manual_seed(0)
turn = 3.4 * torch.pi * (0.2 + 0.8 * torch.rand(4000).sqrt())
spiral = torch.stack([turn.cos(), turn.sin()], 1) * turn[:, None] / 5
spiral += 0.03 * torch.randn_like(spiral)

schedule = nf.auto_schedule(spiral, sigma_min=0.03, steps_per_level=10)
print(schedule)
net = nf.MLPScore(dim=2, hidden=128, layers=3, sigmas=schedule.sigmas)
net.sampling = schedule.sampling
settings = nf.TrainConfig(
    steps=1500, batch_size=256, learning_rate=4e-3, cooldown=1000, ema=0.99, log_every=100
)
net = nf.Trainer(net, spiral, settings).fit()
points = nf.sample(net, 2500, seed=0)

# %%
# The direction of the score at three of the levels, over the data; then what was drawn.

grid = torch.linspace(-2.3, 2.3, 15)
plane = torch.cartesian_prod(grid, grid)
figure, panels = plt.subplots(1, 4, figsize=(7.4, 2.1), sharex=True, sharey=True)
for panel, level in zip(panels, (1, 4, len(net.sigmas) - 1), strict=False):
    with torch.no_grad():
        n = net.normalized(plane, torch.full((len(plane),), level))
    panel.scatter(*spiral[::4].T, s=0.8, color="#d9713c", alpha=0.5)
    panel.quiver(
        *plane.T, *(n / n.norm(dim=1, keepdim=True)).T, color="#2f6f9f", scale=20, width=0.007
    )
    panel.set_title(f"score at σ = {float(net.sigmas[level]):.2g}")
panels[3].scatter(*points.T, s=0.9, alpha=0.6, color="#2f6f9f")
panels[3].set_title("drawn")
for panel in panels:
    panel.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
plt.show()

nearest = torch.cdist(points, spiral).min(1).values
print(f"{float((nearest < 0.1).float().mean()):.1%} of the points lie within 0.1 of the data")
assert (nearest < 0.1).float().mean() > 0.9
