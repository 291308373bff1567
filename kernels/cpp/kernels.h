// What the kernels take and the table of them that each capability of a CPU fills.
//
// No torch header is seen here: kernels know pointers and sizes. Each is called for a range of its
// own items, which may be done in any order, on any thread and in any number of calls: the result
// of an item depends on nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ncsn_fast {

// Elements that pass through a kernel's buffers at once, small enough for the first cache.
constexpr int64_t TILE = 512;
// Elements of a sample whose losses are summed to one partial sum.
constexpr int64_t CHUNK = 2048;
// Channels of a channels_last image that one item covers.
constexpr int64_t LANES = 32;

enum class Activation : int { none, elu, relu, lrelu, swish };

// A dense batch, (N, C, H, W) in that order or, if `last`, in (N, H, W, C) order.
struct Shape {
  int64_t samples, channels, height, width;
  int64_t pixels() const { return height * width; }
  int64_t elements() const { return channels * height * width; }  // of one sample
  int64_t total() const { return samples * elements(); }
};

// Numbers in float32 or bfloat16.
struct Array {
  void* data;
  bool bf16;
  bool last;
};

// Which noise: see ncsn_fast/noise.py. Elements count in (C, H, W) order.
struct Noise {
  uint64_t seed;
  uint32_t step;
  uint32_t stream;
  const int64_t* sample_ids;
  int64_t elements;  // of one sample
};

struct Update {
  Shape shape;
  Noise noise, known_noise;
  bool add_noise;
  float a, b, c, d, e, f, w, next_c_in, next_sigma;
  const float *x, *z, *history, *guidance, *known;
  const bool* mask;
  Array n;
  float *x_out, *history_out, *input_out;  // the last scaled, or null
};

struct Perturb {
  Shape shape;
  Noise noise;
  const float *x, *sigma;
  float* out;
};

// Items are chunks of a sample, or as many whole samples as a chunk holds.
struct Loss {
  Shape shape;
  Noise noise;
  Array n;
  const float *weight, *upstream;
  double* partial;  // (N, chunks_of_sample)
  Array gradient;
  int64_t chunks_of_sample() const { return (shape.elements() + CHUNK - 1) / CHUNK; }
  int64_t samples_of_chunk() const {
    return shape.elements() >= CHUNK ? 1 : CHUNK / shape.elements();
  }
  int64_t items() const {
    const int64_t groups = (shape.samples + samples_of_chunk() - 1) / samples_of_chunk();
    return shape.elements() > CHUNK ? shape.samples * chunks_of_sample() : groups;
  }
};

struct Pointwise {
  int64_t total;
  Activation activation;
  Array x, other, grad, out, active;
};

// γ, α, β are rows of C: `row_stride` is C where each sample has its own, else 0.
struct Norm {
  Shape shape;
  Activation activation;
  float eps;
  int64_t row_stride;
  const float *gamma, *alpha, *beta;
  Array x, y, grad, dx;
  float *mean, *variance, *scale, *shift;                   // (N, C)
  float *dgamma, *dalpha, *dbeta, *slope, *offset;          // (N, C), backward only
};

struct Pool {
  Shape shape;
  Activation activation;
  Array x, active, pooled, dactive, dpooled, dx;
  size_t scratch(bool backward) const {
    const size_t row = static_cast<size_t>(shape.width + 4) * LANES;
    return (backward ? 20 : 9) * row * sizeof(float);
  }
};

// Position i of the finer image lies between low[i] and high[i] of the coarser one.
struct Axis {
  const int32_t *low, *high;
  const float* weight;  // of high
};

struct Resize {
  Shape shape;  // of base
  int64_t height, width;  // of x
  Axis rows, columns;
  Array x, base, out;
  size_t scratch(bool backward) const {
    const int64_t image = backward ? height * width : 2 * width;
    return static_cast<size_t>(image + width + 2 * shape.width) * LANES * sizeof(float);
  }
};

// Items of a kernel over images: a plane, or LANES channels of a channels_last sample.
inline int64_t image_items(const Shape& shape, bool last) {
  return shape.samples * (last ? (shape.channels + LANES - 1) / LANES : shape.channels);
}

struct Table {
  const char* name;
  void (*words)(uint64_t seed, const uint32_t* counters, uint32_t* words, int64_t count);
  void (*normal)(const Noise&, float* out, int64_t first, int64_t count);
  void (*sampler_update)(const Update&, int64_t first, int64_t last);
  void (*perturb)(const Perturb&, int64_t first, int64_t last);
  void (*dsm_loss)(const Loss&, int64_t first, int64_t last);
  void (*activate)(const Pointwise&, int64_t first, int64_t last);
  void (*activate_backward)(const Pointwise&, int64_t first, int64_t last);
  void (*residual_add)(const Pointwise&, int64_t first, int64_t last);
  void (*norm_moments)(const Norm&, int64_t first, int64_t last);
  void (*norm_coefficients)(const Norm&, int64_t sample);
  void (*norm_apply)(const Norm&, int64_t first, int64_t last);
  void (*norm_sums)(const Norm&, int64_t first, int64_t last);
  void (*norm_slopes)(const Norm&, int64_t sample);
  void (*norm_backward)(const Norm&, int64_t first, int64_t last);
  void (*max_pool5)(const Pool&, int64_t first, int64_t last, float* scratch);
  void (*max_pool5_backward)(const Pool&, int64_t first, int64_t last, float* scratch);
  void (*resize_add)(const Resize&, int64_t first, int64_t last, float* scratch);
  void (*resize_backward)(const Resize&, int64_t first, int64_t last, float* scratch);
};

namespace plain {
extern const Table table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}
#endif

}  // namespace ncsn_fast
