"""Trains a score network: steps, runs, schedules."""
