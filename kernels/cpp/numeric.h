// Numbers: bfloat16, and exp, log, sin, cos as polynomials.
//
// A call of libm in a loop keeps a compiler from vectorising it. Bits are moved by memcpy, which
// compilers see through.

// What many kernels call once a tile is compiled once, not into each of them.
#define NCSN_FAST_SHARED __attribute__((noinline)) static

// GCC unrolls short loops before it vectorises, and then finds no loop: before those it shall keep.
#if defined(__clang__)
#define NCSN_FAST_LOOP
#else
#define NCSN_FAST_LOOP _Pragma("GCC unroll 1")
#endif

namespace ncsn_fast {
namespace CAPABILITY {

struct BFloat16 {
  uint16_t bits;
};

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline float widen(float value) { return value; }
inline float widen(BFloat16 value) { return as_float(static_cast<uint32_t>(value.bits) << 16); }

inline void store(float* to, float value) { *to = value; }

inline void store(BFloat16* to, float value) {
  const uint32_t bits = as_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  to->bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// Two bfloat16 numbers are one word: the first is its lower half. Neither widening nor rounding
// then has to move numbers between lanes of different widths.
inline uint32_t pair_at(const BFloat16* from) {
  uint32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair;
}

inline void put_pair(BFloat16* to, uint32_t pair) { std::memcpy(to, &pair, sizeof pair); }

inline float low_of(uint32_t pair) { return as_float(pair << 16); }
inline float high_of(uint32_t pair) { return as_float(pair & 0xffff0000u); }

// Bits whose upper half is a float32 number to the nearest bfloat16, with ties away from zero: one
// addition, for results that lie halfway by chance only. NaN stays NaN where the lower half of its
// bits is zero, as it is in all that arithmetic makes of bfloat16 numbers.
inline uint32_t rounded(float value) { return as_bits(value) + 0x8000u; }

// The same with ties to even, for sums of bfloat16 numbers, which are often ties.
inline uint32_t rounded_to_even(float value) {
  const uint32_t bits = as_bits(value);
  return bits + 0x7fffu + ((bits >> 16) & 1);
}

inline uint32_t pair_of(uint32_t low, uint32_t high) { return low >> 16 | (high & 0xffff0000u); }

// -2 ln u for u = (word + ½)·2⁻³².
inline float minus_two_log(uint32_t word) {
  const float u = static_cast<float>(word) * 0x1p-32f + 0x1p-33f;
  // Near 1 float32 cannot hold u, but 1 - u it can.
  const float delta = static_cast<float>(~word) * 0x1p-32f + 0x1p-33f;
  const uint32_t root_half = 0x3f3504f3;
  const uint32_t bits = as_bits(u) - root_half;
  const int32_t exponent = static_cast<int32_t>(bits) >> 23;
  const float mantissa = as_float((bits & 0x7fffff) + root_half);  // in [√½, √2)
  const float f = exponent == 0 ? -delta : mantissa - 1.0f;
  // ln(1 + f) = f + f²·p(f)
  float p = 0.0873483633f;
  p = p * f - 0.14307519f;
  p = p * f + 0.149179747f;
  p = p * f - 0.165705086f;
  p = p * f + 0.199620721f;
  p = p * f - 0.250017552f;
  p = p * f + 0.333339502f;
  p = p * f - 0.499999916f;
  const float log_mantissa = f + f * f * p;
  return -2.0f * (static_cast<float>(exponent) * 0.693147181f + log_mantissa);
}

// The cosine and the sine of 2π((word + ½)·2⁻³² - ½).
inline void cos_sin(uint32_t word, float* cosine, float* sine) {
  // The nearest quarter of a turn comes off in integers, without error.
  const uint32_t centred = word ^ 0x80000000u;
  const uint32_t quarter = (centred + 0x20000000u) >> 30;
  const int32_t rest = static_cast<int32_t>(centred - (quarter << 30));
  const float x = (static_cast<float>(rest) + 0.5f) * (6.283185307f * 0x1p-32f);  // |x| ≤ π/4
  const float xx = x * x;
  float s = -0.000195166557f;
  s = s * xx + 0.00833217354f;
  s = s * xx - 0.166666549f;
  s = x + x * xx * s;
  float c = 2.44377299e-05f;
  c = c * xx - 0.00138873614f;
  c = c * xx + 0.0416666467f;
  c = 1.0f + xx * (c * xx - 0.5f);
  const bool swap = quarter & 1;
  const uint32_t flip_cosine = ((quarter + 1) & 2) << 30, flip_sine = (quarter & 2) << 30;
  *cosine = as_float(as_bits(swap ? s : c) ^ flip_cosine);
  *sine = as_float(as_bits(swap ? c : s) ^ flip_sine);
}

// exp(x) - 1, infinite beyond 88.37; NaN stays NaN.
inline float exp_minus_1(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 89.0f ? 89.0f : x;
  // Adding 1.5·2²³ rounds to an integer, which is then in the low bits.
  const float shifted = x * 1.44269504f + 0x1.8p23f;
  const float k = shifted - 0x1.8p23f;
  // ln 2 in two parts, the first of few bits: k·ln 2 comes off exactly.
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 0.00139465545f;
  p = p * r + 0.00836664395f;
  p = p * r + 0.0416662806f;
  p = p * r + 0.166665425f;
  p = p * r + 0.500000006f;
  p = r + r * r * p;
  const float power = as_float((as_bits(shifted) + 127) << 23);  // 2ᵏ, infinite for k = 128
  const float result = power * p + (power - 1.0f);
  return x > 88.37f ? as_float(0x7f800000) : result;  // there it would be ∞ - ∞ for p < 0
}

// The same for x ≤ 0 to a relative error of 2e-5, a hundredth of what bfloat16 can hold.
inline float short_exp_minus_1(float x) {
  x = x < -80.0f ? -80.0f : x;
  // The integer in the low bits is 127 more: the exponent of 2ᵏ.
  constexpr float shift = 0x1.8p23f + 127.0f;
  const float shifted = x * 1.44269504f + shift;
  const float f = x * 1.44269504f - (shifted - shift);
  float p = 0.00961811f;
  p = p * f + 0.05583729f;
  p = p * f + 0.24023252f;
  p = p * f + 0.69313686f;
  const float power = as_float(as_bits(shifted) << 23);
  return power * (p * f) + (power - 1.0f);
}

inline float exponential(float x) { return exp_minus_1(x) + 1.0f; }

}  // namespace CAPABILITY
}  // namespace ncsn_fast
