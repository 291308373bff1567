// InstanceNorm++ and an activation, y = act(γ·(h + α·t) + β), forward and backward.
//
// h = (x - μ)/√(v + ε) per image, with t = (μ - m)/√(V + ε) over the channels. Moments are means
// first and squared differences after them, in float32 sums of few pixels whose own sum is in
// float64; the order depends on the size of an image only. y = act(scale·(x - μ) + shift), scale = γ/√(v + ε), shift = γαt + β.
//
// Backward, with g = dy·act' and q = 1/√(V + ε), P pixels and C channels:
//   dβ = Σg,  dγ = Σgh + αt·Σg,  dα = γt·Σg,  dt = γα·Σg
//   dμ = q·(dt - mean(dt) - t·Σ(dt·t)/(C - 1))
//   dx = scale·(g - Σg/P - h·Σgh/P) + dμ/P = scale·g + slope·(x - μ) + offset

namespace ncsn_fast {
namespace CAPABILITY {

constexpr int64_t GROUP = 64;  // terms of a sum in float32
constexpr int64_t PARTS = 16;  // sums over a plane side by side, which a compiler can vectorise
constexpr int64_t BUFFER = GROUP * LANES;

// sums[j] += Σ term(j, values) over the pixels of a buffer of `width` channels.
template <class Term>
inline void sum_pixels(int64_t pixels, int64_t width, double* sums, Term term) {
  float parts[LANES] = {};
  if (width == LANES) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t j = 0; j < LANES; ++j) parts[j] += term(p * LANES + j, j);
    }
  } else if (width == 1) {
    int64_t p = 0;
    for (; p + PARTS <= pixels; p += PARTS) {
      for (int64_t j = 0; j < PARTS; ++j) parts[j] += term(p + j, 0);
    }
    for (; p < pixels; ++p) parts[0] += term(p, 0);
    for (int64_t j = 1; j < PARTS; ++j) parts[0] += parts[j];
  } else {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t j = 0; j < width; ++j) parts[j] += term(p * width + j, j);
    }
  }
  for (int64_t j = 0; j < width; ++j) sums[j] += parts[j];
}

// Pixels of an image that pass through a buffer at once.
inline int64_t pixels_at_once(const Image& image) {
  return image.width == 1 ? GROUP * PARTS : GROUP;
}

// Where the channels of an image are among the (N, C) statistics.
inline int64_t statistic_of(int64_t item, const Shape& shape, bool last) {
  if (!last) return item;
  const int64_t groups = (shape.channels + LANES - 1) / LANES;
  return item / groups * shape.channels + item % groups * LANES;
}

// sums[lane] += Σ term(place, x) over all pixels of LANES channels.
template <class T, class Term>
inline void sum_lanes(const T* from, const Image& image, int64_t pixels, double* sums, Term term) {
  for (int64_t first = 0; first < pixels; first += GROUP) {
    const int64_t end = smaller(first + GROUP, pixels);
    alignas(64) float parts[LANES] = {};
    for (int64_t p = first; p < end; ++p) {
      each_lane(from + p * image.stride, [&](int64_t j, float x) { parts[j] += term(j, x); });
    }
    for (int64_t lane = 0; lane < LANES; ++lane) sums[lane] += parts[place<T>(lane)];
  }
}

// Σ x of each channel of an image where `mean` is null, else Σ (x - mean)².
NCSN_FAST_SHARED void sum_moment(
    const Norm& m, const Image& image, const float* mean, double* sums) {
  const int64_t pixels = m.shape.pixels();
  if (image.width == LANES) {
    by_type(m.x, [&](auto* x) {
      using T = std::remove_pointer_t<decltype(x)>;
      const T* from = x + image.offset;
      if (!mean) {
        sum_lanes(from, image, pixels, sums, [](int64_t, float value) { return value; });
        return;
      }
      alignas(64) float placed[LANES];
      for (int64_t lane = 0; lane < LANES; ++lane) placed[place<T>(lane)] = mean[lane];
      sum_lanes(from, image, pixels, sums, [&](int64_t j, float value) {
        return (value - placed[j]) * (value - placed[j]);
      });
    });
    return;
  }
  alignas(64) float values[BUFFER];
  const int64_t step = pixels_at_once(image);
  for (int64_t p = 0; p < pixels; p += step) {
    const int64_t count = smaller(step, pixels - p);
    load(m.x, image, p, count, values);
    if (!mean) {
      sum_pixels(count, image.width, sums, [&](int64_t i, int64_t) { return values[i]; });
    } else {
      sum_pixels(count, image.width, sums, [&](int64_t i, int64_t j) {
        return (values[i] - mean[j]) * (values[i] - mean[j]);
      });
    }
  }
}

