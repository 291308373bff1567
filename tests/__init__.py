"""A package, so that ``python -m tests.fuzz`` is this one: torch-fidelity installs a ``tests``."""
