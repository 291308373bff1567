"""What the GPU kernels are compiled to, counted without a GPU."""
