"""
Digits in ten evaluations
=========================

The network of handwritten digits that comes along, sampled by its own chain of 211 evaluations,
and by DPM-Solver++(2M) with ten, five and three from the same starts. What each costs in
quality is measured in :doc:`../methods`: ten evaluations have the distance of the full chain.
"""

import matplotlib.pyplot as plt

import ncsn_fast as nf
from ncsn_fast.pictures.images import image_grid

net = nf.load_checkpoint("digits")
drawn = {"annealed Langevin dynamics, 211 evaluations": nf.sample(net, 40, seed=0)}
for steps in (10, 5, 3):
    title = f"DPM-Solver++(2M), {steps} evaluations"
    drawn[title] = nf.sample(net, 40, seed=0, method="dpmpp_2m", steps=steps)

# %%
# The grids are of the package too; 1 - images is ink on paper.

figure, panels = plt.subplots(2, 2, figsize=(7.4, 3.6))
for panel, (title, images) in zip(panels.flat, drawn.items(), strict=True):
    panel.imshow(image_grid(1 - images, columns=10), cmap="gray")
    panel.set_title(title)
    panel.axis("off")
plt.show()
