// act(x) and its maximum over each 5×5 neighbourhood, forward and backward.
//
// Maxima are taken of rows first and of columns then, on integers that are ordered as the numbers
// are: 8 comparisons a pixel, each one instruction. The gradient of a maximum goes to the first of
// equals in scan order: the first row that holds it, and the first place in that row. So it splits
// the same way, and rows are streamed through rings of five.

namespace ncsn_fast {
namespace CAPABILITY {

constexpr int32_t OUTSIDE = -2147483647 - 1;  // below every number's key

// Ordered as the numbers are, with -0 = 0, and NaN above all.
inline int32_t key_of(float value) {
  const uint32_t bits = as_bits(value);
  const int32_t magnitude = static_cast<int32_t>(bits & 0x7fffffff);
  const bool negative = static_cast<int32_t>(bits) < 0 && magnitude <= 0x7f800000;
  return negative ? -magnitude : magnitude;
}

inline float value_of(int32_t key) {
  const uint32_t magnitude = static_cast<uint32_t>(key < 0 ? -key : key);
  return as_float(key < 0 ? magnitude | 0x80000000u : magnitude);
}

// The same in 16 bits, in half the lanes.
inline int16_t key_of(BFloat16 value) {
  const auto bits = static_cast<int16_t>(value.bits);
  const auto magnitude = static_cast<int16_t>(bits & 0x7fff);
  return bits < 0 && magnitude <= 0x7f80 ? static_cast<int16_t>(-magnitude) : magnitude;
}

inline BFloat16 value_of(int16_t key) {
  const auto magnitude = static_cast<int16_t>(key < 0 ? -key : key);
  return {static_cast<uint16_t>(key < 0 ? magnitude | 0x8000 : magnitude)};
}

// A row of an image with two pixels on either side, and rings of five rows.
struct PoolRows {
  int64_t width, row;  // channels; floats in a row of the image
  float *x, *values;
  int32_t *keys, *choice, *ring, *places;
  float *grads, *padded;

