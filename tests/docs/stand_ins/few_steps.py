"""The bundled digits stand for the reader's data."""

from ncsn_fast.data import digits

SMALLER = {"arange(64)": "arange(4)", "sampler(64": "sampler(4", "sample(net, 16": "sample(net, 2"}
brightness = float(digits().images.mean())
