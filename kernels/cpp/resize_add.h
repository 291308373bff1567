// base + x resized to its size (bilinear, corners aligned), and the gradient of x.

namespace ncsn_fast {
namespace CAPABILITY {

// Row y of the resized image: between two rows of x first, then between their pixels.
inline void resize_row(
    const Resize& s, const Image& x, int64_t y, float* __restrict upper, float* __restrict lower,
    float* __restrict to) {
  const int64_t width = x.width;
  const float weight = s.rows.weight[y];
  load(s.x, x, s.rows.low[y] * s.width, s.width, upper);
  load(s.x, x, s.rows.high[y] * s.width, s.width, lower);
  for (int64_t i = 0; i < s.width * width; ++i) {
    upper[i] = (1.0f - weight) * upper[i] + weight * lower[i];
  }
  for (int64_t c = 0; c < s.shape.width; ++c) {
    const float right = s.columns.weight[c], left = 1.0f - right;
    const float* low = upper + s.columns.low[c] * width;
    const float* high = upper + s.columns.high[c] * width;
    for (int64_t j = 0; j < width; ++j) to[c * width + j] = left * low[j] + right * high[j];
  }
}

inline Shape coarse(const Resize& s) {
  return {s.shape.samples, s.shape.channels, s.height, s.width};
}

// Items are images.
inline void resize_add(const Resize& s, int64_t first, int64_t last, float* scratch) {
  const Shape of_x = coarse(s);
  const int64_t columns = s.shape.width;
  float *upper = scratch, *lower = upper + s.width * LANES, *row = lower + s.width * LANES;
  float* base = row + columns * LANES;
  for (int64_t item = first; item < last; ++item) {
    const Image x = image_of(item, of_x, s.x.last), out = image_of(item, s.shape, s.out.last);
    for (int64_t y = 0; y < s.shape.height; ++y) {
      resize_row(s, x, y, upper, lower, row);
      load(s.base, out, y * columns, columns, base);
      for (int64_t i = 0; i < columns * out.width; ++i) row[i] += base[i];
      save(s.out, out, y * columns, columns, row);
    }
  }
}

inline void add_to(float* __restrict to, float weight, const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += weight * values[i];
}

// Items are images; `base` holds the gradient of the result, `x` takes that of x.
inline void resize_backward(const Resize& s, int64_t first, int64_t last, float* scratch) {
  const Shape of_x = coarse(s);
  const int64_t columns = s.shape.width;
  float *image = scratch, *narrow = image + s.height * s.width * LANES;
  float* row = narrow + s.width * LANES;
  for (int64_t item = first; item < last; ++item) {
    const Image x = image_of(item, of_x, s.x.last), out = image_of(item, s.shape, s.base.last);
    const int64_t width = x.width, size = s.width * width;
    std::memset(image, 0, static_cast<size_t>(s.height * size) * sizeof(float));
    for (int64_t y = 0; y < s.shape.height; ++y) {
      load(s.base, out, y * columns, columns, row);
      std::memset(narrow, 0, static_cast<size_t>(size) * sizeof(float));
      for (int64_t c = 0; c < columns; ++c) {
        const float right = s.columns.weight[c];
        add_to(narrow + s.columns.low[c] * width, 1.0f - right, row + c * width, width);
        add_to(narrow + s.columns.high[c] * width, right, row + c * width, width);
      }
      const float below = s.rows.weight[y];
      add_to(image + s.rows.low[y] * size, 1.0f - below, narrow, size);
      add_to(image + s.rows.high[y] * size, below, narrow, size);
    }
    save(s.x, x, 0, s.height * s.width, image);
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