  PoolRows(const Pool& pool, const Image& image, float* scratch) {
    width = image.width;
    row = pool.shape.width * width;
    const int64_t size = row + 4 * width;
    x = scratch;
    values = x + size;
    keys = reinterpret_cast<int32_t*>(values + size);
    choice = keys + size;
    ring = choice + size;
    places = ring + 5 * size;
    grads = reinterpret_cast<float*>(places + 5 * size);
    padded = grads + 5 * size;
    for (int64_t i = 0; i < 2 * width; ++i) keys[i] = keys[row + 2 * width + i] = OUTSIDE;
  }
  int32_t* ring_row(int64_t r) const { return ring + r % 5 * (row + 4 * width); }
  int32_t* places_row(int64_t r) const { return places + r % 5 * (row + 4 * width); }
  float* grads_row(int64_t r) const { return grads + r % 5 * (row + 4 * width); }
};

template <class K>
inline K greater(K a, K b) {
  return a > b ? a : b;
}

// The keys of row r of act(x), which is saved where there is an activation; `keys` begins with two
// pixels outside of the image.
template <class T, class K>
NCSN_FAST_SHARED void forward_keys(
    const Pool& p, const T* x, T* active, const Image& image, int64_t r, K* __restrict keys) {
  const int64_t begin = image.offset + r * p.shape.width * image.stride;
  if (p.activation != Activation::none) {
    by_activation(p.activation, [&](auto constant) {
      constexpr Activation A = decltype(constant)::value;
      by_pixels(image, p.shape.width, [&](int64_t offset, int64_t, int64_t count) {
        const int64_t at = begin + offset;
        map(x + at, count, active + at, [](float value) { return act<A, T>(value); });
      });
    });
    x = active;
  }
  by_pixels(image, p.shape.width, [&](int64_t offset, int64_t done, int64_t count) {
    const T* __restrict from = x + begin + offset;
    K* __restrict to = keys + 2 * image.width + done;
    for (int64_t i = 0; i < count; ++i) to[i] = key_of(from[i]);
  });
}

template <class K>
NCSN_FAST_SHARED void row_maxima(const K* __restrict keys, int64_t w, int64_t row, K* __restrict to) {
  for (int64_t i = 0; i < row; ++i) {
    const K left = greater(keys[i], keys[i + w]);
    const K right = greater(keys[i + 3 * w], keys[i + 4 * w]);
    to[i] = greater(greater(left, right), keys[i + 2 * w]);
  }
}

// The maxima of five rows, of which some are the same at the edges of an image.
template <class T, class K>
NCSN_FAST_SHARED void column_maxima(
    const K* const (&rows)[5], const Image& image, int64_t pixels, T* pooled) {
  by_pixels(image, pixels, [&](int64_t offset, int64_t done, int64_t count) {
    const K *a = rows[0] + done, *b = rows[1] + done, *c = rows[2] + done, *d = rows[3] + done;
    const K* e = rows[4] + done;
    T* __restrict to = pooled + offset;
    for (int64_t i = 0; i < count; ++i) {
      const K best = greater(greater(a[i], b[i]), greater(c[i], d[i]));
      to[i] = value_of(greater(best, e[i]));
    }
  });
}

template <class T>
inline void pool_image(const Pool& p, const Image& image, const T* x, void* scratch) {
  using K = decltype(key_of(T()));
  const int64_t height = p.shape.height, row = p.shape.width * image.width;
  const int64_t edge = 2 * image.width;
  K *keys = static_cast<K*>(scratch), *ring = keys + row + 2 * edge;
  for (int64_t i = 0; i < edge; ++i) keys[i] = keys[edge + row + i] = std::numeric_limits<K>::min();
  T *active = static_cast<T*>(p.active.data), *pooled = static_cast<T*>(p.pooled.data);
  for (int64_t r = 0; r < height + 2; ++r) {
    if (r < height) {
      forward_keys(p, x, active, image, r, keys);
      row_maxima(keys, image.width, row, ring + r % 5 * row);
    }
    const int64_t y = r - 2;
    if (y < 0) continue;
    const K* rows[5];
    for (int64_t k = 0; k < 5; ++k) {
      rows[k] = ring + smaller(larger(y + k - 2, 0), height - 1) % 5 * row;
    }
    const int64_t to = image.offset + y * p.shape.width * image.stride;
    column_maxima(rows, image, p.shape.width, pooled + to);
  }
}

// Items are images.
inline void max_pool5(const Pool& p, int64_t first, int64_t last, float* scratch) {
  for (int64_t item = first; item < last; ++item) {
    const Image image = image_of(item, p.shape, p.x.last);
    by_type(p.x, [&](auto* x) { pool_image(p, image, x, scratch); });
  }
}

// The keys of act(x) in row r.
inline void load_keys(const Pool& p, const Image& image, const PoolRows& rows, int64_t r) {
  const int64_t columns = p.shape.width;
  load(p.x, image, r * columns, columns, rows.values);
  if (p.activation != Activation::none) {
    activate_all(p.activation, rows.values, rows.row);
    round_to(p.x, rows.values, rows.row);
  }
  int32_t* keys = rows.keys + 2 * rows.width;
  for (int64_t i = 0; i < rows.row; ++i) keys[i] = key_of(rows.values[i]);
}

// The maxima of a row, and the first place of each among its five.
inline void first_maxima(const PoolRows& rows, int32_t* __restrict to, int32_t* __restrict place) {
  const int32_t* __restrict keys = rows.keys;
  for (int64_t i = 0; i < rows.row; ++i) {
    int32_t best = keys[i], where = 0;
    for (int32_t k = 1; k < 5; ++k) {
      const int32_t key = keys[i + k * rows.width];
      where = key > best ? k : where;
      best = greater(best, key);
    }
    to[i] = best;
    place[i] = where;
  }
}

// Gives the gradients of output row y to the rows that hold their maxima.
inline void spread_rows(const Pool& p, const Image& image, const PoolRows& rows, int64_t y) {
  const int64_t begin = larger(0, y - 2), end = smaller(p.shape.height, y + 3);
  int32_t* __restrict best = rows.keys + 2 * rows.width;  // free until the next row is loaded
  int32_t* __restrict choice = rows.choice;
  float* __restrict grad = rows.values;
  load(p.dpooled, image, y * p.shape.width, p.shape.width, grad);
  std::memcpy(best, rows.ring_row(begin), static_cast<size_t>(rows.row) * sizeof(int32_t));
  for (int64_t i = 0; i < rows.row; ++i) choice[i] = static_cast<int32_t>(begin);
  for (int64_t r = begin + 1; r < end; ++r) {
    const int32_t* __restrict other = rows.ring_row(r);
    for (int64_t i = 0; i < rows.row; ++i) {
      choice[i] = other[i] > best[i] ? static_cast<int32_t>(r) : choice[i];
      best[i] = greater(best[i], other[i]);
    }
  }
  for (int64_t r = begin; r < end; ++r) {
    float* __restrict to = rows.grads_row(r);
    for (int64_t i = 0; i < rows.row; ++i) {
      to[i] += choice[i] == static_cast<int32_t>(r) ? grad[i] : 0.0f;
    }
  }
}

// dx of row r, once all its maxima have their gradients.
inline void input_row(const Pool& p, const Image& image, const PoolRows& rows, int64_t r) {
  const int64_t columns = p.shape.width, begin = r * columns;
  const float* __restrict grad = rows.grads_row(r);
  const int32_t* __restrict place = rows.places_row(r);
  std::memset(rows.padded, 0, static_cast<size_t>(rows.row + 4 * rows.width) * sizeof(float));
  for (int32_t k = 0; k < 5; ++k) {
    float* __restrict to = rows.padded + k * rows.width;
    for (int64_t i = 0; i < rows.row; ++i) to[i] += place[i] == k ? grad[i] : 0.0f;
  }
  float* __restrict dx = rows.padded + 2 * rows.width;
  if (p.dactive.data) {
    load(p.dactive, image, begin, columns, rows.x);
    for (int64_t i = 0; i < rows.row; ++i) dx[i] += rows.x[i];
  }
  load(p.x, image, begin, columns, rows.x);
  multiply_slope(p.activation, rows.x, dx, rows.row);
  save(p.dx, image, begin, columns, dx);
}

// Items are images.
inline void max_pool5_backward(const Pool& p, int64_t first, int64_t last, float* scratch) {
  const int64_t height = p.shape.height;
  for (int64_t item = first; item < last; ++item) {
    const Image image = image_of(item, p.shape, p.x.last);
    const PoolRows rows(p, image, scratch);
    for (int64_t r = 0; r < height + 4; ++r) {
      if (r < height) {
        load_keys(p, image, rows, r);
        first_maxima(rows, rows.ring_row(r), rows.places_row(r));
        std::memset(rows.grads_row(r), 0, static_cast<size_t>(rows.row) * sizeof(float));
      }
      if (r >= 2 && r - 2 < height) spread_rows(p, image, rows, r - 2);
      if (r >= 4) input_row(p, image, rows, r - 4);
    }
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
