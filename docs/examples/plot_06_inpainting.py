"""
Inpainting: what could stand there
==================================

Half of a digit is known, whatever the shape of that half. Every row of a chain imposes it,
noised to its own level, so that what is drawn beside it fits; each seed is another answer. Any
mask will do, and any method that can begin in noise.
"""

import matplotlib.pyplot as plt
import torch

import ncsn_fast as nf
from ncsn_fast.data.digits import digits

net = nf.load_checkpoint("digits")
sampler = nf.Sampler(net)
row = torch.arange(8)
masks = {
    "left half": (row < 4).expand(8, 8),
    "upper half": (row[:, None] < 4).expand(8, 8),
    "a triangle": row[:, None] <= row,
    "every other pixel": (row[:, None] + row) % 2 == 0,
}
images, labels = digits("test")
known = torch.stack([images[labels == digit][1] for digit in (3, 5, 9, 2)])


# %%
# Six answers to each of four questions, in one batch: mask and known have an entry for each
# sample.

mask = torch.stack(list(masks.values())).repeat_interleave(6, 0)[:, None]
answers = sampler(24, seed=1, mask=mask, known=known.repeat_interleave(6, 0))
assert torch.equal(answers[mask], known.repeat_interleave(6, 0)[mask])

figure, panels = plt.subplots(4, 8, figsize=(7.4, 4.2))
for i, (line, name) in enumerate(zip(panels, masks, strict=True)):
    shown = known[i, 0].masked_fill(~masks[name], torch.nan)  # not known: the colour behind
    for panel, picture in zip(
        line, [shown, *answers[6 * i : 6 * i + 6, 0], known[i, 0]], strict=True
    ):
        panel.set_facecolor("#f3d9c8")
        panel.imshow(picture.clamp(0, 1), vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    line[0].set_ylabel(name, fontsize=8)
panels[0, 0].set_title("known")
panels[0, 3].set_title("drawn", loc="right")
panels[0, 7].set_title("the real one")
plt.show()
