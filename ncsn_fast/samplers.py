"""A sampler is a table: every method on score models is two lines, run once per row.

    x ← a·x + b·n + c·h + d·z + w·g        z ~ N(0, I);  g = optional guidance drift
    h ← e·x_old + f·n                      one history buffer, for multistep methods

where n = σ·s(x, σ) is the normalised score at the row's noise level and the network is shown
c_in·x. A method is a pure function that returns such a table, computed in float64 on the host; the
engine runs any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ncsn_fast.checks import count
from ncsn_fast.levels import check_sigmas, check_step_size
from ncsn_fast.table import Table


def langevin(step_size: float, steps: int) -> Table:
    """Plain Langevin dynamics x ← x + α·s + √(2α)·z; σ is 1, so the score is the normalised one.

    (Some texts write α/2 and √α for what is called α and √(2α) here, as in the published code.)

    Args:
        step_size: α > 0.
        steps: how many.
    """
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size = {step_size}: Langevin dynamics needs a finite α > 0")
    return Table.of(np.ones(count("steps", steps)), b=step_size, d=math.sqrt(2 * step_size))


def annealed_langevin(
    sigmas: Sequence[float] | np.ndarray | Tensor,
    step_size: float,
    steps_per_level: int,
    denoise: bool = True,
) -> Table:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1, as in the published code).

    At level i, T times, with α_i = ε(σ_i/σ_L)²:  x ← x + (α_i/σ_i)·n + √(2α_i)·z.
    At the end, where ``denoise`` is set (2020):  x ← x + σ_L·n.

    Args:
        sigmas: (L,) noise levels, descending.
        step_size: ε, with 0 < ε < 2σ_L².
        steps_per_level: T.
        denoise: whether the last row removes the noise of the smallest level.
    """
    ladder = check_sigmas(sigmas).double().numpy()
    steps_per_level = count("steps_per_level", steps_per_level)
    check_step_size(step_size, float(ladder[-1]))
    levels = np.repeat(np.arange(len(ladder)), steps_per_level)
    sigma = ladder[levels]
    alpha = step_size * (sigma / ladder[-1]) ** 2
    table = Table.of(sigma, b=alpha / sigma, d=np.sqrt(2 * alpha), level=levels)
    if not denoise:
        return table
    return table + Table.of(ladder[-1:], b=ladder[-1], level=len(ladder) - 1)


__all__ = ["annealed_langevin", "langevin"]
