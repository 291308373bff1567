"""What the tests of the native kernels share: inputs, noise, tolerances."""

from __future__ import annotations

import pytest
import torch
from cases.common import COEFFICIENTS, SEED, STEP, draw, normal, sample_ids

from ncsn_fast import noise, reference
from ncsn_fast.device import native

if native.missing():
    pytest.skip(f"no native kernels: {native.missing()}", allow_module_level=True)

CPP = native.ops()
CAPABILITIES = CPP.capability("")[1:]


def which_noise(count):
    device = torch.device("cpu")
    return noise.seed_tensor(SEED, device), noise.step_tensor(STEP, device), sample_ids(count)


def update_inputs(shape, uses, dtype):
    names = ("x", "n", "z", "history", "guidance", "known", "mask")
    given = {"x", "n", *uses.split()} | ({"known"} if "mask" in uses else set())
    values = {name: draw(shape, seed=i) if name in given else None for i, name in enumerate(names)}
    if "mask" in given:
        values["mask"] = values["mask"] > 0.3
    return {**values, "n": values["n"].to(dtype), "row": torch.tensor(COEFFICIENTS)}


def specified_update(inputs, uses, dtype):
    shape, known_z = inputs["x"].shape, None
    if "noise" in uses:
        inputs = {**inputs, "z": normal(shape, noise.SAMPLER, STEP, dtype)}
    if "mask" in uses:
        known_z = normal(shape, noise.KNOWN, STEP + 1, dtype)
    inputs = {
        name: value if value is None or name in ("n", "mask") else value.to(dtype)
        for name, value in inputs.items()
    }
    return reference.sampler_update(**inputs, known_z=known_z, scale_input="scale" in uses)


def run_update(inputs, uses, out):
    rest = [inputs[name] for name in ("z", "history", "guidance", "mask", "known")]
    CPP.sampler_update(
        *(inputs["x"], inputs["n"], inputs["row"], *which_noise(len(inputs["x"])), *rest),
        *("noise" in uses, *out),
    )
    return out


def norm_parameters(shape, per_sample):
    size = shape[:2] if per_sample else shape[1:2]
    gamma, alpha, beta = (draw(size, seed=seed) for seed in (1, 2, 3))
    return 1 + 0.1 * gamma, 1 + 0.1 * alpha, 0.1 * beta
