"""
The chain, from noise to clothes
================================

DPM-Solver++ with fresh noise on the network of Fashion-MNIST, every second of 20 levels. Below each
state, in blue, is what the network makes of it, the denoised image D(x) = x + σ·n(x): shapes at
random while the noise is larger than the clothes, and one piece of them from then on. Which is
decided between σ = 5 and 1; what it is made of, below.
"""

import matplotlib.pyplot as plt

import ncsn_fast as nf

net = nf.load_checkpoint("fashion")
sampler = nf.Sampler(net)
states, denoised, levels = [], [], []


def look(row, x, n):
    """Called after every row with the state before it and the normalised score there."""
    if row % 2 == 0 or row == len(sampler.table) - 1:
        sigma = sampler.table.sigma[row]
        states.append(x.clone())
        denoised.append(x + sigma * n)
        levels.append(sigma)


sampler(4, seed=0, callback=look)

# %%
figure, panels = plt.subplots(8, len(levels), figsize=(7.4, 5.4))
for k, column in enumerate(panels.T):
    for i in range(4):
        for panel, images, tones in ((2 * i, states, "gray_r"), (2 * i + 1, denoised, "Blues")):
            column[panel].imshow(images[k][i, 0].clamp(0, 1), vmin=0, vmax=1, cmap=tones)
            column[panel].axis("off")
    column[0].set_title(f"{levels[k]:.2g}", fontsize=8)
figure.suptitle("noise level σ", fontsize=9)
plt.show()
