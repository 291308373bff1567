"""A narrower network, fewer images."""

SMALLER = {"ngf=128": "ngf=8", "images[:32]": "images[:2]"}
