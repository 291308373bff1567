"""Pixels that stand for MNIST's, and for samples."""

import torch

test_pixels, sample_pixels = torch.randint(0, 256, (2, 32, 1, 28, 28), dtype=torch.uint8)
