// Counter-based noise: Philox4x32-10 and Box-Muller as defined in ncsn_fast/noise.py.

namespace ncsn_fast {
namespace CAPABILITY {

constexpr int64_t BLOCKS = 64;  // made at once; each gives the normals of four elements

struct Counters {
  uint32_t word[4][BLOCKS];
};

// Counters become words.
NCSN_FAST_SHARED void philox4x32(Counters& counters, uint64_t seed) {
  for (int64_t i = 0; i < BLOCKS; ++i) {
    uint32_t c0 = counters.word[0][i], c1 = counters.word[1][i];
    uint32_t c2 = counters.word[2][i], c3 = counters.word[3][i];
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
      const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<uint32_t>(p1);
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    counters.word[0][i] = c0;
    counters.word[1][i] = c1;
    counters.word[2][i] = c2;
    counters.word[3][i] = c3;
  }
}

inline void box_muller(uint32_t radius_word, uint32_t angle_word, float* z0, float* z1) {
  const float radius = __builtin_sqrtf(minus_two_log(radius_word));
  float cosine, sine;
  cos_sin(angle_word, &cosine, &sine);
  *z0 = radius * cosine;
  *z1 = radius * sine;
}

NCSN_FAST_SHARED void normals_of(const Counters& words, float* __restrict z) {
  for (int64_t i = 0; i < BLOCKS; ++i) {
    box_muller(words.word[0][i], words.word[1][i], z + 4 * i, z + 4 * i + 1);
    box_muller(words.word[2][i], words.word[3][i], z + 4 * i + 2, z + 4 * i + 3);
  }
}

// Elements of one sample that are drawn together, at `begin` among those of all blocks.
struct Run {
  int64_t begin, count;
};

// Where drawing has got to within a batch.
struct Position {
  int64_t sample, element;
};

// Counters for as many as possible of the next `count` elements of a batch; how many runs they are.
inline int64_t fill(const Noise& noise, Position& at, int64_t count, Counters& counters, Run* runs) {
  int64_t used = 0, parts = 0;
  while (used < BLOCKS && count > 0) {
    const int64_t skip = at.element % 4;
    const int64_t room = smaller(count, 4 * (BLOCKS - used) - skip);
    const int64_t run = smaller(noise.elements - at.element, room);
    const int64_t blocks = (skip + run + 3) / 4;
    const uint64_t id = static_cast<uint64_t>(noise.sample_ids[at.sample]);
    const uint32_t low = static_cast<uint32_t>(id), block = static_cast<uint32_t>(at.element / 4);
    const uint32_t high = (static_cast<uint32_t>(id >> 32) & 0xffff) | (noise.stream << 16);
    for (int64_t i = 0; i < blocks; ++i) {
      counters.word[0][used + i] = block + static_cast<uint32_t>(i);
      counters.word[1][used + i] = noise.step;
      counters.word[2][used + i] = low;
      counters.word[3][used + i] = high;
    }
    runs[parts++] = {4 * used + skip, run};
    used += blocks;
    count -= run;
    at.element += run;
    if (at.element == noise.elements) at = {at.sample + 1, 0};
  }
  return parts;
}

NCSN_FAST_SHARED void uniforms_of(const Counters& words, float* __restrict u) {
  for (int64_t i = 0; i < BLOCKS; ++i) {
    for (int64_t lane = 0; lane < 4; ++lane) {
      // The largest words round to 1; a uniform stays below it.
      const float value = (static_cast<float>(words.word[lane][i]) + 0.5f) * 0x1p-32f;
      u[4 * i + lane] = value < 1.0f ? value : 1.0f - 0x1p-24f;
    }
  }
}

// What `of` makes of the words, for the elements from `first` on of a whole batch in (N, C, H, W)
// order.
template <class Of>
inline void drawn(
    const Noise& noise, int64_t first, int64_t count, float* __restrict z, const Of& of) {
  Position at = {first / noise.elements, first % noise.elements};
  Run runs[BLOCKS];
  alignas(64) float buffer[4 * BLOCKS + 4] = {};
  while (count > 0) {
    Counters counters = {};
    const int64_t parts = fill(noise, at, count, counters, runs);
    philox4x32(counters, noise.seed);
    of(counters, buffer);
    for (int64_t i = 0; i < parts; ++i) {
      const float* from = buffer + runs[i].begin;
      if (runs[i].count <= 4 && count >= 4) {  // a point: what is beyond it is written over
        std::memcpy(z, from, 4 * sizeof *z);
      } else {
        for (int64_t j = 0; j < runs[i].count; ++j) z[j] = from[j];
      }
      z += runs[i].count;
      count -= runs[i].count;
    }
  }
}

NCSN_FAST_SHARED void normals(const Noise& noise, int64_t first, int64_t count, float* z) {
  drawn(noise, first, count, z, normals_of);
}

inline void normal(const Noise& noise, float* out, int64_t first, int64_t count) {
  normals(noise, first, count, out + first);
}

inline void uniform(const Noise& noise, float* out, int64_t first, int64_t count) {
  drawn(noise, first, count, out + first, uniforms_of);
}

inline void words(uint64_t seed, const uint32_t* counters, uint32_t* out, int64_t count) {
  for (int64_t first = 0; first < count; first += BLOCKS) {
    Counters block = {};
    const int64_t used = smaller(BLOCKS, count - first);
    for (int64_t i = 0; i < 4 * used; ++i) block.word[i % 4][i / 4] = counters[4 * first + i];
    philox4x32(block, seed);
    for (int64_t i = 0; i < 4 * used; ++i) out[4 * first + i] = block.word[i % 4][i / 4];
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
