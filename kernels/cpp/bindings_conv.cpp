// Convolutions by Winograd's filtering as PyTorch operations torch.ops.ncsn_fast_cpp.conv3x3*.
#include "bindings.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <string_view>
#include <vector>

namespace ncsn_fast {
namespace {

constexpr int64_t CACHE = 768 << 10;  // bytes that a thread's block should find in its second cache

int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

int64_t side_of(int64_t side) {
  TORCH_CHECK_VALUE(side == 2 || side == 4, "tiles have 2 or 4 outputs a side, not ", side);
  return side;
}

// (O, I, 3, 3) weights of any strides, transformed. Those of the gradient of the input are the
// transposed ones, flipped: `flipped`.
Tensor conv3x3_weight(const Tensor& weight, int64_t side, bool flipped) {
  TORCH_CHECK_VALUE(
      weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 &&
          weight.scalar_type() == at::kFloat,
      "needed are (O, I, 3, 3) float32 weights, not ", weight.scalar_type(), " ", weight.sizes());
  ConvWeight w{};
  w.side = side_of(side);
  w.outputs = weight.size(flipped ? 1 : 0);
  w.inputs = weight.size(flipped ? 0 : 1);
  w.output_stride = weight.stride(flipped ? 1 : 0);
  w.input_stride = weight.stride(flipped ? 0 : 1);
  w.row_stride = flipped ? -weight.stride(2) : weight.stride(2);
  w.column_stride = flipped ? -weight.stride(3) : weight.stride(3);
  w.weight = weight.const_data_ptr<float>();
  if (flipped) w.weight += 2 * (weight.stride(2) + weight.stride(3));
  Tensor transformed = at::empty(
      {w.panels(), (side + 2) * (side + 2), w.chunks() * CONV_LANES, CONV_PANEL},
      weight.options().memory_format(at::MemoryFormat::Contiguous));
  w.transformed = transformed.mutable_data_ptr<float>();
  const auto& k = table();
  at::parallel_for(0, w.panels(), 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) k.conv_weight(w, panel);
  });
  return transformed;
}

// The sizes of a convolution of x, which is channels_last.
Conv conv_of(
    const Tensor& x, int64_t outputs, int64_t side, at::IntArrayRef padding,
    at::IntArrayRef dilation) {
  const Shape shape = images_of(x);
  TORCH_CHECK_VALUE(x.scalar_type() == at::kFloat, "images are float32, not ", x.scalar_type());
  Conv c{};
  c.side = side_of(side);
  c.samples = shape.samples;
  c.inputs = shape.channels;
  c.height = shape.height;
  c.width = shape.width;
  c.outputs = outputs;
  c.padding_y = padding[0];
  c.padding_x = padding[1];
  c.dilation_y = dilation[0];
  c.dilation_x = dilation[1];
  TORCH_CHECK_VALUE(
      c.padding_y >= 0 && c.padding_x >= 0 && c.dilation_y > 0 && c.dilation_x > 0,
      "padding is at least 0, dilation at least 1");
  c.out_height = c.height + 2 * (c.padding_y - c.dilation_y);
  c.out_width = c.width + 2 * (c.padding_x - c.dilation_x);
  TORCH_CHECK_VALUE(
      c.out_height >= 0 && c.out_width >= 0, "images of ", c.height, "×", c.width,
      " are smaller than the kernel");
  c.rows = parts(parts(c.out_height, c.dilation_y), side);
  c.columns = parts(parts(c.out_width, c.dilation_x), side);
  c.x = x.const_data_ptr<float>();
  return c;
}

void check(const Conv& c, const Tensor& weight) {
  TORCH_CHECK_VALUE(
      weight.dim() == 4 && weight.size(0) == c.panels() && weight.size(1) == c.frequencies() &&
          weight.size(2) == c.chunks() * CONV_LANES && weight.size(3) == CONV_PANEL,
      "the transformed weights ", weight.sizes(), " are not those of ", c.inputs, " inputs and ",
      c.outputs, " outputs in tiles of ", c.side);
  TORCH_CHECK_VALUE(
      !c.pool || (c.dilation_y == 1 && c.dilation_x == 1), "means are taken without dilation only");
}

