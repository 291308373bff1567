"""Runs a table on a score network."""
