// Philox4x32-10 (Salmon et al., SC 2011).
#pragma once
#include <cstdint>

namespace rlv {
namespace ref {

struct PhiloxBlock {
  uint32_t w[4];
};
// The block of one counter.
inline PhiloxBlock philox_block(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2,
                                uint32_t c3) {
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = 0xd2511f53ull * c0, p1 = 0xcd9e8d57ull * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ key0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ key1;
    c3 = uint32_t(p0);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}
// Its word 0.
inline uint32_t philox_word(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2,
                            uint32_t c3) {
  return philox_block(key0, key1, c0, c1, c2, c3).w[0];
}

// Uniform in (0, 1).
inline double uniform(uint32_t word) { return (double(word) + 0.5) / 4294967296.0; }

}  // namespace ref
}  // namespace rlv
