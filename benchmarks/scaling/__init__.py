"""What more GPUs would do: python -m ncsn_fast.benchmarks.scaling."""
