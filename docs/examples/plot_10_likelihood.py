"""
How likely is a digit?
======================

The probability flow ODE, run from an image up to noise, gives the likelihood of that image
(Song et al. 2021, equation 39). Digits that the network never saw run from plain to odd when
they are sorted by it; of the same digits with two rows of pixels in each other's place nearly
all are less likely.
"""

import matplotlib.pyplot as plt
import torch

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.pictures.images import image_grid

net = nf.load_checkpoint("digits")
images = digits("test").images[:80]
swapped = images[:, :, [0, 1, 5, 3, 4, 2, 6, 7]]


def bits(some):
    """Bits per pixel, of images with 17 grey levels; few steps, for a picture."""
    found = nf.log_likelihood(net, some, seed=0, grey_levels=17, method="heun", steps=8)
    return found.bits_per_dim


own, odd = bits(images), bits(swapped)
print(f"{float((own < odd).float().mean()):.0%} of the digits are likelier as they are")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.7), width_ratios=(1, 1.1))
edges = torch.linspace(1.4, 4.2, 29)
left.hist(own, edges, alpha=0.65, label="held-out digits")
left.hist(odd, edges, alpha=0.65, label="two rows swapped")
left.set(xlabel="bits per pixel (fewer: likelier)", yticks=[])
left.spines["left"].set_visible(False)
left.legend(loc="upper right")

order = own.argsort()
gap = torch.zeros(10, 1, 8, 8)
picked = torch.cat([images[order[:20]], gap, images[order[-20:]]])
right.imshow(image_grid(1 - picked, columns=10), cmap="gray")
right.set_title("the likeliest twenty, and the least likely")
right.axis("off")
plt.show()

assert (own < odd).float().mean() > 0.8
