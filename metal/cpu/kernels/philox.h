// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a draw is a pure
// function of key and counter. src/core/rng.ts is the same function in TypeScript.
#pragma once
#include <cstdint>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
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

// Counters side by side in 64-bit lanes, and the full product of their low halves with a word. Compilers do
// not find the 32x32 multiply by themselves.
#if defined(__AVX512F__)
constexpr int kPhiloxLanes = 8;
typedef uint64_t PhiloxLanes __attribute__((vector_size(64)));
inline PhiloxLanes mul_low(PhiloxLanes a, uint32_t m) {
  return (PhiloxLanes)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
}
#elif defined(__AVX2__)
constexpr int kPhiloxLanes = 4;
typedef uint64_t PhiloxLanes __attribute__((vector_size(32)));
inline PhiloxLanes mul_low(PhiloxLanes a, uint32_t m) {
  return (PhiloxLanes)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
}
#else
constexpr int kPhiloxLanes = 2;
typedef uint64_t PhiloxLanes __attribute__((vector_size(16)));
inline PhiloxLanes mul_low(PhiloxLanes a, uint32_t m) {
#if defined(__SSE2__)
  return (PhiloxLanes)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#else
  return PhiloxLanes{(a[0] & 0xffffffffu) * m, (a[1] & 0xffffffffu) * m};
#endif
}
#endif

// The high halves of lanes collect rubbish that no multiplication reads.
inline void philox_lanes(PhiloxLanes& x0, PhiloxLanes& x1, PhiloxLanes& x2, PhiloxLanes& x3, uint32_t k0,
                         uint32_t k1) {
  for (int round = 0; round < 10; round++) {
    const PhiloxLanes p0 = mul_low(x0, 0xd2511f53u), p1 = mul_low(x2, 0xcd9e8d57u);
    x0 = (p1 >> 32) ^ x1 ^ k0;
    x1 = p1;
    x2 = (p0 >> 32) ^ x3 ^ k1;
    x3 = p0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
}
inline void store_low(uint32_t* out, PhiloxLanes x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi64_epi32((__m512i)x));
#else
  for (int j = 0; j < kPhiloxLanes; j++) out[j] = uint32_t(x[j]);
#endif
}

// Words of N consecutive counters (first + i, c1, c2, c3), N a multiple of 8: out[w * stride + i] is word
// w < words.
template <int N, int words>
inline void philox_rows(uint32_t* out, int stride, uint32_t key0, uint32_t key1, uint32_t first, uint32_t c1,
                        uint32_t c2, uint32_t c3) {
  const PhiloxLanes none = {};
  PhiloxLanes steps;
  for (int j = 0; j < kPhiloxLanes; j++) steps[j] = uint64_t(j);
  for (int i = 0; i < N; i += kPhiloxLanes) {
    PhiloxLanes x[4] = {none + (first + uint32_t(i)) + steps, none + c1, none + c2, none + c3};
    philox_lanes(x[0], x[1], x[2], x[3], key0, key1);
    for (int w = 0; w < words; w++) store_low(out + w * stride + i, x[w]);
  }
}
// Their first words.
template <int N>
inline void philox_row(uint32_t* out, uint32_t key0, uint32_t key1, uint32_t first, uint32_t c1, uint32_t c2,
                       uint32_t c3) {
  philox_rows<N, 1>(out, N, key0, key1, first, c1, c2, c3);
}

// Uniform in (0, 1): never 0 and never 1.
inline double philox_uniform(uint32_t word) { return (double(word) + 0.5) / 4294967296.0; }

}  // namespace RLV_ISA
}  // namespace rlv