// Items are images.
inline void norm_moments(const Norm& m, int64_t first, int64_t last) {
  const double pixels = static_cast<double>(m.shape.pixels());
  for (int64_t item = first; item < last; ++item) {
    const Image image = image_of(item, m.shape, m.x.last);
    const int64_t at = statistic_of(item, m.shape, m.x.last);
    double sums[LANES] = {}, squares[LANES] = {};
    sum_moment(m, image, nullptr, sums);
    for (int64_t j = 0; j < image.width; ++j) m.mean[at + j] = static_cast<float>(sums[j] / pixels);
    sum_moment(m, image, m.mean + at, squares);
    for (int64_t j = 0; j < image.width; ++j) {
      m.variance[at + j] = static_cast<float>(squares[j] / pixels);
    }
  }
}

// The mean of C channel means, and 1/√(V + ε).
struct OverChannels {
  double mean, inverse_deviation;
};

inline OverChannels over_channels(const float* means, int64_t channels, float eps) {
  double mean = 0.0, variance = 0.0;
  for (int64_t c = 0; c < channels; ++c) mean += means[c];
  mean /= static_cast<double>(channels);
  for (int64_t c = 0; c < channels; ++c) variance += (means[c] - mean) * (means[c] - mean);
  return {mean, 1.0 / __builtin_sqrt(variance / static_cast<double>(channels - 1) + eps)};
}

inline void norm_coefficients(const Norm& m, int64_t sample) {
  const int64_t channels = m.shape.channels, at = sample * channels, row = sample * m.row_stride;
  const OverChannels over = over_channels(m.mean + at, channels, m.eps);
  for (int64_t c = 0; c < channels; ++c) {
    const double t = (m.mean[at + c] - over.mean) * over.inverse_deviation;
    const double gamma = m.gamma[row + c];
    m.scale[at + c] = static_cast<float>(gamma / __builtin_sqrt(m.variance[at + c] + m.eps));
    m.shift[at + c] = static_cast<float>(gamma * m.alpha[row + c] * t + m.beta[row + c]);
  }
}

// values ← scale·(values - mean) + shift of the channels from `at` on.
NCSN_FAST_SHARED void normalize(
    const Norm& m, int64_t at, int64_t width, int64_t pixels, const float* __restrict x,
    float* __restrict to) {
  alignas(64) float mean[LANES], scale[LANES], shift[LANES];
  for (int64_t j = 0; j < width; ++j) {
    mean[j] = m.mean[at + j], scale[j] = m.scale[at + j], shift[j] = m.shift[at + j];
  }
  if (width == LANES) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t j = 0; j < LANES; ++j) {
        to[p * LANES + j] = (x[p * LANES + j] - mean[j]) * scale[j] + shift[j];
      }
    }
  } else if (width == 1) {
    for (int64_t p = 0; p < pixels; ++p) to[p] = (x[p] - mean[0]) * scale[0] + shift[0];
  } else {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t j = 0; j < width; ++j) {
        to[p * width + j] = (x[p * width + j] - mean[j]) * scale[j] + shift[j];
      }
    }
  }
}

// y of LANES channels from `at` on.
template <Activation A, class T>
inline void apply_lanes(
    const Norm& m, const T* x, const Image& image, int64_t at, T* y) {
  alignas(64) float mean[LANES], scale[LANES], shift[LANES];
  for (int64_t lane = 0; lane < LANES; ++lane) {
    const int64_t j = place<T>(lane);
    mean[j] = m.mean[at + lane], scale[j] = m.scale[at + lane], shift[j] = m.shift[at + lane];
  }
  for (int64_t p = 0; p < m.shape.pixels(); ++p) {
    map_lanes(x + p * image.stride, y + p * image.stride, [&](int64_t j, float value) {
      return act<A, T>((value - mean[j]) * scale[j] + shift[j]);
    });
  }
}

NCSN_FAST_SHARED void apply_lanes(const Norm& m, const Image& image, int64_t at) {
  by_type(m.x, [&](auto* x) {
    auto* y = static_cast<decltype(x)>(m.y.data);
    by_activation(m.activation, [&](auto constant) {
      apply_lanes<decltype(constant)::value>(m, x + image.offset, image, at, y + image.offset);
    });
  });
}

NCSN_FAST_SHARED void apply_buffered(const Norm& m, const Image& image, int64_t at) {
  alignas(64) float x[BUFFER], y[BUFFER];
  const int64_t pixels = m.shape.pixels(), step = pixels_at_once(image);
  for (int64_t p = 0; p < pixels; p += step) {
    const int64_t count = smaller(step, pixels - p);
    load(m.x, image, p, count, x);
    normalize(m, at, image.width, count, x, y);
    activate_all(m.activation, y, count * image.width);
    save(m.y, image, p, count, y);
  }
}

// Items are images.
inline void norm_apply(const Norm& m, int64_t first, int64_t last) {
  for (int64_t item = first; item < last; ++item) {
    const Image image = image_of(item, m.shape, m.x.last);
    const int64_t at = statistic_of(item, m.shape, m.x.last);
    if (image.width == LANES) {
      apply_lanes(m, image, at);
    } else {
      apply_buffered(m, image, at);
    }
  }
}

