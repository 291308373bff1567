"""Studies that take longer: quality against precision, steps, training."""
