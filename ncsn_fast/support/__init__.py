"""What knows nothing of score networks: files, progress, checks."""
