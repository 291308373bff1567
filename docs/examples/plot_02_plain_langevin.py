"""
Plain Langevin dynamics gets the weights wrong
==============================================

Of ⅕ N((-5, -5), I) + ⅘ N((5, 5), I) a fifth of the points should lie below. Langevin dynamics
with the score of this law finds both modes and divides the points by where they began: hardly
any crosses the empty middle, and near a mode the score does not know how heavy it is. With
noise levels the modes are one at first, and the weights come out right (section 4.3.2 of Song &
Ermon 2019).
"""

import matplotlib.pyplot as plt
import torch

import ncsn_fast as nf

MEANS, WEIGHTS = torch.tensor([[-5.0, -5.0], [5.0, 5.0]]), torch.tensor([0.2, 0.8])


def score(x, sigma):
    variance = 1 + sigma.reshape(-1, 1) ** 2
    towards = MEANS - x[:, None]
    share = (WEIGHTS.log() - 0.5 * towards.square().sum(2) / variance).softmax(1)
    return (share[..., None] * towards).sum(1) / variance


start = 16 * torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)) - 8
plain = nf.langevin(lambda x: score(x, torch.zeros(1)), start, step_size=0.05, steps=1000, seed=0)

sigmas = nf.geometric_sigmas(20, 0.01, 40)
sampler = nf.Sampler(
    nf.Score(score, "score", "sigma"), (2,), sigmas, step_size=2e-5, steps_per_level=25
)
annealed = sampler(3000, seed=0, initial=start)

# %%
# Both chains begin in the same points, and both evaluate the score 1,000 times.

figure, panels = plt.subplots(1, 3, figsize=(7.4, 2.5), width_ratios=(1, 1, 0.9))
below = {}
for panel, (title, points) in zip(
    panels, {"plain Langevin": plain, "annealed Langevin": annealed}.items(), strict=False
):
    left = points.sum(1) < 0
    below[title] = float(left.float().mean())
    for which, color in ((left, "#d9713c"), (~left, "#2f6f9f")):
        panel.scatter(*points[which].T, s=1.5, alpha=0.5, color=color)
    panel.set(xlim=(-9.5, 9.5), ylim=(-9.5, 9.5), aspect="equal", xticks=[], yticks=[])
    panel.set_title(title)
    panel.spines[:].set_visible(False)

names = [*below, "wanted"]
shares = [*below.values(), 0.2]
panels[2].barh(names, shares, color="#d9713c", height=0.55)
panels[2].barh(names, [1 - s for s in shares], left=shares, color="#2f6f9f", height=0.55)
for row, share in enumerate(shares):
    panels[2].text(share / 2, row, f"{share:.2f}", color="white", ha="center", va="center")
panels[2].set(title="share of each mode", xticks=[], xlim=(0, 1))
panels[2].spines[:].set_visible(False)
panels[2].tick_params(length=0)
plt.show()

assert abs(below["plain Langevin"] - 0.5) < 0.05
assert abs(below["annealed Langevin"] - 0.2) < 0.03
