"""What steers a chain: conditions, measurements, anybody's drift."""

from ncsn_fast.guidance.base import Guidance, NetworkGuidance
from ncsn_fast.guidance.nonlinear import Nonlinear
from ncsn_fast.guidance.norm_adaptive import NormAdaptive
from ncsn_fast.guidance.through import Denoised, Through, diffpir, dps, exact, mmps, pgdm, tmpd

__all__ = [
    "Denoised",
    "Guidance",
    "NetworkGuidance",
    "Nonlinear",
    "NormAdaptive",
    "Through",
    "diffpir",
    "dps",
    "exact",
    "mmps",
    "pgdm",
    "tmpd",
]
