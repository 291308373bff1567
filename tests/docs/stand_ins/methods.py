"""Fewer images."""

SMALLER = {
    "sample(net, 16": "sample(net, 2",
    "sampler(64": "sampler(2",
    '"digits"), 16': '"digits"), 2',
}
