"""
Noise levels from the data
==========================

How much noise is enough, how many levels, how long a step: three rules of Song & Ermon 2020 say
it from the data alone. The largest level is the largest distance between two images, so that a
chain can go from any to any; neighbouring levels overlap, so that the samples of one are
typical for the next; and the step size keeps the noise of a chain at its level.
"""

# sphinx_gallery_thumbnail_number = 2

import matplotlib.pyplot as plt
import numpy as np
import torch

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.methods.levels import relative_variance

images = digits("train").images
schedule = nf.auto_schedule(images)
sigmas = schedule.sigmas
print(schedule)

# %%
# One digit at every other level.

z = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
shown = sigmas[::2]
figure, panels = plt.subplots(1, len(shown), figsize=(7.4, 0.95))
for panel, sigma in zip(panels, shown, strict=True):
    panel.imshow((images[9, 0] + sigma * z).clamp(0, 1), vmin=0, vmax=1)
    panel.set_title(f"{float(sigma):.2g}", fontsize=8)
    panel.axis("off")
plt.show()

# %%
# The distances between all pairs of images; the levels; and what a step size does to the noise
# of a chain. The rule takes the ε for which the variance is nearest to that of the level.

first, ratio, last = float(sigmas[0]), float(sigmas[0] / sigmas[1]), float(sigmas[-1])
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(7.4, 2.4))
left.hist(torch.pdist(images.flatten(1)), 60, color="#2f6f9f", alpha=0.85)
left.axvline(first, color="#d9713c")
left.text(
    first - 0.1, left.get_ylim()[1], f"σ₁ = {first:.2g}", va="top", ha="right", color="#d9713c"
)
left.set(title="distances between two images", yticks=[])
left.spines["left"].set_visible(False)

middle.semilogy(range(1, len(sigmas) + 1), sigmas, "o-", markersize=3)
middle.set(title=f"the {len(sigmas)} noise levels", xlabel="level")

chosen = schedule.step_size / last**2
for steps, style in ((np.linspace(0.03, 0.9, 200), "-"), (np.array([chosen]), "o")):
    right.plot(steps, relative_variance(steps, ratio, schedule.steps_per_level), style)
right.axhline(1, color="#9a9a9a", linewidth=0.8)
right.text(chosen, 1.27, "chosen", ha="center", color="#d9713c")
right.set(title="variance over the level's", xlabel="step size ε / σ_L²")
plt.show()
