// Denoising score matching per sample, ½ w Σ (n + z)², and its gradient g·w·(n + z).
//
// A sample's sum is made of chunks that begin with the sample, each summed in a fixed order: it
// depends neither on the batch nor on the threads.

namespace ncsn_fast {
namespace CAPABILITY {

inline double sum_of_squares(const float* values, int64_t count) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (int64_t j = 0; j < 16; ++j) lanes[j] += values[i + j] * values[i + j];
  }
  double sum = 0.0;
  for (int64_t j = 0; j < 16; ++j) sum += lanes[j];
  for (; i < count; ++i) sum += values[i] * values[i];
  return sum;
}

inline void loss_range(const Loss& l, int64_t first, int64_t count) {
  alignas(64) float d[CHUNK], z[CHUNK];
  normals(l.noise, first, count, z);
  load(l.n, l.shape, first, count, d);
  for (int64_t i = 0; i < count; ++i) d[i] += z[i];
  by_samples(l.shape, first, count, [&](int64_t sample, int64_t done, int64_t run) {
    const float weight = l.weight ? l.weight[sample] : 1.0f;
    if (l.partial) {
      const int64_t chunk = (first + done - sample * l.shape.elements()) / CHUNK;
      const double sum = sum_of_squares(d + done, run);
      l.partial[sample * l.chunks_of_sample() + chunk] = 0.5 * weight * sum;
    }
    if (l.gradient.data) {
      const float scale = l.upstream[sample] * weight;
      for (int64_t i = 0; i < run; ++i) d[done + i] *= scale;
    }
  });
  if (l.gradient.data) save(l.gradient, l.shape, first, count, d);
}

inline void dsm_loss(const Loss& l, int64_t first, int64_t last) {
  const int64_t elements = l.shape.elements();
  for (int64_t item = first; item < last; ++item) {
    if (elements > CHUNK) {
      const int64_t chunks = l.chunks_of_sample(), begin = item % chunks * CHUNK;
      loss_range(l, item / chunks * elements + begin, smaller(CHUNK, elements - begin));
    } else {
      const int64_t begin = item * l.samples_of_chunk();
      const int64_t samples = smaller(l.samples_of_chunk(), l.shape.samples - begin);
      loss_range(l, begin * elements, samples * elements);
    }
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
