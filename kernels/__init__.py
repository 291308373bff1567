"""The fast implementations, one file per operation: Triton for GPUs, C++ for CPUs."""
