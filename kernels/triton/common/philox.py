"""Counter-based noise in registers; the definition is in ``ncsn_fast/noise.py``.

One call makes the four words, or the four normals, of one block: of four consecutive elements of
one sample. Philox's products are taken in 64 bits, which NVIDIA's compiler turns into one
IMAD.WIDE each: cheaper than the two halves apart, as ``tl.philox`` takes them.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four uint32 words; counter and key are uint32, scalars or tensors."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def box_muller(radius_word, angle_word, FAST_MATH: tl.constexpr, IS_HIP: tl.constexpr):
    """Two normals from two words: r = √(-2 ln u), θ = 2π(u' - ½), (r cos θ, r sin θ)."""
    u = radius_word.to(tl.float32) * 2.0**-32 + 2.0**-33
    # Near 1 float32 cannot hold u; there the series of ln(1 - δ) is exact to rounding.
    delta = (radius_word ^ 0xFFFFFFFF).to(tl.float32) * 2.0**-32 + 2.0**-33
    series = delta * (2.0 + delta * (1.0 + delta * (2.0 / 3.0)))
    # Centred as an integer: that keeps the relative precision of small angles.
    centred = (angle_word ^ 0x80000000).to(tl.int32, bitcast=True).to(tl.float32)
    angle = centred * (2.0 * 3.141592653589793 * 2.0**-32) + 3.141592653589793 * 2.0**-32
    if FAST_MATH:
        radius = tl.sqrt(tl.where(delta < 2.0**-7, series, _log2(u, IS_HIP) * -1.3862943611198906))
        return radius * _cos(angle, IS_HIP), radius * _sin(angle, IS_HIP)
    radius = tl.sqrt(tl.where(delta < 2.0**-7, series, -2.0 * tl.log(u)))
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _log2(x, IS_HIP: tl.constexpr):
    return tl.log2(x) if IS_HIP else libdevice.fast_log2f(x)


@triton.jit
def _cos(x, IS_HIP: tl.constexpr):
    return tl.cos(x) if IS_HIP else libdevice.fast_cosf(x)


@triton.jit
def _sin(x, IS_HIP: tl.constexpr):
    return tl.sin(x) if IS_HIP else libdevice.fast_sinf(x)


@triton.jit
def normal4(block, step, sample_id, stream, seed, FAST_MATH: tl.constexpr, IS_HIP: tl.constexpr):
    """The normals of blocks: (B, 4) float32, the last axis in the order of the elements.

    Args:
        block: (B,) element // 4.
        step, stream, seed: scalars.
        sample_id: (B,) or a scalar, below 2⁴⁸.
    """
    # A shift by 32 of what has 32 bits is undefined, and compilers make the most of that.
    seed, sample_id = seed.to(tl.int64), sample_id.to(tl.int64)
    c3 = ((sample_id >> 32) & 0xFFFF).to(tl.uint32) | (stream << 16)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(
        block.to(tl.uint32), step.to(tl.uint32), sample_id.to(tl.uint32), c3, k0, k1
    )
    z0, z1 = box_muller(w0, w1, FAST_MATH, IS_HIP)
    z2, z3 = box_muller(w2, w3, FAST_MATH, IS_HIP)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (block.shape[0], 4))


@triton.jit
def normals(
    place,
    sample_id,
    step,
    stream,
    seed,
    CHANNELS: tl.constexpr,
    FAST_MATH: tl.constexpr,
    IS_HIP: tl.constexpr,
):
    """The noise of a place (see tiles.py): CHANNELS planar (B, 4) quads."""
    block, quads = place[2], place[4]
    tile = ()
    for c in tl.static_range(CHANNELS):
        z = normal4(block + c * quads, step, sample_id, stream, seed, FAST_MATH, IS_HIP)
        tile = tile + (z,)
    return tile