// Each thread takes blocks of tiles from input to output, which stay in its cache.
void by_blocks(const Conv& c, int64_t blocks, int64_t tiles) {
  const auto& k = table();
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    const Tensor from = at::empty({c.frequencies() * c.chunks() * CONV_LANES * tiles}, at::kFloat);
    const Tensor sums = at::empty({c.frequencies() * CONV_PANEL * tiles}, at::kFloat);
    float *transformed = from.mutable_data_ptr<float>(), *scratch = sums.mutable_data_ptr<float>();
    for (int64_t block = first; block < last; ++block) {
      const int64_t tile = c.tiles() * block / blocks;
      const int64_t some = c.tiles() * (block + 1) / blocks - tile;
      const Part part{tile, some, some};
      k.conv_input(c, part, 0, c.chunks(), transformed);
      for (int64_t panel = 0; panel < c.panels(); ++panel) {
        k.conv_panel(c, part, panel, transformed, scratch);
      }
    }
  });
}

// Runs `run(item, part)` for all items and equal parts of the tiles, as many as give all threads
// something to do, but of no fewer than `least` tiles.
template <class Run>
void by_parts(const Conv& c, int64_t items, int64_t least, const Run& run) {
  const int64_t tiles = c.tiles(), wanted = parts(at::get_num_threads(), items);
  const int64_t count = std::min(wanted, parts(tiles, least));
  at::parallel_for(0, items * count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t tile = tiles * (i % count) / count;
      run(i / count, Part{tile, tiles * (i % count + 1) / count - tile, tiles});
    }
  });
}

// Where blocks are fewer than threads: all threads transform all tiles, then share the outputs.
void by_panels(const Conv& c) {
  const auto& k = table();
  const Tensor from =
      at::empty({c.frequencies() * c.chunks() * CONV_LANES * c.tiles()}, at::kFloat);
  float* transformed = from.mutable_data_ptr<float>();
  by_parts(c, c.chunks(), 1, [&](int64_t chunk, const Part& part) {
    k.conv_input(c, part, chunk, chunk + 1, transformed + part.tile * CONV_LANES);
  });
  by_parts(c, c.panels(), k.conv_rows, [&](int64_t panel, const Part& part) {
    const Tensor sums = at::empty({c.frequencies() * CONV_PANEL * part.tiles}, at::kFloat);
    const float* there = transformed + part.tile * CONV_LANES;
    k.conv_panel(c, part, panel, there, sums.mutable_data_ptr<float>());
  });
}

void run(const Conv& c) {
  if (c.tiles() == 0 || c.outputs == 0) return;
  const int64_t threads = at::get_num_threads();
  const int64_t bytes_of_tile =
      c.frequencies() * (c.chunks() * CONV_LANES + CONV_PANEL) * static_cast<int64_t>(sizeof(float));
  const int64_t groups = std::clamp<int64_t>(CACHE / bytes_of_tile / table().conv_rows, 1, 4);
  int64_t blocks = parts(c.tiles(), groups * table().conv_rows);
  if (blocks < threads) return by_panels(c);
  if (blocks < 8 * threads) blocks = parts(blocks, threads) * threads;  // the same for each
  blocks = std::min(blocks, c.tiles());
  by_blocks(c, blocks, parts(c.tiles(), blocks));
}

// x convolved, plus bias and residual, as it is where `total`, and activated where there is an
// activation. Pooled, the 2×2 means of that without the residual's. `overwrite`: the total is
// written over the residual.
std::vector<Tensor> conv3x3(
    const Tensor& x_given, const Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& residual_given, int64_t outputs, int64_t side, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool pool, std::string_view activation, bool total, bool overwrite) {
  const Tensor x = x_given.contiguous(at::MemoryFormat::ChannelsLast);
  Conv c = conv_of(x, outputs, side, padding, dilation);
  c.pool = pool;
  check(c, weight);
  if (pool) {
    c.out_height /= 2;
    c.out_width /= 2;
  }
  c.weight = floats_of(weight);
  TORCH_CHECK_VALUE(!bias || bias->numel() == outputs, "the bias has one number for each output");
  c.bias = floats_of(bias);
  TORCH_CHECK_VALUE(residual_given || !overwrite, "there is no residual to be written over");
  const int64_t sizes[] = {c.samples, c.outputs, c.out_height, c.out_width};
  Tensor residual;
  if (residual_given) {
    TORCH_CHECK_VALUE(
        residual_given->sizes() == at::IntArrayRef(sizes) &&
            residual_given->scalar_type() == at::kFloat,
        "the residual is to be float32 ", at::IntArrayRef(sizes), ", not ",
        residual_given->scalar_type(), " ", residual_given->sizes());
    residual = residual_given->contiguous(at::MemoryFormat::ChannelsLast);
    c.residual = residual.const_data_ptr<float>();
  }
  const auto image = [&] { return at::empty(sizes, x.options(), at::MemoryFormat::ChannelsLast); };
  std::vector<Tensor> results;
  if (total || activation.empty()) {
    results.push_back(overwrite ? residual : image());
    c.y = results.back().mutable_data_ptr<float>();
  }
  if (!activation.empty()) {
    c.activation = activation_of(activation);
    results.push_back(image());
    c.active = results.back().mutable_data_ptr<float>();
  }
  run(c);
  return results;
}

