"""Linear operators A of inverse problems y = A x + noise, with exact adjoints."""

from ncsn_fast.guidance.operators.base import Operator
from ncsn_fast.guidance.operators.channels import MIMO
from ncsn_fast.guidance.operators.fourier import MRI, Fourier
from ncsn_fast.guidance.operators.images import Blur, Dense, Downsample, Mask, Scale

__all__ = ["MIMO", "MRI", "Blur", "Dense", "Downsample", "Fourier", "Mask", "Operator", "Scale"]
