// The sampler update: x ← a·x + b·n + c·h + d·z + w·g, h ← e·x_old + f·n, next network input.
//
// Tiles are taken through the first cache, one term after another: the terms of a method cost a
// fraction of the noise, and no variant of the kernel has to be compiled for each of them.

namespace ncsn_fast {
namespace CAPABILITY {

inline void add(float* __restrict to, float factor, const float* terms, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * terms[i];
}

inline void impose(
    float* __restrict values, const bool* mask, const float* known, float sigma, const float* z,
    int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = mask[i] ? known[i] + sigma * z[i] : values[i];
}

inline void update_tile(const Update& u, int64_t first, int64_t count) {
  alignas(64) float now[TILE], n[TILE], z[TILE];
  const float* x = u.x + first;
  load(u.n, u.shape, first, count, n);
  for (int64_t i = 0; i < count; ++i) now[i] = u.a * x[i] + u.b * n[i];
  if (u.history) {
    const float* history = u.history + first;
    float* out = u.history_out + first;
    add(now, u.c, history, count);
    for (int64_t i = 0; i < count; ++i) out[i] = u.e * x[i] + u.f * n[i];
  }
  if (u.add_noise || u.z) {
    if (!u.z) normals(u.noise, first, count, z);
    add(now, u.d, u.z ? u.z + first : z, count);
  }
  if (u.guidance) add(now, u.w, u.guidance + first, count);
  if (u.mask) {
    normals(u.known_noise, first, count, z);
    impose(now, u.mask + first, u.known + first, u.next_sigma, z, count);
  }
  std::memcpy(u.x_out + first, now, static_cast<size_t>(count) * sizeof(float));
  if (u.input_out) {
    float* __restrict out = u.input_out + first;
    for (int64_t i = 0; i < count; ++i) out[i] = u.next_c_in * now[i];
  }
}

// Items are tiles.
inline void sampler_update(const Update& u, int64_t first, int64_t last) {
  for (int64_t tile = first; tile < last; ++tile) {
    update_tile(u, tile * TILE, smaller(TILE, u.shape.total() - tile * TILE));
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
