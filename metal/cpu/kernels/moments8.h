// Moments of 8 bits: floats relative to the largest of their block, which is kept as its float32 scale. The
// codes and why they are so: src/ops/optimizer.ts. Loops without branches, so that they vectorise.
#pragma once
#include <cstdint>
#include <cstring>
#include "args.gen.hpp"
#include "philox.h"

namespace rlv {
namespace RLV_ISA {

inline uint32_t bits_of(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// Key and step of the random bits that round moments.
struct Rounding {
  uint32_t seed, tensor, step;
};

constexpr int kMoments = RLV_MOMENT_BLOCK;
constexpr int kCodeShift = 20;                                  // three bits of mantissa stay
constexpr int32_t kOneBits = 0x3f800000;                        // 1 has the largest code
constexpr int32_t kFirstZero = kOneBits - (127 << kCodeShift);  // where code 0 would be
constexpr int32_t kSecondZero = kOneBits - (255 << kCodeShift);
constexpr int32_t kFirstLeast = kFirstZero + (1 << kCodeShift);  // code 1: 1.25 * 2^-16
constexpr float kPerFirstLeast = 0.8f * 4294967296.0f;           // 2^16 / (1.25 * 2^-16)
constexpr float kLeastScale = 0x1p-90f, kLargestMoment = 0x1p126f;

// Word i holds 16 bits for m above 16 bits for v of element `block` + i. Part `at` of four.
inline void moment_words(uint32_t* out, const Rounding& key, uint32_t block, int at) {
  constexpr int kPart = kMoments / 16;
  philox_rows<kPart, 4>(out + at * kPart, kMoments / 4, key.seed, key.tensor,
                        block / 4 + uint32_t(at * kPart), key.step, 2, 0);
}

#if defined(__AVX512F__)
inline __m512i load_codes(const uint8_t* codes) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
}
inline void store_codes(uint8_t* codes, __m512i k) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(k));
}
// A value relative to the scale as bits, at most those of 1.
inline __m512i part_bits(V size, V inverse) { return _mm512_castps_si512(vmin(mul(size, inverse), set1(1))); }
// Bits above the place `origin` of code 0, rounded by `noise` (16 bits of it) to codes.
inline __m512i code_of(__m512i bits, __m512i noise, int32_t origin) {
  const __m512i moved = _mm512_add_epi32(_mm512_slli_epi32(noise, 4), _mm512_set1_epi32(8 - origin));
  return _mm512_srai_epi32(_mm512_add_epi32(bits, moved), kCodeShift);
}
inline V value_of(__m512i k, int32_t origin) {
  const __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(k, kCodeShift), _mm512_set1_epi32(origin));
  return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(_mm512_test_epi32_mask(k, k), bits));
}
#endif

template <int N>
inline void decode_first(float* out, const uint8_t* codes, float scale) {
#if defined(__AVX512F__)
  for (int i = 0; i < N; i += W) {
    const __m512i code = load_codes(codes + i);
    const V size = value_of(_mm512_and_si512(code, _mm512_set1_epi32(127)), kFirstZero);
    const __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(code, 7), 31);
    store(out + i, mul(_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(size), sign)), set1(scale)));
  }
#else
  for (int i = 0; i < N; i++) {
    const uint32_t code = codes[i], k = code & 127;
    const uint32_t bits = uint32_t(kFirstZero) + (k << kCodeShift);
    out[i] = float_of((k ? bits : 0) | (code >> 7 << 31)) * scale;
  }
#endif
}
template <int N>
inline void decode_second(float* out, const uint8_t* codes, float scale) {
#if defined(__AVX512F__)
  for (int i = 0; i < N; i += W)
    store(out + i, mul(value_of(load_codes(codes + i), kSecondZero), set1(scale)));
#else
  for (int i = 0; i < N; i++) {
    const uint32_t k = codes[i], bits = uint32_t(kSecondZero) + (k << kCodeShift);
    out[i] = float_of(k ? bits : 0) * scale;
  }
#endif
}

