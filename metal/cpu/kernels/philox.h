// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a draw is a pure function
// of key and counter. src/core/rng.ts is the same function in TypeScript.
#pragma once
#include <cstdint>
#include "../vec.h"

namespace rlv {
namespace RLV_ISA {

struct PhiloxWords {
  uint32_t w[4];
};

inline PhiloxWords philox(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t(0xd2511f53u) * c0, p1 = uint64_t(0xcd9e8d57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ key0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ key1;
    c3 = uint32_t(p0);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

// The first words of N consecutive counters (first + i, c1, c2, c3), N a multiple of 8. Eight counters side by side
// in 64-bit lanes: a 32x32 multiply reads the low halves alone, so what the high halves collect does no harm.
template <int N>
inline void philox_row(uint32_t* out, uint32_t key0, uint32_t key1, uint32_t first, uint32_t c1, uint32_t c2,
                       uint32_t c3) {
  typedef uint64_t Lanes __attribute__((vector_size(64)));
  const Lanes none = {};
  const Lanes low = none + 0xffffffffu;
  for (int i = 0; i < N; i += 8) {
    Lanes x0 = none + (first + uint32_t(i)) + Lanes{0, 1, 2, 3, 4, 5, 6, 7};
    Lanes x1 = none + c1, x2 = none + c2, x3 = none + c3;
    uint32_t k0 = key0, k1 = key1;
    for (int round = 0; round < 10; round++) {
      const Lanes p0 = (x0 & low) * 0xd2511f53u, p1 = (x2 & low) * 0xcd9e8d57u;
      x0 = (p1 >> 32) ^ x1 ^ k0;
      x1 = p1;
      x2 = (p0 >> 32) ^ x3 ^ k1;
      x3 = p0;
      k0 += 0x9e3779b9u;
      k1 += 0xbb67ae85u;
    }
    for (int j = 0; j < 8; j++) out[i + j] = uint32_t(x0[j]);
  }
}

// Uniform in (0, 1): never 0 and never 1.
inline double philox_uniform(uint32_t word) { return (double(word) + 0.5) / 4294967296.0; }

}  // namespace RLV_ISA
}  // namespace rlv
