// x + residual and act(x + residual) in one pass.

namespace ncsn_fast {
namespace CAPABILITY {

template <Activation A>
inline void add(
    const float* __restrict x, const float* __restrict residual, int64_t count,
    float* __restrict total, float* __restrict active) {
  for (int64_t i = 0; i < count; ++i) {
    const float sum = x[i] + residual[i];
    total[i] = sum;
    if constexpr (A != Activation::none) active[i] = act<A, float>(sum);
  }
}

// The activation is that of the sum as it is stored.
template <Activation A>
inline void add(
    const BFloat16* __restrict x, const BFloat16* __restrict residual, int64_t count,
    BFloat16* __restrict total, BFloat16* __restrict active) {
  for (int64_t i = 0; i < count / 2; ++i) {
    const uint32_t a = pair_at(x + 2 * i), b = pair_at(residual + 2 * i);
    const uint32_t sums = pair_of(
        rounded_to_even(low_of(a) + low_of(b)), rounded_to_even(high_of(a) + high_of(b)));
    put_pair(total + 2 * i, sums);
    if constexpr (A != Activation::none) {
      const float low = act<A, BFloat16>(low_of(sums)), high = act<A, BFloat16>(high_of(sums));
      put_pair(active + 2 * i, pair_of(rounded(low), rounded(high)));
    }
  }
  if (count % 2) {
    const int64_t i = count - 1;
    store(total + i, widen(x[i]) + widen(residual[i]));
    if constexpr (A != Activation::none) store(active + i, act<A, BFloat16>(widen(total[i])));
  }
}

// Items are tiles.
inline void residual_add(const Pointwise& p, int64_t first, int64_t last) {
  const int64_t begin = first * TILE, count = smaller(last * TILE, p.total) - begin;
  by_type(p.x, [&](auto* x) {
    using T = decltype(x);
    const T residual = static_cast<T>(p.other.data), total = static_cast<T>(p.out.data);
    const T active = static_cast<T>(p.active.data);
    by_activation(p.activation, [&](auto constant) {
      constexpr Activation A = decltype(constant)::value;
      add<A>(x + begin, residual + begin, count, total + begin, active ? active + begin : active);
    });
  });
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
