// The gradient of the weights of a convolution by Winograd's filtering, channels_last, float32.
//
// The transpose of the convolution in its weights: Gᵀ[Σ (Bᵀ d B) ⊙ (A u Aᵀ)]G, summed over tiles,
// of the inputs d that a tile sees and the gradients u of its outputs. A frequency is a matrix
// product, outputs × tiles × inputs.
//
// Sums over tiles are taken in the same order for any number of threads.

namespace ncsn_fast {
namespace CAPABILITY {

// Tiles that are summed before their sum is added to the others': the error of long sums grows with
// the root of their length, and what they read stays in the first cache.
constexpr int64_t SUMMED = 64;
constexpr int GRADIENT_ROWS = VECTOR == 16 ? 8 : 4;  // outputs that a product has in registers

// Tiles [first, last) of a group transformed: inputs to (A², panels, tiles, CONV_PANEL), gradients
// of outputs to (A², chunks, tiles, CONV_LANES).
template <int M>
inline void transform_group(const ConvGradient& g, int64_t first, int64_t last) {
  constexpr int A = M + 2;
  const Conv& c = g.conv;
  const Pixels upstream{
      g.upstream, c.outputs, c.out_height, c.out_width, c.dilation_y, c.dilation_x};
  for (int64_t t = first; t < last; ++t) {
    const Place at = place_of(c, g.tile + t);
    for (int64_t chunk = 0; chunk < c.chunks(); ++chunk) {
      float* there =
          g.inputs + ((chunk / 2) * g.tiles + t) * CONV_PANEL + chunk % 2 * CONV_LANES;
      tile_in<M>(c, at, chunk * CONV_LANES, there, g.panels() * g.tiles * CONV_PANEL);
    }
    for (int64_t chunk = 0; chunk < g.chunks(); ++chunk) {
      transform_pixels<M, A>(
          upstream, at.sample, at.row, at.column, chunk * CONV_LANES,
          g.outputs + (chunk * g.tiles + t) * CONV_LANES, g.chunks() * g.tiles * CONV_LANES,
          [](auto get, auto put) { Filter<M>::upstream(get, put); });
    }
  }
}

// GRADIENT_ROWS outputs × C vectors of inputs, over some tiles.
template <int C>
inline void tile_sums(
    const float* outputs, const float* inputs, int64_t tiles, float* to, bool first) {
  Vector sums[GRADIENT_ROWS][C] = {};
  for (int64_t t = 0; t < tiles; ++t, outputs += CONV_LANES, inputs += CONV_PANEL) {
    Vector right[C];
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) right[j] = vector_at(inputs + j * VECTOR);
#pragma GCC unroll 16
    for (int r = 0; r < GRADIENT_ROWS; ++r) {
      const float left = outputs[r];
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) sums[r][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < GRADIENT_ROWS; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      float* there = to + r * CONV_PANEL + j * VECTOR;
      put(there, first ? sums[r][j] : vector_at(there) + sums[r][j]);
    }
  }
}

// A frequency's product for one panel of inputs, added to those of the groups before.
inline void conv_gradient_sums(const ConvGradient& g, int64_t frequency, int64_t panel) {
  const int64_t outputs = g.chunks() * CONV_LANES, item = frequency * g.panels() + panel;
  for (int64_t tile = 0; tile < g.tiles; tile += SUMMED) {
    const int64_t tiles = smaller(SUMMED, g.tiles - tile);
    const float* right = g.inputs + (item * g.tiles + tile) * CONV_PANEL;
    for (int64_t output = 0; output < outputs; output += GRADIENT_ROWS) {
      const int64_t chunk = frequency * g.chunks() + output / CONV_LANES;
      const float* left = g.outputs + (chunk * g.tiles + tile) * CONV_LANES + output % CONV_LANES;
      float* to = g.sums + (item * outputs + output) * CONV_PANEL;
      for_columns(g.conv.inputs - panel * CONV_PANEL, [&](auto wide, int64_t column) {
        tile_sums<wide>(left, right + column, tiles, to + column, g.tile + tile == 0);
      });
    }
  }
}

// The gradients of the weights of one output, from the sums of all tiles.
template <int M>
inline void sums_out(const ConvGradient& g, int64_t output) {
  constexpr int A = M + 2;
  const auto& G = Filter<M>::WEIGHT;
  const int64_t step = g.panels() * g.chunks() * CONV_LANES * CONV_PANEL;
  for (int64_t panel = 0; panel < g.panels(); ++panel) {
    const float* from = g.sums + (panel * g.chunks() * CONV_LANES + output) * CONV_PANEL;
    const int64_t first = panel * CONV_PANEL, count = smaller(CONV_PANEL, g.conv.inputs - first);
    alignas(64) float values[3][3][CONV_PANEL];
    for (int64_t lane = 0; lane < count; lane += VECTOR) {
      for (int y = 0; y < 3; ++y) {
        Vector half[A], sum;
        for (int b = 0; b < A; ++b) {
          half[b] = Vector{};
          for (int a = 0; a < A; ++a) {
            half[b] += static_cast<float>(G[a][y]) * vector_at(from + (a * A + b) * step + lane);
          }
        }
        for (int x = 0; x < 3; ++x) {
          sum = Vector{};
          for (int b = 0; b < A; ++b) sum += static_cast<float>(G[b][x]) * half[b];
          put(values[y][x] + lane, sum);
        }
      }
    }
    for (int y = 0; y < 3; ++y) {
      for (int x = 0; x < 3; ++x) {
        float* to = g.gradient + output * g.output_stride + first * g.input_stride +
                    y * g.row_stride + x * g.column_stride;
        if (g.input_stride == 1) {
          std::memcpy(to, values[y][x], static_cast<size_t>(count) * sizeof(float));
          continue;
        }
        for (int64_t i = 0; i < count; ++i) to[i * g.input_stride] = values[y][x][i];
      }
    }
  }
}

inline void conv_gradient_group(const ConvGradient& g, int64_t first, int64_t last) {
  g.conv.side == 4 ? transform_group<4>(g, first, last) : transform_group<2>(g, first, last);
}

inline void conv_gradient_out(const ConvGradient& g, int64_t output) {
  g.conv.side == 4 ? sums_out<4>(g, output) : sums_out<2>(g, output);
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
