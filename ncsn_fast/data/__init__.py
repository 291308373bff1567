"""Images in: the bundled digits and a user's own."""

from ncsn_fast.data.digits import Digits, digits
from ncsn_fast.data.load import load_images, load_pixels

__all__ = ["Digits", "digits", "load_images", "load_pixels"]
