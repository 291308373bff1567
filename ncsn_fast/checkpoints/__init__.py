"""Networks on disk, and on the Hugging Face Hub."""

from __future__ import annotations

from ncsn_fast.checkpoints.pretrained import from_pretrained, push_to_hub, save_pretrained

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
