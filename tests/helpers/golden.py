"""Golden values of the official networks: their settings, weights, inputs and results.

The weights come from a rule, so that no weight file is needed: the tensor called ``key`` is drawn
from numpy's RandomState seeded with the CRC-32 of its name.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import build

DATA = Path(__file__).parents[1] / "golden"
GOLDEN = ("ncsn_28", "ncsnv2_32", "ncsnv2deeper_64")


def weight_by_rule(key: str, shape: tuple[int, ...] | list[int]) -> Tensor:
    """The float32 weight called ``key``; any tensor but ``sigmas``."""
    state = np.random.RandomState(zlib.crc32(key.encode()))
    w = torch.from_numpy(state.standard_normal(tuple(shape)).astype(np.float32))
    if key.endswith(".embed.weight"):
        w = 0.1 * w
        w[:, : 2 * shape[1] // 3] += 1
        return w
    if key.endswith(".weight"):
        return w / math.sqrt(math.prod(shape[1:]))
    if key.endswith(("alpha", "gamma")):
        return 1 + 0.1 * w
    return 0.1 * w


def geometric(first: float, last: float, count: int) -> np.ndarray:
    """(L,) float32, computed as the official networks do."""
    return np.exp(np.linspace(np.log(first), np.log(last), count)).astype(np.float32)


def standard_normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    """The standard normals of RandomState(seed), float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


@dataclass(frozen=True)
class Golden:
    """One golden file.

    Attributes:
        settings: network, image_size, channels, ngf, num_levels, sigma_begin, sigma_end, step_lr,
            steps_per_level, param_count, keys (name → shape, in order), param_order.
        values: score, dsm_loss, dsm_loss_per_sample, grad_norms, ald, ald_denoised.
    """

    settings: dict[str, Any]
    values: dict[str, np.ndarray]

    @property
    def sigmas(self) -> np.ndarray:
        s = self.settings
        return geometric(s["sigma_begin"], s["sigma_end"], s["num_levels"])

    @property
    def x(self) -> Tensor:
        """The input, (2, C, H, W)."""
        s = self.settings
        shape = (2, s["channels"], s["image_size"], s["image_size"])
        return torch.from_numpy(np.random.RandomState(0).random_sample(shape).astype(np.float32))

    @property
    def labels(self) -> Tensor:
        return torch.tensor([0, self.settings["num_levels"] - 1])

    @property
    def z(self) -> Tensor:
        """The perturbation of the loss, of x's shape."""
        return standard_normal(1, tuple(self.x.shape))

    def ald_noise(self, step: int) -> Tensor:
        """The noise of step ``step`` of the annealed Langevin run."""
        return standard_normal(1000 + step, tuple(self.x.shape))

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under the official names, with ``sigmas`` where the official file has it."""
        return {
            key: torch.from_numpy(self.sigmas) if key == "sigmas" else weight_by_rule(key, shape)
            for key, shape in self.settings["keys"].items()
        }

    def network(self) -> ScoreNetwork:
        """Our network with these weights, in eval mode."""
        s = self.settings
        names = {"network", "channels", "image_size", "ngf"}
        net = build({name: s[name] for name in names}, self.sigmas)
        net.load_state_dict(self.state_dict())
        return net.eval()


def load_golden(name: str) -> Golden:
    """The golden file called ``name``, one of ``GOLDEN``."""
    settings = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(DATA / f"{name}.npz") as file:
        return Golden(settings, {key: file[key] for key in file.files})
