"""Images of 8×8, and a network for them."""

import torch

SMALLER = {"image_size=32, ngf=128": "image_size=8, ngf=4", "steps=300_000": "steps=2"}
x = images = torch.rand(12, 3, 8, 8)
