"""Files to look at: grids, chains, curves."""
