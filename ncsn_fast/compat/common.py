"""What the modules of this folder share."""

from __future__ import annotations


def check_noise(noise: str, seed: int | None) -> None:
    """Refuse a kind of noise that does not exist, and a seed that it would not heed."""
    if noise not in ("philox", "torch"):
        raise ValueError(f"noise = {noise!r}: choose 'philox' or 'torch'")
    if noise == "torch" and seed is not None:
        raise ValueError("seed goes with noise='philox'; torch.manual_seed governs noise='torch'")


__all__ = ["check_noise"]
