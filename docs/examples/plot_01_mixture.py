"""
A mixture, from noise to the law
================================

A quarter of the points shall lie in each of three narrow modes, and a quarter in a wide one
between them. The score of such a mixture is known at every noise level, so nothing is learned
here: annealed Langevin dynamics (Song & Ermon 2019) alone carries uniform noise to it, from the
largest level, at which there is one hill, to the smallest, at which there are four.
"""

import matplotlib.pyplot as plt
import torch

import ncsn_fast as nf

MEANS = torch.tensor([[-4.0, -3.0], [4.0, -3.0], [0.0, 4.5], [0.0, 0.0]])
WIDTHS = torch.tensor([0.35, 0.35, 0.35, 1.2])
WEIGHTS = torch.tensor([0.25, 0.25, 0.25, 0.25])


def law(x, sigma):
    """log p_σ (B,) of points (B, 2) and which component they are of (B, 4)."""
    variance = WIDTHS**2 + sigma**2
    squares = (MEANS - x[:, None]).square().sum(2)
    logs = WEIGHTS.log() - variance.log() - 0.5 * squares / variance
    return logs.logsumexp(1), logs.softmax(1), variance


def score(x, sigma):
    _, share, variance = law(x, sigma[:, None])
    return ((share / variance)[..., None] * (MEANS - x[:, None])).sum(1)


# %%
# The sampler is told what the function returns, and how it is told the noise level.

sigmas = nf.geometric_sigmas(12, 0.02, 24)
sampler = nf.Sampler(
    nf.Score(score, "score", "sigma"), (2,), sigmas, step_size=8e-5, steps_per_level=20
)
every = len(sampler.table) // 8
start = 16 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) - 8
points, states = sampler(2000, seed=0, initial=start, every=every)
levels = sampler.kept_sigmas(every)

# %%
# Eight moments of the chain, on the density of the noise level that it is at.

grid = torch.linspace(-8, 8, 160)
plane = torch.cartesian_prod(grid, grid)
figure, panels = plt.subplots(2, 4, figsize=(7.4, 4.0), sharex=True, sharey=True)
for panel, k in zip(panels.flat, [0, 1, 2, 3, 4, 5, 6, len(states) - 1], strict=True):
    density = law(plane, max(levels[k], 0.02))[0].exp().view(160, 160).T
    panel.imshow(
        density**0.4,
        extent=(-8, 8, -8, 8),
        origin="lower",
        cmap="Blues",
        alpha=0.8,
        interpolation="bilinear",
    )
    panel.scatter(*states[k].T, s=0.9, color="#d9713c", alpha=0.6)
    panel.set(xlim=(-8, 8), ylim=(-8, 8), aspect="equal", xticks=[], yticks=[])
    panel.set_title(f"σ = {levels[k]:.2g}" if levels[k] else "the end")
    panel.spines[:].set_visible(False)
plt.show()

# %%
# A point is of the mode that it most probably comes from: a quarter each.

share = law(points, sigmas[-1])[1].argmax(1).bincount(minlength=4) / len(points)
print("shares of the modes:", [round(float(s), 3) for s in share])
assert (share - WEIGHTS).abs().max() < 0.05
