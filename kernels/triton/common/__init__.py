"""What the kernels share: launches, tiles, rows, noise, activations."""
