"""What ``ncsn-fast train`` keeps of a run."""
