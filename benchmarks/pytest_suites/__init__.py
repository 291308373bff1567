"""One entrance for pytest-benchmark."""
