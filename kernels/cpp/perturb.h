// The training perturbation x + σ·z.

namespace ncsn_fast {
namespace CAPABILITY {

// Items are tiles.
inline void perturb(const Perturb& p, int64_t first, int64_t last) {
  alignas(64) float z[TILE];
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * TILE, count = smaller(TILE, p.shape.total() - begin);
    normals(p.noise, begin, count, z);
    by_samples(p.shape, begin, count, [&](int64_t sample, int64_t done, int64_t run) {
      const float* x = p.x + begin + done;
      float* __restrict out = p.out + begin + done;
      const float sigma = p.sigma[sample];
      for (int64_t i = 0; i < run; ++i) out[i] = x[i] + sigma * z[done + i];
    });
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
