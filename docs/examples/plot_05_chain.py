"""
The chain, from noise to digits
===============================

Annealed Langevin dynamics on the digits, every second noise level. Below each state, in blue, is
what the network makes of it, the denoised image D(x) = x + σ·n(x): shapes at random while the noise
is larger than the strokes, and one digit from then on. Between σ = 1 and 0.2 it is decided which.
"""

import matplotlib.pyplot as plt

import ncsn_fast as nf

net = nf.load_checkpoint("digits")
sampler = nf.Sampler(net)
states, denoised, levels = [], [], []


def look(row, x, n):
    """Called after every row with the state before it and the normalised score there."""
    if row % 20 == 0 or row == len(sampler.table) - 1:  # ten steps a level
        sigma = sampler.table.sigma[row]
        states.append(x.clone())
        denoised.append(x + sigma * n)
        levels.append(sigma)


sampler(3, seed=0, sample_ids=(0, 1, 5), callback=look)

# %%
figure, panels = plt.subplots(6, len(levels), figsize=(7.4, 3.9))
for k, column in enumerate(panels.T):
    for i in range(3):
        for panel, images, tones in ((2 * i, states, "gray_r"), (2 * i + 1, denoised, "Blues")):
            column[panel].imshow(images[k][i, 0].clamp(0, 1), vmin=0, vmax=1, cmap=tones)
            column[panel].axis("off")
    column[0].set_title(f"{levels[k]:.2g}", fontsize=8)
figure.suptitle("noise level σ", fontsize=9)
plt.show()
