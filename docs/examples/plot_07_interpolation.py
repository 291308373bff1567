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
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.evaluation.features import seen
from ncsn_fast.pictures.images import image_grid

net = nf.load_checkpoint("fashion")
sampler = nf.Sampler(net)
between = nf.interpolate(sampler, 5, 12, seed=5)  # (5, 12, 1, 28, 28)

figure, panel = plt.subplots(figsize=(7.4, 3.2))
panel.imshow(image_grid(1 - between.flatten(0, 1), columns=12), cmap="gray")
panel.axis("off")
plt.show()

# %%
# Both ends are chains of the sampler itself. What lies between is no blend: of more of it a
# classifier is sure what it is, than of the mixtures of both ends.

classifier = load_classifier("fashion")
blends = torch.stack([torch.lerp(between[:, 0], between[:, -1], t) for t in (0.4, 0.5, 0.6)], 1)
for name, some in {"on the way": between[:, 4:8], "blends": blends}.items():
    images = some.flatten(0, 1).clamp(0, 1)
    print(f"{name}: {seen(classifier, images).confident:.0%} are sure to be of one class")
