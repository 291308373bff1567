"""Images in, and their classes: the bundled digits and a user's own."""

from ncsn_fast.data.digits import digits
from ncsn_fast.data.load import load_images, load_pixels

__all__ = ["digits", "load_images", "load_pixels"]
