"""The GPU kernels in Triton, one file per operation."""
