"""Which forms the convolutions of a prepared network have run in, in words."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from torch import nn

from ncsn_fast.device import backends
from ncsn_fast.models.conv_forms import DIRECT, NAMES
from ncsn_fast.models.packed_conv import PackedConv


def forms(modules: Iterable[nn.Module]) -> str:
    """What tells whether the convolutions of two networks have run in the same forms.

    Args:
        modules: of a network that has been called.

    Returns:
        "direct", where none of them was filtered, as on a GPU. Else how many were, by their form,
        and a digest of their geometries and forms: "F(2×2) 3, F(4×4) 63 (f0e1d2c3b4a5)".
    """
    run = _run(modules)
    return as_text((tile, str(conv.geometry(*sides))) for conv, sides, tile in run)


def as_text(tiles: Iterable[tuple[int, str]]) -> str:
    """Sides of tiles or ``DIRECT``, each with what is computed in it, told as by :func:`forms`."""
    found = sorted((NAMES[tile], what) for tile, what in tiles if tile != DIRECT)
    if not found:
        return NAMES[DIRECT]
    digest = hashlib.sha256(repr(found).encode()).hexdigest()
    return f"{_counted(Counter(name for name, _ in found))} ({digest[:12]})"


def summary(modules: Iterable[nn.Module]) -> str:
    """How many of a network's convolutions ran in each form, and the memory that takes."""
    run = list(_run(modules))
    if not run:
        return "no convolutions on packed weights"
    counted = _counted(Counter(NAMES[tile] for _, _, tile in run))
    filtered = {(conv, tile) for conv, _, tile in run if tile}
    if not filtered:
        return f"convolutions {counted}"
    needed = sum(conv.transformed_bytes(tile) for conv, tile in filtered)
    return f"convolutions {counted}, for which transformed weights take {needed / 2**20:.1f} MiB"


def _run(modules: Iterable[nn.Module]) -> Iterator[tuple[PackedConv, tuple[int, ...], int]]:
    """Its convolutions that run on packed weights, with the sides of their images and tiles."""
    direct = backends.wished()[0] == "torch"  # whatever was chosen before
    for module in modules:
        if isinstance(module, PackedConv) and module.packed is not None:
            for sides, tile in list(module.tiles.items()):
                yield module, sides, DIRECT if direct else tile


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} {names[name]}" for name in NAMES.values() if names[name])


__all__ = ["as_text", "forms", "summary"]
