"""
Between two chains
==================

Two chains that begin in the same state and are driven by two noises end in two images. Chains
driven by cos θ·p + sin θ·q, a noise that turns from one to the other, end in between (Song &
Ermon 2020): every image on the way is one that the network finds likely, not a blend of two.
"""

import matplotlib.pyplot as plt
import torch

import ncsn_fast as nf
from ncsn_fast.data.digits import digits
from ncsn_fast.pictures.images import image_grid

net = nf.load_checkpoint("digits")
sampler = nf.Sampler(net)
between = nf.interpolate(sampler, 5, 12, seed=5)  # (5, 12, 1, 8, 8)

figure, panel = plt.subplots(figsize=(7.4, 3.2))
panel.imshow(image_grid(1 - between.flatten(0, 1), columns=12), cmap="gray")
panel.axis("off")
plt.show()

# %%
# Both ends are chains of the sampler itself. What lies between is no blend: it is nearer to
# digits that there are than the mixtures of both ends would be.

train = digits("train").images.flatten(1)
blends = torch.stack([torch.lerp(between[:, 0], between[:, -1], t) for t in (0.4, 0.5, 0.6)], 1)
for name, some in {"on the way": between[:, 4:8], "blends": blends}.items():
    nearest = torch.cdist(some.flatten(0, 1).flatten(1), train).min(1).values
    print(f"{name}: {float(nearest.mean()):.2f} to the nearest training image")
