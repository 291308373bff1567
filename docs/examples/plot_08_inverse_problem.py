"""
An inverse problem: 64 pixels from 32 random sums
=================================================

Of each digit 32 sums with random weights are known, with noise: half as many as it has pixels.
The measurement enters the chain as guidance, beside the score of a network that knows digits;
:doc:`../posterior` says which guidance for what. Several samples show what the measurement
leaves open.
"""

import matplotlib.pyplot as plt
import torch

import ncsn_fast as nf
from ncsn_fast.data.digits import digits

net = nf.load_checkpoint("digits")
images, labels = digits("test")
truth = torch.stack([images[labels == digit][4] for digit in (2, 3, 6, 8)])
generator = torch.Generator().manual_seed(0)
matrix = torch.randn(32, 64, generator=generator) / 8
operator = nf.operators.Dense(matrix, net.shape)
y = operator.forward(truth)
y = y + 0.02 * torch.randn(y.shape, generator=generator)

# %%
# Six samples of each posterior, in one batch: the measurement has one entry for each.

sampler = nf.Sampler(net)
guidance = nf.posterior.gaussian_likelihood(operator, y.repeat_interleave(6, 0), noise_std=0.02)
x = sampler(24, seed=0, guidance=guidance).view(4, 6, 8, 8)
mean, spread = x.mean(1), x.std(1)
least_squares = (y @ torch.linalg.pinv(matrix).T).view(4, 8, 8)

figure, panels = plt.subplots(4, 8, figsize=(7.4, 4.2))
titles = ["least squares", "", "", "samples", "", "mean", "spread", "the real one"]
for i, line in enumerate(panels):
    shown = [least_squares[i], *x[i, :4], mean[i], spread[i], truth[i, 0]]
    for panel, title, picture in zip(line, titles, shown, strict=True):
        tones = {"cmap": "Oranges", "vmax": 0.4} if title == "spread" else {"vmax": 1}
        panel.imshow(picture.clamp(0, 1), vmin=0, **tones)
        panel.axis("off")
        if i == 0:
            panel.set_title(title, loc="right" if title == "samples" else "center")
plt.show()

# %%
# The samples say how far off their mean may be: its error is about their spread. Least squares,
# which knows nothing of digits, is several times as far off.


def size(difference):
    return float(difference.square().mean().sqrt())


error = size(mean - truth[:, 0])
print(f"error of the mean {error:.2f}, spread of the samples {size(spread):.2f}")
print(f"error of least squares {size(least_squares - truth[:, 0]):.2f}")
assert 0.5 < error / size(spread) < 1.5
assert error < 0.5 * size(least_squares - truth[:, 0])
