// 3×3 convolutions of stride 1 by Winograd's minimal filtering, channels_last, float32.
//
// A tile of M×M outputs is Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A of the A×A inputs d that it sees, A = M + 2
// (Lavin & Gray 2016): A² products for 9M², summed over the input channels. Products of one
// frequency (place in A×A) are a matrix product, tiles × inputs × outputs. With a dilation the same
// holds on each of the dilation² interleaved sub-images.
//
// Sums over inputs run in order and whole, whatever the tiles beside it: a pixel's value depends on
// its image only.

namespace ncsn_fast {
namespace CAPABILITY {

typedef float Vector __attribute__((vector_size(VECTOR * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(VECTOR * sizeof(float)), aligned(4)));

constexpr int COLUMNS = 2;                    // vectors of outputs that a product has in registers

inline Vector vector_at(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void put(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

// Bᵀd, Aᵀm, Au and Gg of one row or column: get(i) gives the numbers, put(i, v) takes the results.
// WEIGHT is G.
template <int M>
struct Filter;

template <>
struct Filter<2> {
  template <class Get, class Put>
  static inline void input(Get get, Put put) {
    const Vector d0 = get(0), d1 = get(1), d2 = get(2), d3 = get(3);
    put(0, d0 - d2);
    put(1, d1 + d2);
    put(2, d2 - d1);
    put(3, d1 - d3);
  }
  template <class Get, class Put>
  static inline void output(Get get, Put put) {
    const Vector m0 = get(0), m1 = get(1), m2 = get(2), m3 = get(3);
    put(0, m0 + m1 + m2);
    put(1, m1 - m2 - m3);
  }
  template <class Get, class Put>
  static inline void upstream(Get get, Put put) {
    const Vector y0 = get(0), y1 = get(1);
    put(0, y0);
    put(1, y0 + y1);
    put(2, y0 - y1);
    put(3, -y1);
  }
  static constexpr double WEIGHT[4][3] = {
      {1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
};

template <>
struct Filter<4> {
  template <class Get, class Put>
  static inline void input(Get get, Put put) {
    const Vector d0 = get(0), d1 = get(1), d2 = get(2), d3 = get(3), d4 = get(4), d5 = get(5);
    put(0, 4.0f * d0 - 5.0f * d2 + d4);
    const Vector even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1;
    put(1, even + odd);
    put(2, even - odd);
    const Vector near = d4 - d2, far = 2.0f * (d3 - d1);
    put(3, near + far);
    put(4, near - far);
    put(5, 4.0f * d1 - 5.0f * d3 + d5);
  }
  template <class Get, class Put>
  static inline void output(Get get, Put put) {
    const Vector m0 = get(0), m1 = get(1), m2 = get(2), m3 = get(3), m4 = get(4), m5 = get(5);
    const Vector near = m1 + m2, far = m3 + m4, near_odd = m1 - m2, far_odd = m3 - m4;
    put(0, m0 + near + far);
    put(1, near_odd + 2.0f * far_odd);
    put(2, near + 4.0f * far);
    put(3, near_odd + 8.0f * far_odd + m5);
  }
  template <class Get, class Put>
  static inline void upstream(Get get, Put put) {
    const Vector y0 = get(0), y1 = get(1), y2 = get(2), y3 = get(3);
    const Vector even = y0 + y2, odd = y1 + y3;
    put(0, y0);
    put(1, even + odd);
    put(2, even - odd);
    const Vector far = y0 + 4.0f * y2, far_odd = 2.0f * y1 + 8.0f * y3;
    put(3, far + far_odd);
    put(4, far - far_odd);
    put(5, y3);
  }
  static constexpr double WEIGHT[6][3] = {
      {1.0 / 4, 0, 0},
      {-1.0 / 6, -1.0 / 6, -1.0 / 6},
      {-1.0 / 6, 1.0 / 6, -1.0 / 6},
      {1.0 / 24, 1.0 / 12, 1.0 / 6},
      {1.0 / 24, -1.0 / 12, 1.0 / 6},
      {0, 0, 1}};
};

// Where a tile lies: its sample, and the first row and column of its outputs.
struct Place {
  int64_t sample, row, column;
};

inline Place place_of(const Conv& c, int64_t tile) {
  const int64_t column = tile % c.columns;
  tile /= c.columns;
  const int64_t row = tile % c.rows;
  tile /= c.rows;
  const int64_t right = tile % c.right();
  tile /= c.right();
  const int64_t down = tile % c.down();
  return {
      tile / c.down(), row * c.side * c.dilation_y + down,
      column * c.side * c.dilation_x + right};
}

// Channels_last images, and pixels of them that lie (step_y, step_x) apart.
struct Pixels {
  const float* images;
  int64_t channels, height, width, step_y, step_x;
};

// S×S pixels of a sample from (row, column) on, zeros outside of it, become A×A numbers of each of
// CONV_LANES channels: to[f * step] for the frequency f. `filter` takes a row or column of them.
template <int S, int A, class Filter1D>
inline void transform_pixels(
    const Pixels& of, int64_t sample, int64_t row, int64_t column, int64_t channel, float* to,
    int64_t step, const Filter1D& filter) {
  alignas(64) static const float zeros[CONV_LANES] = {};
  alignas(64) float ends[S * S][CONV_LANES];
  const int64_t count = smaller(CONV_LANES, of.channels - channel);
  const float* image = of.images + sample * of.height * of.width * of.channels + channel;
  const float* from[S][S];
  for (int i = 0; i < S; ++i) {
    const int64_t y = row + i * of.step_y;
    for (int j = 0; j < S; ++j) {
      const int64_t x = column + j * of.step_x;
      from[i][j] = zeros;
      if (y < 0 || y >= of.height || x < 0 || x >= of.width) continue;
      from[i][j] = image + (y * of.width + x) * of.channels;
      if (count == CONV_LANES) continue;
      float* end = ends[i * S + j];
      for (int64_t k = 0; k < CONV_LANES; ++k) end[k] = k < count ? from[i][j][k] : 0.0f;
      from[i][j] = end;
    }
  }
  for (int64_t lane = 0; lane < CONV_LANES; lane += VECTOR) {
    Vector half[S][A];
    for (int i = 0; i < S; ++i) {
      filter(
          [&](int j) { return vector_at(from[i][j] + lane); },
          [&](int j, Vector v) { half[i][j] = v; });
    }
    for (int j = 0; j < A; ++j) {
      filter(
          [&](int i) { return half[i][j]; },
          [&](int i, Vector v) { put(to + (i * A + j) * step + lane, v); });
    }
  }
}

// The inputs that a tile sees, transformed.
template <int M>
inline void tile_in(const Conv& c, const Place& at, int64_t channel, float* to, int64_t step) {
  transform_pixels<M + 2, M + 2>(
      {c.x, c.inputs, c.height, c.width, c.dilation_y, c.dilation_x}, at.sample,
      at.row - c.padding_y, at.column - c.padding_x, channel, to, step,
      [](auto get, auto put) { Filter<M>::input(get, put); });
}

// CONV_LANES channels of a pixel, of which the image may have fewer: values ← values + more.
inline void add(float* values, const float* more, int64_t count) {
  if (count < CONV_LANES) {
    for (int64_t k = 0; k < count; ++k) values[k] += more[k];
    return;
  }
  for (int64_t k = 0; k < CONV_LANES; k += VECTOR) put(values + k, vector_at(values + k) + vector_at(more + k));
}

inline void copy(const float* values, float* to, int64_t count) {
  if (count < CONV_LANES) {
    for (int64_t k = 0; k < count; ++k) to[k] = values[k];
    return;
  }
  for (int64_t k = 0; k < CONV_LANES; k += VECTOR) put(to + k, vector_at(values + k));
}

// The outputs of a tile from its products from[f * step], CONV_LANES channels of them. Pooled, each
// 2×2 of them are one mean.
template <int M, bool POOL>
inline void tile_out(const Conv& c, const Place& at, int64_t channel, const float* from, int64_t step) {
  constexpr int A = M + 2, SIDE = POOL ? M / 2 : M;
  alignas(64) float values[SIDE][SIDE][CONV_LANES];
  for (int64_t lane = 0; lane < CONV_LANES; lane += VECTOR) {
    Vector half[M][A], whole[M][M];
    for (int j = 0; j < A; ++j) {
      Filter<M>::output(
          [&](int i) { return vector_at(from + (i * A + j) * step + lane); },
          [&](int i, Vector v) { half[i][j] = v; });
    }
    for (int i = 0; i < M; ++i) {
      Filter<M>::output(
          [&](int j) { return half[i][j]; }, [&](int j, Vector v) { whole[i][j] = v; });
    }
    for (int i = 0; i < SIDE; ++i) {
      for (int j = 0; j < SIDE; ++j) {
        Vector value = whole[i][j];
        if constexpr (POOL) {
          value = 0.25f * ((whole[2 * i][2 * j] + whole[2 * i][2 * j + 1]) +
                           (whole[2 * i + 1][2 * j] + whole[2 * i + 1][2 * j + 1]));
        }
        put(values[i][j] + lane, value);
      }
    }
  }
  const int64_t count = smaller(CONV_LANES, c.outputs - channel);
  const int64_t row = POOL ? at.row / 2 : at.row, column = POOL ? at.column / 2 : at.column;
  const auto each = [&](auto take) {
    for (int i = 0; i < SIDE; ++i) {
      const int64_t y = row + i * c.dilation_y;
      if (y >= c.out_height) break;
      for (int j = 0; j < SIDE; ++j) {
        const int64_t x = column + j * c.dilation_x;
        if (x >= c.out_width) break;
        take(values[i][j], ((at.sample * c.out_height + y) * c.out_width + x) * c.outputs + channel);
      }
    }
  };
  each([&](float* pixel, int64_t place) {
    if (c.bias) add(pixel, c.bias + channel, count);
    if (c.residual) add(pixel, c.residual + place, count);
    if (c.y) copy(pixel, c.y + place, count);
  });
  if (!c.active) return;
  activate_all(c.activation, values[0][0], SIDE * SIDE * CONV_LANES);
  each([&](float* pixel, int64_t place) { copy(pixel, c.active + place, count); });
}

// R tiles × C vectors of outputs: a[tile][input] · b[input][output] over all inputs.
template <int R, int C>
inline void product(
    const float* a, int64_t chunk_step, int64_t chunks, const float* b, float* to) {
  Vector sums[R][C] = {};
  for (int64_t chunk = 0; chunk < chunks; ++chunk, a += chunk_step) {
#pragma GCC unroll 4
    for (int k = 0; k < CONV_LANES; ++k, b += CONV_PANEL) {
      Vector right[C];
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) right[j] = vector_at(b + j * VECTOR);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const float left = a[r * CONV_LANES + k];
#pragma GCC unroll 16
        for (int j = 0; j < C; ++j) sums[r][j] += left * right[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) put(to + r * CONV_PANEL + j * VECTOR, sums[r][j]);
  }
}

template <int R, int C>
inline void product_of(
    int64_t tiles, const float* a, int64_t chunk_step, int64_t chunks, const float* b, float* to) {
  if (tiles == R) return product<R, C>(a, chunk_step, chunks, b, to);
  if constexpr (R > 1) product_of<R - 1, C>(tiles, a, chunk_step, chunks, b, to);
}

// run(vectors, column) for the columns of a panel that hold any of `count` channels, whole chunks.
template <class Run>
inline void for_columns(int64_t count, const Run& run) {
  const int64_t end = count > CONV_LANES ? CONV_PANEL : CONV_LANES;
  for (int64_t column = 0; column < end; column += COLUMNS * VECTOR) {
    if constexpr (COLUMNS * VECTOR > CONV_LANES) {
      if (end == CONV_LANES) return run(std::integral_constant<int, CONV_LANES / VECTOR>{}, column);
    }
    run(std::integral_constant<int, COLUMNS>{}, column);
  }
}

// The chunks [first, last) of input channels of some tiles, transformed: (A², chunks, tiles,
// CONV_LANES) numbers, in which a frequency's matrix lies in the order that product reads.
template <int M>
inline void transform_input(
    const Conv& c, const Part& part, int64_t first, int64_t last, float* to) {
  for (int64_t t = 0; t < part.tiles; ++t) {
    const Place at = place_of(c, part.tile + t);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      float* there = to + (chunk * part.step + t) * CONV_LANES;
      tile_in<M>(c, at, chunk * CONV_LANES, there, c.chunks() * part.step * CONV_LANES);
    }
  }
}

// The outputs of some tiles, CONV_PANEL channels of them, from all their transformed inputs.
template <int M>
inline void panel_of(
    const Conv& c, const Part& part, int64_t panel, const float* from, float* scratch) {
  constexpr int AA = (M + 2) * (M + 2);
  const int64_t inputs = c.chunks() * CONV_LANES, tiles = part.tiles;
  const int64_t groups = (tiles + ROWS - 1) / ROWS;
  for (int64_t f = 0; f < AA; ++f) {
    const float* weight = c.weight + (panel * AA + f) * inputs * CONV_PANEL;
    const float* left = from + f * inputs * part.step;
    float* sums = scratch + f * tiles * CONV_PANEL;
    for (int64_t group = 0, done = 0; group < groups; ++group) {
      // Groups of about the same size: a short last one would wait for its sums.
      const int64_t some = (tiles - done + groups - group - 1) / (groups - group);
      for_columns(c.outputs - panel * CONV_PANEL, [&](auto wide, int64_t column) {
        product_of<ROWS, wide>(
            some, left + done * CONV_LANES, part.step * CONV_LANES, c.chunks(), weight + column,
            sums + done * CONV_PANEL + column);
      });
      done += some;
    }
  }
  const int64_t end = smaller((panel + 1) * CONV_PANEL, c.outputs);
  for (int64_t t = 0; t < tiles; ++t) {
    const Place at = place_of(c, part.tile + t);
    for (int64_t channel = panel * CONV_PANEL; channel < end; channel += CONV_LANES) {
      const float* sums = scratch + t * CONV_PANEL + channel % CONV_PANEL;
      if (c.pool) {
        tile_out<M, true>(c, at, channel, sums, tiles * CONV_PANEL);
      } else {
        tile_out<M, false>(c, at, channel, sums, tiles * CONV_PANEL);
      }
    }
  }
}

// The weights of one panel of outputs, in float64 until they are stored: (A², inputs, CONV_PANEL).
template <int M>
inline void transform_panel(const ConvWeight& w, int64_t panel) {
  constexpr int A = M + 2;
  const int64_t inputs = w.chunks() * CONV_LANES, step = inputs * CONV_PANEL;
  const int64_t first = panel * CONV_PANEL, count = smaller(CONV_PANEL, w.outputs - first);
  float* to = w.transformed + panel * A * A * step;
  alignas(64) float g[3][3][CONV_PANEL] = {};
  for (int64_t i = 0; i < inputs; ++i, to += CONV_PANEL) {
    if (i >= w.inputs) {
      for (int f = 0; f < A * A; ++f) std::memset(to + f * step, 0, sizeof(g[0][0]));
      continue;
    }
    for (int y = 0; y < 3; ++y) {
      for (int x = 0; x < 3; ++x) {
        const float* from = w.weight + first * w.output_stride + i * w.input_stride +
                            y * w.row_stride + x * w.column_stride;
        if (w.output_stride == 1) {
          std::memcpy(g[y][x], from, static_cast<size_t>(count) * sizeof(float));
        } else {
          for (int64_t o = 0; o < count; ++o) g[y][x][o] = from[o * w.output_stride];
        }
      }
    }
    const auto& G = Filter<M>::WEIGHT;
    double half[A][3][CONV_PANEL];
    for (int a = 0; a < A; ++a) {
      for (int x = 0; x < 3; ++x) {
        for (int o = 0; o < CONV_PANEL; ++o) {
          half[a][x][o] = G[a][0] * g[0][x][o] + G[a][1] * g[1][x][o] + G[a][2] * g[2][x][o];
        }
      }
    }
    for (int a = 0; a < A; ++a) {
      for (int b = 0; b < A; ++b) {
        float* there = to + (a * A + b) * step;
        for (int o = 0; o < CONV_PANEL; ++o) {
          there[o] = static_cast<float>(
              G[b][0] * half[a][0][o] + G[b][1] * half[a][1][o] + G[b][2] * half[a][2][o]);
        }
      }
    }
  }
}

inline void conv_input(
    const Conv& c, const Part& part, int64_t first, int64_t last, float* to) {
  c.side == 4 ? transform_input<4>(c, part, first, last, to)
              : transform_input<2>(c, part, first, last, to);
}

inline void conv_panel(
    const Conv& c, const Part& part, int64_t panel, const float* from, float* scratch) {
  c.side == 4 ? panel_of<4>(c, part, panel, from, scratch)
              : panel_of<2>(c, part, panel, from, scratch);
}

inline void conv_weight(const ConvWeight& w, int64_t panel) {
  w.side == 4 ? transform_panel<4>(w, panel) : transform_panel<2>(w, panel);
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
