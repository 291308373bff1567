"""What the tests of the operations' public functions share.

Triton's kernels run in its interpreter, or on the GPU where there is one; those of the CPU where
they can be built.
"""

import pytest
import torch

EVERY = ("torch", "triton", "cpp")
LAST = torch.channels_last
SHAPE = (2, 3, 4, 4)
KEY = {"seed": (1 << 63) + 5, "step": 3}
every_backend = pytest.mark.parametrize("backend", EVERY, indirect=True)
_device = "cuda" if torch.cuda.is_available() else "cpu"


def device():
    """Where the tensors of a test are; see the fixture ``backend``."""
    return _device


def sixteen_bits(backend):
    return torch.bfloat16 if backend == "cpp" else torch.float16


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device(), dtype)


def ids(n=2):
    return torch.arange(n, device=device())


def row():
    return torch.tensor([0.9, 0.3, -0.2, 0.7, 0.1, 0.4, 0.25, 0.5, 0.05], device=device())


def words(*values):
    return [torch.tensor(value, device=device()) for value in values]


def close(a, b, tolerance=1e-5):
    return a.shape == b.shape and bool(((a.float() - b.float()).abs() <= tolerance).all())


def both(backend, operation, *arguments, **keywords):
    return [operation(*arguments, backend=name, **keywords) for name in ("torch", backend)]
