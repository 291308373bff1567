"""What the tests of the native kernels share: inputs, noise, tolerances."""

from __future__ import annotations

import math

import pytest
import torch

from ncsn_fast import noise, reference
from ncsn_fast.device import native

if native.missing():
    pytest.skip(f"no native kernels: {native.missing()}", allow_module_level=True)

CPP = native.ops()
CAPABILITIES = CPP.capability("")[1:]
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = (torch.float32, torch.bfloat16)
SEED, STEP = (1 << 64) - 0x123456789, (1 << 31) + 5
COEFFICIENTS = (0.9, 0.3, -0.2, 0.7, 0.1, 0.4, 0.25, 0.5, 0.6)
CLAMP = (-0.8, 0.9)


def images(shape, dtype=torch.float32, last=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return laid(torch.randn(shape, generator=generator).to(dtype), last)


def laid(tensor, last):
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor.contiguous()


def poisoned(shape, dtype=torch.float32, last=False):
    return laid(torch.full(shape, math.nan, dtype=dtype), last)


def assert_close(found, exact, plain):
    """Twice the error that PyTorch makes in the same types, and a little."""
    assert found.dtype == plain.dtype
    assert found.shape == exact.shape
    error = (found.double() - exact).abs().max()
    limit = 2 * (plain.double() - exact).abs().max() + ALLOWED[found.dtype]
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"


def sample_ids(count):
    return (torch.arange(count) * 70_368_744_177_667 + (1 << 48) - 1) % (1 << 48)


def which_noise(count):
    device = torch.device("cpu")
    return noise.seed_tensor(SEED, device), noise.step_tensor(STEP, device), sample_ids(count)


def normal(shape, stream, step, dtype):
    which = {"seed": SEED, "stream": stream, "step": step, "sample_ids": sample_ids(shape[0])}
    return noise.normal(shape[1:], **which, dtype=dtype)


def update_inputs(shape, uses, dtype):
    names = ("x", "n", "z", "history", "guidance", "known", "mask")
    given = {"x", "n", *uses.split()} | ({"known"} if "mask" in uses else set())
    values = {
        name: images(shape, seed=i) if name in given else None for i, name in enumerate(names)
    }
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
    clamp = CLAMP if "clamp" in uses else None
    return reference.sampler_update(
        **inputs, known_z=known_z, scale_input="scale" in uses, clamp=clamp
    )


def run_update(inputs, uses, out):
    low, high = CLAMP if "clamp" in uses else (None, None)
    rest = [inputs[name] for name in ("z", "history", "guidance", "mask", "known")]
    CPP.sampler_update(
        *(inputs["x"], inputs["n"], inputs["row"], *which_noise(len(inputs["x"])), *rest),
        *("noise" in uses, "scale" in uses, low, high, *out),
    )
    return out


def norm_parameters(shape, per_sample):
    size = shape[:2] if per_sample else shape[1:2]
    gamma, alpha, beta = (images(size, seed=seed) for seed in (1, 2, 3))
    return 1 + 0.1 * gamma, 1 + 0.1 * alpha, 0.1 * beta
