// x + residual and act(x + residual) in one pass.

namespace ncsn_fast {
namespace CAPABILITY {

// Items are tiles.
inline void residual_add(const Pointwise& p, int64_t first, int64_t last) {
  alignas(64) float total[TILE], residual[TILE];
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * TILE, count = smaller(TILE, p.total - begin);
    load(p.x, begin, count, total);
    load(p.other, begin, count, residual);
    for (int64_t i = 0; i < count; ++i) total[i] += residual[i];
    save(p.out, begin, count, total);
    if (p.active.data) {
      round_to(p.out, total, count);
      activate_all(p.activation, total, count);
      save(p.active, begin, count, total);
    }
  }
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
