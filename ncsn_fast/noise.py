"""Noise is a function, not a state: z = normal(seed, stream, sample, step, element).

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) maps a key and a
counter to four 32-bit words. Here the key is the 64-bit seed and the counter says which number is
wanted, so image i of seed s sees the same noise whatever the batch size, the chunking, the number
of processes or the moment at which a run was resumed:

    key     = (seed & 0xffffffff, seed >> 32)
    counter = (element // 4, step, sample & 0xffffffff, (sample >> 32) | stream << 16)

Word ``element % 4`` of that block belongs to the element; ``element`` counts in (C, H, W) order.
With u = (word + ½)·2⁻³² the uniforms are u, an integer below L is (word·L) >> 32, and words (0, 1)
and (2, 3) give two normals each: r = √(-2 ln u₀), θ = 2π(u₁ - ½), z = (r cos θ, r sin θ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.device import backends, native
from ncsn_fast.device.environment import usable
from ncsn_fast.device.memory import check_host_memory
from ncsn_fast.support.checks import count, sizes

# The streams keep draws with different purposes apart.
INITIAL = 0  # the state a chain starts from
SAMPLER = 1  # the noise of the sampler's steps
KNOWN = 2  # noise on the known region (inpainting)
PERTURB = 3  # training: perturbation of the data
LEVELS = 4  # training: the noise level of each sample
DEQUANTIZE = 5  # training: dequantisation of 8-bit images
SHUFFLE = 6  # training: order of the data and flips
SECOND = 7  # the second noise of an interpolation
PROBES = 8  # random signs v of a divergence, vᵀ(∂n/∂x)v (likelihood)
CLASSES = 9  # training: whose class is left out

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MAX_SAMPLE = 1 << 48
# Philox is a hundred integer passes: in pieces of this many blocks they stay in the cache.
_CPU_BLOCK = 1 << 17

Word = int | Tensor
Transform = Callable[[tuple[Tensor, ...], torch.dtype], list[Tensor]]


def philox4x32(
    key: tuple[Word, Word], counter: tuple[Word, Word, Word, Word]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): four words for a 64-bit key and a 128-bit counter.

    Args:
        key: two words; each an int or an int64 tensor with values in [0, 2³²).
        counter: four words; tensors broadcast against each other.

    Returns:
        Four int64 tensors with values in [0, 2³²), of the broadcast shape. (PyTorch has no
        arithmetic on uint32; the products wrap modulo 2⁶⁴ and keep all bits that matter.)
    """
    k0, k1 = key
    c0, c1, c2, c3 = (_as_word(word) for word in counter)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # The low words stay unmasked: they are only ever xor-ed into a word that is masked.
        c0 = _mix(p1, c1, k0)
        c2 = _mix(p0, c3, k1)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1 & _MASK, c2, c3 & _MASK)
    return c0, c1, c2, c3


def _as_word(word: Word) -> Tensor:
    return word if isinstance(word, Tensor) else torch.tensor(word, device="cpu")


def _mix(product: Tensor, word: Tensor, key: Word) -> Tensor:
    """(high half of the product) xor word xor key, in as few passes over memory as possible."""
    high = (product >> 32) ^ word
    high ^= key
    high &= _MASK
    return high


