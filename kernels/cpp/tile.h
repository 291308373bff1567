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

template <class T>
inline void read_pixels(const T* from, const Image& image, int64_t pixels, float* __restrict to) {
  if (image.width == LANES) {  // the usual case, with a length that the compiler knows
    for (int64_t p = 0; p < pixels; ++p) read(from + p * image.stride, LANES, to + p * LANES);
  } else if (image.width == image.stride) {
    read(from, pixels * image.width, to);
  } else {
    for (int64_t p = 0; p < pixels; ++p) {
      read(from + p * image.stride, image.width, to + p * image.width);
    }
  }
}

template <class T>
inline void write_pixels(const float* __restrict from, const Image& image, int64_t pixels, T* to) {
  if (image.width == LANES) {
    for (int64_t p = 0; p < pixels; ++p) write(from + p * LANES, LANES, to + p * image.stride);
  } else if (image.width == image.stride) {
    write(from, pixels * image.width, to);
  } else {
    for (int64_t p = 0; p < pixels; ++p) {
      write(from + p * image.width, image.width, to + p * image.stride);
    }
  }
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
