"""A denoiser, a measurement for it, pixels and photos to train on: all of them small."""

import torch
from reader_photos import write

import ncsn_fast as nf

SMALLER = {
    "nf.sample(net, 64, seed=0)  #": 'nf.sample(net, 2, seed=0, method="euler", steps=2)  #',
    "nf.sample(net, 64, seed=0, method": "nf.sample(net, 2, seed=0, method",
    "(3, 32, 32)": "(3, 8, 8)",
    "sampler(16": "sampler(2",
    '"ancestral", steps=50': '"ancestral", steps=5',
    "steps=10_000": "steps=2, batch_size=4",
}
RUN = {
    "ncsn-fast schedule photos/ --image-size 32": "ncsn-fast schedule photos/ --image-size 8",
    "ncsn-fast train --data photos/ --image-size 32 --flip --out runs/photos": (
        "ncsn-fast train --data photos/ --image-size 8 --flip --out runs/photos --steps 3 --ngf 4"
    ),
    "ncsn-fast sample runs/photos/model.safetensors -n 100 --gif": (
        "ncsn-fast sample runs/photos/model.safetensors -n 4 --gif --method euler --steps 3"
    ),
}


def denoise(x, sigma):
    return 0.5 + (x - 0.5) / (1 + sigma.view(-1, 1, 1, 1) ** 2)


A = nf.operators.Downsample(2, (3, 8, 8))
y = A.forward(torch.rand(2, 3, 8, 8))
pixels = torch.rand(12, 1, 8, 8)
write("photos")