def normal(
    shape: Sequence[int],
    *,
    seed: Word,
    stream: int,
    sample_ids: Sequence[int] | Tensor,
    step: Word = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Standard normal noise (Box & Muller 1958), one independent draw per sample.

    Args:
        shape: shape of one sample, for example (C, H, W).
        seed: 64-bit seed, an int in [0, 2⁶⁴) or an int64 tensor holding its bits.
        stream: what the noise is for, in [0, 2¹⁶); see the constants of this module.
        sample_ids: (N,), which samples, each in [0, 2⁴⁸).
        step: which step, an int in [0, 2³²) or an int64 tensor; a tensor of K steps makes the
            noise of all of them at once, which is much cheaper where samples are small.
        device: where to make it; default: the device of ``sample_ids`` if that is a tensor.
        dtype: float64 is exact to rounding; float32 agrees with it to 2e-6 (5e-5 for radii
            below 0.1); the 16-bit types are the rounded float32 values.
        backend: "torch" is the specification; "auto" takes the native kernel on a CPU where it is
            built already (what is drawn differs in the last bits), unless nf.use_backend says
            otherwise.

    Returns:
        (len(sample_ids), *shape), or (K, len(sample_ids), *shape) for K steps.

    Raises:
        ValueError: for a seed, stream, step or sample id out of range.
    """
    if not isinstance(backend, str) or backend not in ("auto", "torch"):
        raise ValueError(f"backend = {backend!r:.80}: noise is made by 'auto' or 'torch'")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype = {dtype!r:.80}: noise is made as floating-point numbers")
    native_too = backend == "auto"
    return _draw(_box_muller, shape, seed, stream, sample_ids, step, device, dtype, native_too)


def uniform(
    shape: Sequence[int],
    *,
    seed: Word,
    stream: int,
    sample_ids: Sequence[int] | Tensor,
    step: Word = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform noise u = (word + ½)·2⁻³² in (0, 1); arguments and result as for :func:`normal`."""
    return _draw(_uniform, shape, seed, stream, sample_ids, step, device, dtype, True)


def integers(
    high: int,
    shape: Sequence[int] = (),
    *,
    seed: Word,
    stream: int,
    sample_ids: Sequence[int] | Tensor,
    step: Word = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Integers uniform on [0, high), 1 ≤ high ≤ 2³¹: (word·high) >> 32, as int64.

    The other arguments are those of :func:`normal`; the result is (len(sample_ids), *shape).
    """
    high = count("high", high, 1, 1 << 31)

    def scale(words: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
        return [(word * high) >> 32 for word in words]

    return _draw(scale, shape, seed, stream, sample_ids, step, device, torch.int64, False)


def random_seed() -> int:
    """A fresh 63-bit seed from torch's default generator, so that torch.manual_seed governs it."""
    return int(torch.randint(0, (1 << 63) - 1, (), dtype=torch.int64, device="cpu"))


def chosen_seed(seed: int | None) -> int:
    """The seed, checked to be in [0, 2⁶⁴); for None a :func:`random_seed`."""
    return random_seed() if seed is None else check_seed(seed)


def check_seed(seed: int) -> int:
    """Return the seed, or raise ValueError where it is not an integer in [0, 2⁶⁴)."""
    try:
        return count("seed", seed, 0, (1 << 64) - 1)
    except ValueError:
        raise ValueError(f"seed = {seed!r:.80}: a seed is an integer from 0 to 2⁶⁴ - 1") from None


def seed_tensor(seed: Word, device: torch.device) -> Tensor:
    """A seed as the 0-d int64 tensor on ``device`` that kernels read; filled there, not copied.

    Raises:
        ValueError: for an int that is no seed, or another kind of tensor.
    """
    if isinstance(seed, Tensor):
        return _check_word("seed", seed, device)
    return torch.full((), _bits(seed), dtype=torch.int64, device=device)


def _bits(seed: Word) -> int:
    """A seed's bits as an int64."""
    if isinstance(seed, Tensor):
        return int(seed)
    seed = check_seed(seed)
    return seed if seed < 1 << 63 else seed - (1 << 64)


def step_tensor(step: Word, device: torch.device) -> Tensor:
    """A step on ``device`` likewise, an int in [0, 2³²) or a 0-d int64 tensor; or ValueError."""
    if isinstance(step, Tensor):
        return _check_word("step", step, device)
    return torch.full((), _check_step(step), dtype=torch.int64, device=device)


def _check_word(name: str, word: Tensor, device: torch.device) -> Tensor:
    if word.dtype != torch.int64 or word.ndim != 0 or word.device != device:
        raise ValueError(
            f"{name} is a {word.dtype} tensor of shape {tuple(word.shape)} on {word.device}: "
            f"kernels read a 0-d int64 tensor on {device}"
        )
    return word


def _check_step(step: int) -> int:
    try:
        return count("step", step, 0, _MASK)
    except ValueError:
        raise ValueError(f"step = {step!r:.80}: allowed are 0 to 2³² - 1") from None


def as_sample_ids(
    sample_ids: Iterable[int] | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """Sample ids as a tensor.

    Args:
        sample_ids: whole numbers in [0, 2⁴⁸), or a tensor of them, (N,) int64 or int32.
        device: where the result is wanted; default: where the tensor is, else the CPU.

    Returns:
        (N,) int64.

    Raises:
        ValueError: for another tensor, or for ids out of range. Those in a tensor on a GPU are not
            looked at.
    """
    if device is not None and not isinstance(device, torch.device):
        device = usable(device)
    if isinstance(sample_ids, Tensor):
        ids = sample_ids
        if ids.dtype not in (torch.int64, torch.int32) or ids.ndim != 1:
            raise ValueError(
                f"sample_ids is a {ids.dtype} tensor of shape {tuple(ids.shape)}: "
                "give a 1-D int64 tensor or a sequence of ints"
            )
        # Ids on a GPU are not read back: that would stall it. Nor can they be while compiling.
        readable = ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and ids.numel():
            _check_id_range(*map(int, ids.aminmax()))
    else:
        try:
            given = [index(i) for i in sample_ids]
        except TypeError as error:
            raise ValueError(f"sample_ids have to be whole numbers: {error}") from None
        if given:
            _check_id_range(min(given), max(given))
        ids = torch.tensor(given, dtype=torch.int64, device="cpu")
        device = "cpu" if device is None else device
    return ids.to(device=device, dtype=torch.int64)


def _check_id_range(first: int, last: int) -> None:
    if first < 0 or last >= _MAX_SAMPLE:
        raise ValueError(f"sample ids from {first} to {last}: allowed are 0 to 2⁴⁸ - 1")


def _draw(
    transform: Transform,
    shape: Sequence[int],
    seed: Word,
    stream: int,
    sample_ids: Sequence[int] | Tensor,
    step: Word,
    device: torch.device | str | None,
    dtype: torch.dtype,
    native_too: bool,
) -> Tensor:
    """Make the blocks of all samples and turn their words into numbers with ``transform``.

    ``native_too`` lets the native kernel of the transform do that, where there is one.
    """
    shape = sizes("shape", shape, 0)
    ids = as_sample_ids(sample_ids, device)
    _check_stream(stream)
    if native_too and dtype != torch.float64 and (kernels := _kernels(ids, seed, step)):
        kernel = kernels.normal if transform is _box_muller else kernels.uniform
        if isinstance(step, Tensor):
            of, every = step.shape, step.flatten().tolist()
        else:
            of, every = torch.Size(), [_check_step(step)]
        drawn = kernel.default(ids, (*of, len(ids), *shape), _bits(seed), every, stream)
        return drawn if dtype == torch.float32 else drawn.to(dtype)
    key = _split_seed(seed)
    steps = _steps(step, ids.device)
    # A row for each pair of step and sample; several steps come before the samples.
    low, high = _split_ids(ids.repeat(steps.numel())[:, None], stream)
    step_rows = steps.reshape(-1, 1).expand(-1, len(ids)).reshape(-1, 1)
    blocks = torch.arange((math.prod(shape) + 3) // 4, device=ids.device)[None]
    out = torch.empty(len(low), blocks.numel(), 4, dtype=dtype, device=ids.device)
    limit = _CPU_BLOCK if ids.device.type == "cpu" else max(1, out.numel())
    columns = max(1, min(limit, blocks.numel()))
    rows = max(1, limit // columns)
    for i in range(0, len(low), rows):
        part = slice(i, i + rows)
        for j in range(0, blocks.numel(), columns):
            counter = (blocks[:, j : j + columns], step_rows[part], low[part], high[part])
            for lane, values in enumerate(transform(philox4x32(key, counter), dtype)):
                out[part, j : j + columns, lane] = values
    flat = out.view(len(low), 4 * blocks.numel())[:, : math.prod(shape)]
    return flat.reshape(*steps.shape, len(ids), *shape)


def _kernels(ids: Tensor, seed: Word, step: Word) -> Any:
    """The native kernels where they draw these numbers, or None where plain PyTorch does.

    PyTorch does on other devices, under use_backend("torch"), while something traces or compiles
    its operations, and before the kernels are built: that takes a compiler's time, which a few
    numbers are not worth.
    """
    for word in (ids, seed, step):
        if not isinstance(word, Tensor):
            continue
        if word.device.type != "cpu" or word.dtype != torch.int64:
            return None
        if not backends.plain_call(word) or backends.general_obstacle(word) is not None:
            return None
    if (isinstance(seed, Tensor) and seed.ndim) or (isinstance(step, Tensor) and not step.numel()):
        return None
    if backends.wished()[0] not in ("auto", "cpp"):
        return None
    return native.ready()


def _steps(step: Word, device: torch.device) -> Tensor:
    """One step or K as an int64 tensor."""
    if isinstance(step, Tensor):
        return _whole("step", step, 0).to(device)  # for no step there is no noise
    # Filled, not copied: a copy to a GPU would wait for it.
    return torch.full((), _check_step(step), dtype=torch.int64, device=device)


def _whole(name: str, word: Tensor, least: int = 1) -> Tensor:
    if word.dtype not in (torch.int64, torch.int32) or word.numel() < least:
        raise ValueError(
            f"{name} is a {word.dtype} tensor of shape {tuple(word.shape)}: give int64, or an int"
        )
    return word


def _check_stream(stream: int) -> None:
    count("stream", stream, 0, (1 << 16) - 1)


def _split_seed(seed: Word) -> tuple[Word, Word]:
    if isinstance(seed, Tensor):
        return _whole("seed", seed) & _MASK, (seed >> 32) & _MASK
    seed = check_seed(seed)
    return seed & _MASK, seed >> 32


def _split_ids(ids: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    return ids & _MASK, ((ids >> 32) & 0xFFFF) | (stream << 16)


def _uniform(words: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    if dtype == torch.float64:
        return [(word.double() + 0.5) * 2.0**-32 for word in words]
    # The largest words round to 1 in float32; a uniform stays below it.
    return [((word.float() + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24) for word in words]


def _box_muller(words: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    work = torch.float64 if dtype == torch.float64 else torch.float32
    values = []
    for radius_word, angle_word in (words[:2], words[2:]):
        radius = torch.sqrt(-2 * _log_uniform(radius_word, work))
        # Centring the integer first keeps full relative precision around θ = 0.
        angle = ((angle_word - (1 << 31)).to(work) + 0.5) * (2 * math.pi * 2.0**-32)
        values += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return values


def _log_uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """ln u for u = (word + ½)·2⁻³², through δ = 1 - u above ½: there float32 cannot hold u."""
    log_u = torch.log((word.to(dtype) + 0.5) * 2.0**-32)
    delta = ((_MASK - word).to(dtype) + 0.5) * 2.0**-32
    return torch.where(word >= 1 << 31, torch.log1p(-delta), log_u)


def sample_ids(n: int, ids: Iterable[int] | None) -> Tensor:
    """(n,) int64 on the CPU: the given ids, n distinct ones or ValueError; for None 0 … n-1."""
    n = count("n", n, 1, _MAX_SAMPLE)
    check_host_memory(8 * n, f"n = {n} samples", "draw some sample_ids at a time")
    if ids is None:
        return torch.arange(n, dtype=torch.int64, device="cpu")
    checked = as_sample_ids(ids.cpu() if isinstance(ids, Tensor) else ids)
    if len(checked) != n:
        raise ValueError(f"{len(checked)} sample_ids for n = {n} samples: give one id per sample")
    if len(checked.unique()) != n:
        raise ValueError("sample_ids repeat: two samples of one id would be the same image")
    return checked


__all__ = [
    "DEQUANTIZE",
    "INITIAL",
    "KNOWN",
    "LEVELS",
    "PERTURB",
    "PROBES",
    "SAMPLER",
    "SECOND",
    "SHUFFLE",
    "as_sample_ids",
    "check_seed",
    "chosen_seed",
    "integers",
    "normal",
    "philox4x32",
    "random_seed",
    "sample_ids",
    "seed_tensor",
    "step_tensor",
    "uniform",
]
