// The activations of the networks on buffers of floats, and as an operation of their own.

namespace ncsn_fast {
namespace CAPABILITY {

constexpr float LEAK = 0.2f;  // slope of lrelu

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// values ← act(values)
NCSN_FAST_SHARED void activate_all(Activation activation, float* values, int64_t count) {
  switch (activation) {
    case Activation::none:
      return;
    case Activation::elu:
      for (int64_t i = 0; i < count; ++i) {
        const float x = values[i], bent = exp_minus_1(x);
        values[i] = x > 0.0f ? x : bent;
      }
      return;
    case Activation::relu:
      for (int64_t i = 0; i < count; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
      return;
    case Activation::lrelu:
      for (int64_t i = 0; i < count; ++i) {
        values[i] = values[i] > 0.0f ? values[i] : LEAK * values[i];
      }
      return;
    case Activation::swish:
      for (int64_t i = 0; i < count; ++i) {
        values[i] = values[i] / (1.0f + exponential(-values[i]));
      }
      return;
  }
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
  alignas(64) float values[TILE];
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * TILE, count = smaller(TILE, p.total - begin);
    load(p.x, begin, count, values);
    activate_all(p.activation, values, count);
    save(p.out, begin, count, values);
  }
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
