"""Channel matrices between antennas, seen through pilots."""

from __future__ import annotations

from torch import Tensor

from ncsn_fast.guidance.operators.base import Array, Operator, array, as_channels, as_complex
from ncsn_fast.support import checks


class MIMO(Operator):
    """Channel estimation: Y = W H P for a complex channel matrix H, (2, N_r, N_t).

    Y is (2, N_w, N_p): pilots P are known from the right, a combiner W from the left, one of them
    or both. With receiver noise of power N₀ the noise_std of each real number is √(N₀/2).

        MIMO(pilots, receivers)                          # Y = H P
        MIMO(combiner=pilots, transmitters=transmitters) # Y = P H
        MIMO(pilots, combiner=combiner)                  # Y = W H P

    Args:
        pilots: (N_t, N_p) complex, the transmitted symbols P; (n, N_t, N_p) for those of each
            sample. None: Y = W H.
        receivers: N_r; to be given where there is no combiner.
        combiner: (N_w, N_r) complex, W; (n, N_w, N_r) for that of each sample. None: Y = H P.
        transmitters: N_t; to be given where there are no pilots.

    Raises:
        ValueError: for matrices that are not complex, sizes that differ, and for neither of them.
    """

    def __init__(
        self,
        pilots: Array | None = None,
        receivers: int | None = None,
        *,
        combiner: Array | None = None,
        transmitters: int | None = None,
    ) -> None:
        given: dict[str, Tensor] = {}
        if pilots is not None:
            given["pilots"] = _matrix("pilots", pilots, "(N_t, N_p), transmit antennas by symbols")
        if combiner is not None:
            given["combiner"] = _matrix("combiner", combiner, "(N_w, N_r), by receive antennas")
        if not given:
            raise ValueError("there are neither pilots nor a combiner: give one of them, or both")
        receivers, measured = _sizes("receivers", receivers, given.get("combiner"))
        right = given["pilots"].mT if pilots is not None else None
        transmitters, symbols = _sizes("transmitters", transmitters, right)
        each = [name for name, value in given.items() if value.ndim == 3]
        shapes = (2, receivers, transmitters), (2, measured, symbols)
        super().__init__(*shapes, per_sample=each, **given)

    def forward(self, x: Tensor) -> Tensor:
        x = self.check("forward", x, self.shape)
        z = as_complex(x, 1)
        if "combiner" in self._given:
            z = self.constant("combiner", x) @ z
        if "pilots" in self._given:
            z = z @ self.constant("pilots", x)
        return as_channels(z, 1)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check("adjoint", y, self.measured)
        z = as_complex(y, 1)
        if "pilots" in self._given:
            z = z @ self.constant("pilots", y).mH
        if "combiner" in self._given:
            z = self.constant("combiner", y).mH @ z
        return as_channels(z, 1)


def _matrix(name: str, value: Array, sizes: str) -> Tensor:
    matrix = array(name, value)
    if not matrix.is_complex() or matrix.ndim not in (2, 3):
        raise ValueError(
            f"{name} of {matrix.dtype}, shape {tuple(matrix.shape)}: give a complex matrix {sizes},"
            " or n of these in front"
        )
    return matrix


def _sizes(name: str, antennas: int | None, matrix: Tensor | None) -> tuple[int, int]:
    """How many antennas there are, and how many numbers a matrix (…, M, antennas) makes of them."""
    if matrix is None:
        number = checks.count(name, antennas, 1, 1 << 31)
        return number, number
    if antennas is not None and checks.count(name, antennas) != matrix.shape[-1]:
        raise ValueError(
            f"{name} = {antennas!r}, but the matrix is for {matrix.shape[-1]}: leave it out"
        )
    return matrix.shape[-1], matrix.shape[-2]


__all__ = ["MIMO"]
