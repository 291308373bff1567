// Fingerprints: 64 bits by which contents of memory are told apart, no defence against malice.

namespace ncsn_fast {
namespace CAPABILITY {

constexpr int64_t WORDS_AT_ONCE = 64;  // each has a state of its own, several registers in all

// A bijection of the state for every word and of the word for every state. The product carries
// changes to higher bits only, the rotation brings them down again.
inline uint64_t stirred(uint64_t state, uint64_t word) {
  state ^= word;
  return (state << 29 | state >> 35) * 0x9e3779b97f4a7c15u;
}

// Memory that differs in one word differs for certain in its fingerprint, which continues `state`.
inline uint64_t fingerprint(const unsigned char* bytes, int64_t count, uint64_t state) {
  alignas(64) uint64_t states[WORDS_AT_ONCE], words[WORDS_AT_ONCE];
  for (int64_t i = 0; i < WORDS_AT_ONCE; ++i) states[i] = stirred(state, static_cast<uint64_t>(i));
  for (; count > 0; count -= sizeof words, bytes += sizeof words) {
    const bool whole = count >= static_cast<int64_t>(sizeof words);
    if (!whole) std::memset(words, 0, sizeof words);
    std::memcpy(words, bytes, whole ? sizeof words : static_cast<size_t>(count));
    for (int64_t i = 0; i < WORDS_AT_ONCE; ++i) states[i] = stirred(states[i], words[i]);
  }
  for (const uint64_t one : states) state = stirred(state, one);
  return state;
}

}  // namespace CAPABILITY
}  // namespace ncsn_fast