// The gradient of weights laid out as `weight` is, from x and the gradient of the convolution.
Tensor conv3x3_weight_gradient(
    const Tensor& x_given, const Tensor& upstream_given, const Tensor& weight, int64_t side,
    at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Tensor x = x_given.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor upstream = upstream_given.contiguous(at::MemoryFormat::ChannelsLast);
  ConvGradient g{};
  g.conv = conv_of(x, images_of(upstream).channels, side, padding, dilation);
  const Conv& c = g.conv;
  const int64_t sizes[] = {c.samples, c.outputs, c.out_height, c.out_width};
  const int64_t kernels[] = {c.outputs, c.inputs, 3, 3};
  TORCH_CHECK_VALUE(
      upstream.sizes() == at::IntArrayRef(sizes) && weight.sizes() == at::IntArrayRef(kernels) &&
          upstream.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat,
      "x ", x.sizes(), ", the gradient ", upstream.sizes(), " and weights ", weight.sizes(),
      " in float32 do not fit together");
  Tensor gradient = at::empty_like(weight);
  if (c.tiles() == 0) return gradient.zero_();
  if (gradient.numel() == 0) return gradient;
  g.upstream = upstream.const_data_ptr<float>();
  g.gradient = gradient.mutable_data_ptr<float>();
  g.output_stride = gradient.stride(0);
  g.input_stride = gradient.stride(1);
  g.row_stride = gradient.stride(2);
  g.column_stride = gradient.stride(3);
  const int64_t inputs = g.panels() * CONV_PANEL, outputs = g.chunks() * CONV_LANES;
  // As many as a cache holds, and more where else the sums would be moved more often than these.
  const int64_t bytes_of_tile =
      c.frequencies() * (inputs + outputs) * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::max<int64_t>(
      {64, CACHE / bytes_of_tile, 2 * inputs * outputs / (inputs + outputs)});
  const int64_t groups = parts(c.tiles(), most), tiles = parts(c.tiles(), groups);
  const auto scratch = [&](int64_t each) { return at::empty({c.frequencies() * each}, at::kFloat); };
  const Tensor inputs_in = scratch(inputs * tiles), outputs_in = scratch(outputs * tiles);
  const Tensor sums = scratch(inputs * outputs);
  g.inputs = inputs_in.mutable_data_ptr<float>();
  g.outputs = outputs_in.mutable_data_ptr<float>();
  g.sums = sums.mutable_data_ptr<float>();
  const auto& k = table();
  for (g.tile = 0; g.tile < c.tiles(); g.tile += tiles) {
    g.tiles = std::min(tiles, c.tiles() - g.tile);
    at::parallel_for(0, g.tiles, 1, [&](int64_t first, int64_t last) {
      k.conv_gradient_group(g, first, last);
    });
    at::parallel_for(0, c.frequencies() * g.panels(), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) k.conv_gradient_sums(g, i / g.panels(), i % g.panels());
    });
  }
  at::parallel_for(0, c.outputs, 1, [&](int64_t first, int64_t last) {
    for (int64_t output = first; output < last; ++output) k.conv_gradient_out(g, output);
  });
  return gradient;
}

}  // namespace
}  // namespace ncsn_fast

TORCH_LIBRARY_FRAGMENT(ncsn_fast_cpp, m) {
  m.def("conv3x3_weight(Tensor weight, int side, bool flipped) -> Tensor", &ncsn_fast::conv3x3_weight);
  m.def(
      "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int outputs, int side, "
      "int[2] padding, int[2] dilation, bool pool, str activation, bool total, bool overwrite) "
      "-> Tensor[]",
      &ncsn_fast::conv3x3);
  m.def(
      "conv3x3_weight_gradient(Tensor x, Tensor upstream, Tensor weight, int side, "
      "int[2] padding, int[2] dilation) -> Tensor",
      &ncsn_fast::conv3x3_weight_gradient);
}