// Loads pixels of x into x and dy·act' of them into grad; `work` is overwritten.
NCSN_FAST_SHARED void load_gradient(
    const Norm& m, const Image& image, int64_t at, int64_t p, int64_t count, float* x, float* grad,
    float* work) {
  load(m.x, image, p, count, x);
  load(m.grad, image, p, count, grad);
  if (m.activation == Activation::none) return;
  normalize(m, at, image.width, count, x, work);
  multiply_slope(m.activation, work, grad, count * image.width);
}

// Σg to slope and Σg·(x - μ) to offset, for norm_slopes to make of them what it says.
inline void norm_sums(const Norm& m, int64_t first, int64_t last) {
  alignas(64) float x[BUFFER], grad[BUFFER], work[BUFFER];
  const int64_t pixels = m.shape.pixels();
  for (int64_t item = first; item < last; ++item) {
    const Image image = image_of(item, m.shape, m.x.last);
    const int64_t step = pixels_at_once(image), at = statistic_of(item, m.shape, m.x.last);
    alignas(64) float mean[LANES] = {};
    double sum[LANES] = {}, product[LANES] = {};
    for (int64_t j = 0; j < image.width; ++j) mean[j] = m.mean[at + j];
    for (int64_t p = 0; p < pixels; p += step) {
      const int64_t count = smaller(step, pixels - p);
      load_gradient(m, image, at, p, count, x, grad, work);
      sum_pixels(count, image.width, sum, [&](int64_t i, int64_t) { return grad[i]; });
      sum_pixels(count, image.width, product, [&](int64_t i, int64_t j) {
        return grad[i] * (x[i] - mean[j]);
      });
    }
    for (int64_t j = 0; j < image.width; ++j) {
      m.slope[at + j] = static_cast<float>(sum[j]);
      m.offset[at + j] = static_cast<float>(product[j]);
    }
  }
}

// From the sums of norm_sums: the gradients of the parameters, and slope and offset of dx.
inline void norm_slopes(const Norm& m, int64_t sample) {
  const int64_t channels = m.shape.channels, at = sample * channels, row = sample * m.row_stride;
  const double pixels = static_cast<double>(m.shape.pixels());
  const OverChannels over = over_channels(m.mean + at, channels, m.eps);
  double sum_dt = 0.0, sum_dt_t = 0.0;
  for (int64_t c = 0; c < channels; ++c) {
    const double t = (m.mean[at + c] - over.mean) * over.inverse_deviation;
    const double dt = static_cast<double>(m.gamma[row + c]) * m.alpha[row + c] * m.slope[at + c];
    sum_dt += dt;
    sum_dt_t += dt * t;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double t = (m.mean[at + c] - over.mean) * over.inverse_deviation;
    const double gamma = m.gamma[row + c], alpha = m.alpha[row + c];
    const double inverse = 1.0 / __builtin_sqrt(m.variance[at + c] + m.eps);
    const double sum = m.slope[at + c], sum_h = m.offset[at + c] * inverse;
    const double dmu =
        over.inverse_deviation * (gamma * alpha * sum - sum_dt / static_cast<double>(channels) -
                                  t * sum_dt_t / static_cast<double>(channels - 1));
    m.dbeta[at + c] = static_cast<float>(sum);
    m.dgamma[at + c] = static_cast<float>(sum_h + alpha * t * sum);
    m.dalpha[at + c] = static_cast<float>(gamma * t * sum);
    m.slope[at + c] = static_cast<float>(-gamma * inverse * inverse * sum_h / pixels);
    m.offset[at + c] = static_cast<float>((dmu - gamma * inverse * sum) / pixels);
  }
}

// grad ← scale·grad + slope·(x - mean) + offset
NCSN_FAST_SHARED void input_gradient(
    const Norm& m, int64_t at, int64_t width, int64_t pixels, const float* __restrict x,
    float* __restrict grad) {
  alignas(64) float mean[LANES], scale[LANES], slope[LANES], offset[LANES];
  for (int64_t j = 0; j < width; ++j) {
    mean[j] = m.mean[at + j], scale[j] = m.scale[at + j];
    slope[j] = m.slope[at + j], offset[j] = m.offset[at + j];
  }
  if (width == 1) {
    for (int64_t p = 0; p < pixels; ++p) {
      grad[p] = scale[0] * grad[p] + slope[0] * (x[p] - mean[0]) + offset[0];
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t j = 0; j < width; ++j) {
      const int64_t i = p * width + j;
      grad[i] = scale[j] * grad[i] + slope[j] * (x[i] - mean[j]) + offset[j];
    }
  }
}

// Items are images.
inline void norm_backward(const Norm& m, int64_t first, int64_t last) {
  alignas(64) float x[BUFFER], grad[BUFFER], work[BUFFER];
  const int64_t pixels = m.shape.pixels();
  for (int64_t item = first; item < last; ++item) {
    const Image image = image_of(item, m.shape, m.x.last);
    const int64_t step = pixels_at_once(image), at = statistic_of(item, m.shape, m.x.last);
    for (int64_t p = 0; p < pixels; p += step) {
      const int64_t count = smaller(step, pixels - p);
      load_gradient(m, image, at, p, count, x, grad, work);
      input_gradient(m, at, image.width, count, x, grad);
      save(m.dx, image, p, count, grad);
    }
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