// The largest size, cut to what a scale may be.
inline float largest_of(const float* x) {
  V most[4] = {zero(), zero(), zero(), zero()};
  const V zeros = zero();
  for (int i = 0; i < kMoments; i += 4 * W)
    for (int j = 0; j < 4; j++) {
      const V each = load(x + i + j * W);
      most[j] = vmax(most[j], vmax(each, sub(zeros, each)));
    }
  float lanes[W], largest = 0;
  store(lanes, vmax(vmax(most[0], most[1]), vmax(most[2], most[3])));
  for (int i = 0; i < W; i++) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest < kLargestMoment ? largest : kLargestMoment;
}

// Both return the scale. A product with its inverse may miss 1 by some units of the last place: half of the
// 16 values that the random bits do not reach, added below them, brings it to code 1 and not beyond.
inline float encode_first(uint8_t* codes, const float* x, const uint32_t* random) {
  const float largest = largest_of(x), scale = largest < kLeastScale ? 0 : largest;
  const float inverse = scale > 0 ? 1 / scale : 0;
#if defined(__AVX512F__)
  for (int i = 0; i < kMoments; i += W) {
    const __m512i noise = _mm512_srli_epi32(_mm512_loadu_si512(random + i), 16);
    const __m512i value = _mm512_loadu_si512(x + i);
    const V size = _mm512_castsi512_ps(_mm512_and_si512(value, _mm512_set1_epi32(0x7fffffff)));
    const __m512i bits = part_bits(size, set1(inverse));
    const V chance = mul(_mm512_castsi512_ps(bits), set1(kPerFirstLeast));
    const V threshold = add(_mm512_cvtepi32_ps(noise), set1(0.5f));
    const __m512i least = _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(chance, threshold, _CMP_GT_OQ), 1);
    const __m512i k =
        _mm512_mask_mov_epi32(code_of(bits, noise, kFirstZero),
                              _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(kFirstLeast)), least);
    const __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(value, 31), 7);
    store_codes(codes + i, _mm512_mask_or_epi32(k, _mm512_test_epi32_mask(k, k), k, sign));
  }
#else
  for (int i = 0; i < kMoments; i++) {
    const int32_t noise = int32_t(random[i] >> 16);
    const uint32_t sign = bits_of(x[i]) >> 31;
    float part = float_of(bits_of(x[i]) & 0x7fffffffu) * inverse;
    part = part < 1 ? part : 1;
    const int32_t bits = int32_t(bits_of(part));
    const int32_t k = (bits - kFirstZero + (noise << 4) + 8) >> kCodeShift;
    const int32_t least = part * kPerFirstLeast > float(noise) + 0.5f ? 1 : 0;
    const uint32_t code = uint32_t(bits < kFirstLeast ? least : k);
    codes[i] = uint8_t(code | (code ? sign << 7 : 0));
  }
#endif
  return scale;
}
inline float encode_second(uint8_t* codes, const float* x, const uint32_t* random) {
  const float largest = largest_of(x);
  const float scale = largest == 0 ? 0 : largest < kLeastScale ? kLeastScale : largest;
  const float inverse = scale > 0 ? 1 / scale : 0;
#if defined(__AVX512F__)
  for (int i = 0; i < kMoments; i += W) {
    const __m512i noise = _mm512_and_si512(_mm512_loadu_si512(random + i), _mm512_set1_epi32(0xffff));
    const V value = load(x + i);
    const __m512i least = _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(value, zero(), _CMP_GT_OQ), 1);
    const __m512i k = code_of(part_bits(value, set1(inverse)), noise, kSecondZero);
    store_codes(codes + i, _mm512_max_epi32(k, least));
  }
#else
  for (int i = 0; i < kMoments; i++) {
    const int32_t noise = int32_t(random[i] & 0xffffu);
    float part = x[i] * inverse;
    part = part < 1 ? part : 1;
    const int32_t k = (int32_t(bits_of(part)) - kSecondZero + (noise << 4) + 8) >> kCodeShift;
    const int32_t least = x[i] > 0 ? 1 : 0;
    codes[i] = uint8_t(k > least ? k : least);
  }
#endif
  return scale;
}

}  // namespace RLV_ISA
}  // namespace rlv
