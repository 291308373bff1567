"""Fewer images."""

SMALLER = {"sampler(16": "sampler(4"}
