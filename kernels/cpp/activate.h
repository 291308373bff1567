// The activations of the networks on buffers of floats, and as an operation of their own.

namespace ncsn_fast {
namespace CAPABILITY {

constexpr float LEAK = 0.2f;  // slope of lrelu

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// act(x) for a result in T: of bfloat16 the short exponential is as good.
template <Activation A, class T>
inline float act(float x) {
  if constexpr (A == Activation::elu) {
    const float bent = std::is_same_v<T, float> ? exp_minus_1(x) : short_exp_minus_1(x);
    return x > 0.0f ? x : bent;
  } else if constexpr (A == Activation::relu) {
    return x < 0.0f ? 0.0f : x;
  } else if constexpr (A == Activation::lrelu) {
    return x > 0.0f ? x : LEAK * x;
  } else if constexpr (A == Activation::swish) {
    return x / (1.0f + exponential(-x));
  } else {
    return x;
  }
}

template <Activation A>
struct Constant {
  static constexpr Activation value = A;
};

// Calls run with the activation as a constant, so that loops know it.
template <class Run>
inline void by_activation(Activation activation, Run run) {
  switch (activation) {
    case Activation::none:
      return run(Constant<Activation::none>());
    case Activation::elu:
      return run(Constant<Activation::elu>());
    case Activation::relu:
      return run(Constant<Activation::relu>());
    case Activation::lrelu:
      return run(Constant<Activation::lrelu>());
    case Activation::swish:
      return run(Constant<Activation::swish>());
  }
}

// values ← act(values)
NCSN_FAST_SHARED void activate_all(Activation activation, float* values, int64_t count) {
  by_activation(activation, [&](auto constant) {
    constexpr Activation A = decltype(constant)::value;
    for (int64_t i = 0; i < count; ++i) values[i] = act<A, float>(values[i]);
  });
}

// to ← act(from)
template <class T>
NCSN_FAST_SHARED void activate_all(Activation activation, const T* from, int64_t count, T* to) {
  by_activation(activation, [&](auto constant) {
    constexpr Activation A = decltype(constant)::value;
    map(from, count, to, [](float x) { return act<A, T>(x); });
  });
}

// grad ← grad·act'(x)
NCSN_FAST_SHARED void multiply_slope(
    Activation activation, const float* __restrict x, float* __restrict grad, int64_t count) {
  switch (activation) {
    case Activation::none:
      return;
    case Activation::elu:
      for (int64_t i = 0; i < count; ++i) {
        const float slope = exponential(x[i]);
        grad[i] *= x[i] > 0.0f ? 1.0f : slope;
      }
      return;
    case Activation::relu:
      for (int64_t i = 0; i < count; ++i) grad[i] = x[i] > 0.0f ? grad[i] : 0.0f;
      return;
    case Activation::lrelu:
      for (int64_t i = 0; i < count; ++i) grad[i] *= x[i] > 0.0f ? 1.0f : LEAK;
      return;
    case Activation::swish:
      for (int64_t i = 0; i < count; ++i) {
        const float s = sigmoid(x[i]);
        grad[i] *= s * (1.0f + x[i] * (1.0f - s));
      }
      return;
  }
}

// Items are tiles.
inline void activate(const Pointwise& p, int64_t first, int64_t last) {
  const int64_t begin = first * TILE, count = smaller(last * TILE, p.total) - begin;
  by_type(p.x, [&](auto* x) {
    auto* out = static_cast<decltype(x)>(p.out.data);
    activate_all(p.activation, x + begin, count, out + begin);
  });
}

// out = grad·act'(x), plus `other` where it is given.
inline void activate_backward(const Pointwise& p, int64_t first, int64_t last) {
  alignas(64) float x[TILE], grad[TILE];
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * TILE, count = smaller(TILE, p.total - begin);
    load(p.x, begin, count, x);
    load(p.grad, begin, count, grad);
    multiply_slope(p.activation, x, grad, count);
    if (p.other.data) {
      load(p.other, begin, count, x);
      for (int64_t i = 0; i < count; ++i) grad[i] += x[i];
    }
    save(p.out, begin, count, grad);
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
