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

// Channels of a chunk and of a panel of a convolution by Winograd's filtering.
constexpr int64_t CONV_LANES = 16, CONV_PANEL = 32;

// A 3×3 convolution of stride 1 in tiles of side×side outputs; all images are channels_last.
struct Conv {
  int64_t side;                                            // 2 or 4
  int64_t samples, inputs, outputs, height, width;         // height and width of x
  int64_t padding_y, padding_x, dilation_y, dilation_x;
  bool pool;                                               // 2×2 means of the outputs; no dilation
  int64_t out_height, out_width;                           // of y
  int64_t rows, columns;                                   // of tiles, in one sub-image
  Activation activation;                                   // of active
  const float *x, *weight, *bias, *residual;               // weight transformed; the last two or null
  float *y, *active;                                       // either may be null
  int64_t chunks() const { return (inputs + CONV_LANES - 1) / CONV_LANES; }
  int64_t panels() const { return (outputs + CONV_PANEL - 1) / CONV_PANEL; }
  // Interleaved sub-images, without those that have no output.
  int64_t down() const { return out_height < dilation_y ? out_height : dilation_y; }
  int64_t right() const { return out_width < dilation_x ? out_width : dilation_x; }
  int64_t tiles() const { return samples * down() * right() * rows * columns; }
  int64_t frequencies() const { return (side + 2) * (side + 2); }
};

// Some of its tiles, whose transformed inputs lie in memory for `step` tiles.
struct Part {
  int64_t tile, tiles, step;  // the first one, and how many there are
};

// The weights of such a convolution, with any strides, and where they go transformed:
// (panels, (side + 2)², chunks · CONV_LANES, CONV_PANEL).
struct ConvWeight {
  int64_t side, inputs, outputs;
  int64_t output_stride, input_stride, row_stride, column_stride;
  const float* weight;
  float* transformed;
  int64_t chunks() const { return (inputs + CONV_LANES - 1) / CONV_LANES; }
  int64_t panels() const { return (outputs + CONV_PANEL - 1) / CONV_PANEL; }
};

// The gradient of such weights from x and the gradient of y, and the group of tiles that is on.
struct ConvGradient {
  Conv conv;  // its x and sizes
  const float* upstream;
  int64_t tile, tiles;      // the first one of a group, and how many there are
  float *inputs, *outputs;  // of a group, transformed
  float* sums;              // (frequencies, panels, chunks · CONV_LANES, CONV_PANEL)
  float* gradient;
  int64_t output_stride, input_stride, row_stride, column_stride;
  int64_t chunks() const { return (conv.outputs + CONV_LANES - 1) / CONV_LANES; }
  int64_t panels() const { return (conv.inputs + CONV_PANEL - 1) / CONV_PANEL; }
};

// Items of a kernel over images: a plane, or LANES channels of a channels_last sample.
inline int64_t image_items(const Shape& shape, bool last) {
  return shape.samples * (last ? (shape.channels + LANES - 1) / LANES : shape.channels);
}

struct Table {
  const char* name;
  void (*words)(uint64_t seed, const uint32_t* counters, uint32_t* words, int64_t count);
  void (*normal)(const Noise&, float* out, int64_t first, int64_t count);
  void (*uniform)(const Noise&, float* out, int64_t first, int64_t count);
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
  int64_t conv_rows;  // tiles that a product of matrices takes at once
  void (*conv_weight)(const ConvWeight&, int64_t panel);
  void (*conv_input)(const Conv&, const Part&, int64_t first, int64_t last, float* to);
  void (*conv_panel)(
      const Conv&, const Part&, int64_t panel, const float* from, float* scratch);
  void (*conv_gradient_group)(const ConvGradient&, int64_t first, int64_t last);
  void (*conv_gradient_sums)(const ConvGradient&, int64_t frequency, int64_t panel);
  void (*conv_gradient_out)(const ConvGradient&, int64_t output);
  uint64_t (*fingerprint)(const unsigned char* bytes, int64_t count, uint64_t state);
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
