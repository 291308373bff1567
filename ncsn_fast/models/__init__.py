"""Score networks: NCSN, the NCSNv2 family, and a small network for points in the plane."""

from __future__ import annotations

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.mlp import MLPScore
from ncsn_fast.models.ncsn import NCSN
from ncsn_fast.models.ncsnv2 import NCSNv2, NCSNv2Deeper, NCSNv2Deepest

__all__ = [
    "NCSN",
    "MLPScore",
    "NCSNv2",
    "NCSNv2Deeper",
    "NCSNv2Deepest",
    "ScoreNetwork",
]
