// Moving tiles between memory, in float32 or bfloat16 and either memory format, and float buffers.

namespace ncsn_fast {
namespace CAPABILITY {

template <class T>
inline void read(const T* from, int64_t count, float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}

template <class T>
inline void write(const float* __restrict from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) store(to + i, from[i]);
}

// to[i] = f(from[i]), read, computed and written in one loop.
template <class F>
inline void map(const float* __restrict from, int64_t count, float* __restrict to, F f) {
  for (int64_t i = 0; i < count; ++i) to[i] = f(from[i]);
}

template <class F>
inline void map(const BFloat16* __restrict from, int64_t count, BFloat16* __restrict to, F f) {
  NCSN_FAST_LOOP
  for (int64_t i = 0; i < count / 2; ++i) {
    const uint32_t pair = pair_at(from + 2 * i);
    put_pair(to + 2 * i, pair_of(rounded(f(low_of(pair))), rounded(f(high_of(pair)))));
  }
  if (count % 2) store(to + count - 1, f(widen(from[count - 1])));
}

// LANES channels of a pixel: to[j] = f(place, from[j]), where place(j) of what belongs to a channel
// lets both halves of the pairs find theirs side by side.
template <class T>
constexpr int64_t place(int64_t lane) {
  return std::is_same_v<T, float> ? lane : lane / 2 + lane % 2 * (LANES / 2);
}

template <class F>
inline void each_lane(const float* from, F f) {
  for (int64_t j = 0; j < LANES; ++j) f(j, from[j]);
}

template <class F>
inline void each_lane(const BFloat16* from, F f) {
  NCSN_FAST_LOOP
  for (int64_t j = 0; j < LANES / 2; ++j) f(j, low_of(pair_at(from + 2 * j)));
  NCSN_FAST_LOOP
  for (int64_t j = 0; j < LANES / 2; ++j) f(j + LANES / 2, high_of(pair_at(from + 2 * j)));
}

template <class F>
inline void map_lanes(const float* __restrict from, float* __restrict to, F f) {
  for (int64_t j = 0; j < LANES; ++j) to[j] = f(j, from[j]);
}

template <class F>
inline void map_lanes(const BFloat16* __restrict from, BFloat16* __restrict to, F f) {
  NCSN_FAST_LOOP
  for (int64_t j = 0; j < LANES / 2; ++j) {
    const uint32_t pair = pair_at(from + 2 * j);
    const float low = f(j, low_of(pair)), high = f(j + LANES / 2, high_of(pair));
    put_pair(to + 2 * j, pair_of(rounded(low), rounded(high)));
  }
}

// Calls run(data) with an array's data as what it holds.
template <class Run>
inline void by_type(const Array& array, Run run) {
  if (array.bf16) {
    run(static_cast<BFloat16*>(array.data));
  } else {
    run(static_cast<float*>(array.data));
  }
}

// Elements that lie one after the other.
NCSN_FAST_SHARED void load(const Array& array, int64_t first, int64_t count, float* to) {
  if (array.bf16) {
    read(static_cast<const BFloat16*>(array.data) + first, count, to);
  } else {
    read(static_cast<const float*>(array.data) + first, count, to);
  }
}

NCSN_FAST_SHARED void save(const Array& array, int64_t first, int64_t count, const float* from) {
  if (array.bf16) {
    write(from, count, static_cast<BFloat16*>(array.data) + first);
  } else {
    write(from, count, static_cast<float*>(array.data) + first);
  }
}

// Calls move(offset, done, count) for the parts of a range in (N, C, H, W) order that lie in one
// plane of a channels_last batch, where neighbours are C apart.
template <class Move>
inline void by_planes(const Shape& shape, int64_t first, int64_t count, Move move) {
  const int64_t pixels = shape.pixels(), channels = shape.channels;
  int64_t plane = first / pixels, pixel = first % pixels;
  for (int64_t done = 0; done < count; ++plane, pixel = 0) {
    const int64_t run = smaller(pixels - pixel, count - done);
    move((plane / channels * pixels + pixel) * channels + plane % channels, done, run);
    done += run;
  }
}

template <class T>
inline void gather(const T* data, const Shape& shape, int64_t first, int64_t count, float* to) {
  by_planes(shape, first, count, [&](int64_t offset, int64_t done, int64_t run) {
    for (int64_t i = 0; i < run; ++i) to[done + i] = widen(data[offset + i * shape.channels]);
  });
}

template <class T>
inline void scatter(T* data, const Shape& shape, int64_t first, int64_t count, const float* from) {
  by_planes(shape, first, count, [&](int64_t offset, int64_t done, int64_t run) {
    for (int64_t i = 0; i < run; ++i) store(data + offset + i * shape.channels, from[done + i]);
  });
}

// Elements from `first` on of a batch in (N, C, H, W) order, wherever they lie.
NCSN_FAST_SHARED void load(const Array& array, const Shape& shape, int64_t first, int64_t count, float* to) {
  if (!array.last) {
    load(array, first, count, to);
  } else if (array.bf16) {
    gather(static_cast<const BFloat16*>(array.data), shape, first, count, to);
  } else {
    gather(static_cast<const float*>(array.data), shape, first, count, to);
  }
}

NCSN_FAST_SHARED void save(
    const Array& array, const Shape& shape, int64_t first, int64_t count, const float* from) {
  if (!array.last) {
    save(array, first, count, from);
  } else if (array.bf16) {
    scatter(static_cast<BFloat16*>(array.data), shape, first, count, from);
  } else {
    scatter(static_cast<float*>(array.data), shape, first, count, from);
  }
}

// Calls each(sample, done, count) for the parts of a range that belong to one sample.
template <class Each>
inline void by_samples(const Shape& shape, int64_t first, int64_t count, Each each) {
  const int64_t elements = shape.elements();
  for (int64_t done = 0; done < count;) {
    const int64_t sample = (first + done) / elements;
    const int64_t run = smaller((sample + 1) * elements - first - done, count - done);
    each(sample, done, run);
    done += run;
  }
}

// Channels of an image that are worked on together: one plane, or `width` ≤ LANES of a
// channels_last image, of which pixels are `stride` apart.
struct Image {
  int64_t offset, stride, width;
};

inline Image image_of(int64_t item, const Shape& shape, bool last) {
  if (!last) return {item * shape.pixels(), 1, 1};
  const int64_t groups = (shape.channels + LANES - 1) / LANES;
  const int64_t sample = item / groups, channel = item % groups * LANES;
  return {
      sample * shape.elements() + channel, shape.channels,
      smaller(LANES, shape.channels - channel)};
}

// Calls each(offset, done, count) for the parts of an image's pixels that lie in one piece.
template <class Each>
inline void by_pixels(const Image& image, int64_t pixels, Each each) {
  if (image.width == LANES) {  // the usual case, with a length that the compiler knows
    for (int64_t p = 0; p < pixels; ++p) each(p * image.stride, p * LANES, LANES);
  } else if (image.width == image.stride) {
    each(0, 0, pixels * image.width);
  } else {
    for (int64_t p = 0; p < pixels; ++p) each(p * image.stride, p * image.width, image.width);
  }
}

template <class T>
inline void read_pixels(const T* from, const Image& image, int64_t pixels, float* __restrict to) {
  by_pixels(image, pixels, [&](int64_t offset, int64_t done, int64_t count) {
    read(from + offset, count, to + done);
  });
}

template <class T>
inline void write_pixels(const float* __restrict from, const Image& image, int64_t pixels, T* to) {
  by_pixels(image, pixels, [&](int64_t offset, int64_t done, int64_t count) {
    write(from + done, count, to + offset);
  });
}

// Pixels from `first` on of an image, as rows of image.width.
NCSN_FAST_SHARED void load(const Array& array, const Image& image, int64_t first, int64_t pixels, float* to) {
  const int64_t offset = image.offset + first * image.stride;
  if (array.bf16) {
    read_pixels(static_cast<const BFloat16*>(array.data) + offset, image, pixels, to);
  } else {
    read_pixels(static_cast<const float*>(array.data) + offset, image, pixels, to);
  }
}

NCSN_FAST_SHARED void save(
    const Array& array, const Image& image, int64_t first, int64_t pixels, const float* from) {
  const int64_t offset = image.offset + first * image.stride;
  if (array.bf16) {
    write_pixels(from, image, pixels, static_cast<BFloat16*>(array.data) + offset);
  } else {
    write_pixels(from, image, pixels, static_cast<float*>(array.data) + offset);
  }
}

// As an array's type holds them.
NCSN_FAST_SHARED void round_to(const Array& array, float* values, int64_t count) {
  if (!array.bf16) return;
  for (int64_t i = 0; i < count; ++i) {
    BFloat16 rounded;
    store(&rounded, values[i]);
    values[i] = widen(rounded);
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
