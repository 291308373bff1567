"""A U-Net of diffusers and its scheduler, two steps long."""

import torch
from diffusers import DDPMScheduler, UNet2DModel

down, up = ("DownBlock2D",) * 2, ("UpBlock2D",) * 2
channels = {"in_channels": 1, "out_channels": 1, "block_out_channels": (32, 32)}
unet = UNet2DModel(sample_size=8, down_block_types=down, up_block_types=up, **channels).eval()
unet.requires_grad_(False)
scheduler = DDPMScheduler()
scheduler.set_timesteps(2)
x = torch.randn(1, 1, 8, 8)
