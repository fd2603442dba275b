// Quantized weights as the register tiles read them: where codes and scales of a panel of 32 outputs lie, and
// panels of codes unpacked to float32 or bfloat16, exactly for int8, rounded to the type for nf4.
#pragma once
#include "gemm.h"

namespace rlv {
namespace RLV_ISA {

constexpr uint32_t kBlock = RLV_QUANT_BLOCK;

constexpr float kNf4[16] = {RLV_NF4_CODES};

// code[c] as a product over elements of T sees it.
template <class T>
inline float nf4_code(uint32_t c);
template <>
inline float nf4_code<float>(uint32_t c) {
  return kNf4[c];
}
template <>
inline float nf4_code<uint16_t>(uint32_t c) {
  return bf16_to_f32(f32_to_bf16(kNf4[c]));
}

struct Int8 {
  using Code = int8_t;
  static constexpr bool kBlocks = false;  // scales by block of k
  static size_t panel_codes(uint32_t k) { return size_t((k + 1) / 2) * 2 * kPanel; }
  static size_t panel_scales(uint32_t) { return kPanel; }
  static size_t codes_at(uint32_t k0) { return size_t(k0) * kPanel; }
  template <class T>
  static float value(const Code* panel, uint32_t lane, uint32_t k) {
    return float(panel[(size_t(k / 2) * kPanel + lane) * 2 + k % 2]);
  }
};

struct Nf4 {
  using Code = uint16_t;
  static constexpr bool kBlocks = true;
  static size_t panel_codes(uint32_t k) { return size_t(k / 4) * kPanel; }
  static size_t panel_scales(uint32_t k) { return size_t(k / kBlock) * kPanel; }
  static size_t codes_at(uint32_t k0) { return size_t(k0 / 4) * kPanel; }
  template <class T>
  static float value(const Code* panel, uint32_t lane, uint32_t k) {
    const uint32_t word = panel[(size_t(k / 8) * kPanel + lane) * 2 + k % 2];
    return nf4_code<T>(word >> (k % 8 / 2 * 4) & 15u);
  }
};

// Codes of one matrix.
template <class Q>
struct Quantized {
  const typename Q::Code* codes;
  const float* scales;
  uint32_t k;
  Quantized(const void* c, const void* s, uint32_t depth)
      : codes(static_cast<const typename Q::Code*>(c)), scales(static_cast<const float*>(s)), k(depth) {}
  const typename Q::Code* panel(uint32_t p) const { return codes + p * Q::panel_codes(k); }
  // The 32 scales of columns k0... of panel p.
  const float* scale(uint32_t p, uint32_t k0) const {
    return scales + p * Q::panel_scales(k) + (Q::kBlocks ? size_t(k0 / kBlock) * kPanel : 0);
  }
};

// code[c] for the nibbles at bit `shift` of W 32-bit words.
template <class T>
struct Nf4Table {
#if defined(__AVX512F__)
  V codes;
  Nf4Table() {
    float f[16];
    for (uint32_t i = 0; i < 16; i++) f[i] = nf4_code<T>(i);
    codes = load(f);
  }
  V at(P words, uint32_t shift) const {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(words, shift), codes);  // looks at four bits
  }
#elif defined(__AVX2__)
  V low, high;
  Nf4Table() {
    float f[16];
    for (uint32_t i = 0; i < 16; i++) f[i] = nf4_code<T>(i);
    low = load(f);
    high = load(f + 8);
  }
  V at(P words, uint32_t shift) const {
    const P index = _mm256_srli_epi32(words, int(shift));  // looked up by three bits, chosen by the fourth
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index),
                            _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
  }
#else
  float codes[16];
  Nf4Table() {
    for (uint32_t i = 0; i < 16; i++) codes[i] = nf4_code<T>(i);
  }
  V at(P words, uint32_t shift) const {
    float f[W];
    for (int i = 0; i < W; i++) f[i] = codes[words[i] >> shift & 15u];
    return load(f);
  }
#endif
};

// Pairs of bfloat16 from float32 values that are bfloat16 already.
inline void store_pairs(uint16_t* p, V low, V high) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(
      p, _mm512_or_si512(_mm512_castps_si512(high), _mm512_srli_epi32(_mm512_castps_si512(low), 16)));
#elif defined(__AVX2__)
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(p),
      _mm256_or_si256(_mm256_castps_si256(high), _mm256_srli_epi32(_mm256_castps_si256(low), 16)));
#else
  const P pairs = (P)high | ((P)low >> 16);
  std::memcpy(p, &pairs, 16);
#endif
}

// `depth` columns of a panel from the first of `codes` on, in the packed layout of T.
inline void unpack_codes(Int8, const int8_t* codes, uint32_t depth, float* out) {
  for (uint32_t p = 0; p < depth; p++)
    for (uint32_t lane = 0; lane < kPanel; lane++)
      out[p * kPanel + lane] = float(codes[(p / 2 * kPanel + lane) * 2 + p % 2]);
}
inline void unpack_codes(Int8, const int8_t* codes, uint32_t depth, uint16_t* out) {
  const uint32_t n = (depth + 1) / 2 * 2 * kPanel;
  for (uint32_t i = 0; i < n; i++) {
    const float f = float(codes[i]);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    out[i] = uint16_t(bits >> 16);
  }
}
inline void unpack_codes(Nf4, const uint16_t* codes, uint32_t depth, float* out) {
  const Nf4Table<float> table;
  for (uint32_t b = 0; b < depth / 8; b++)
    for (uint32_t lane = 0; lane < kPanel; lane += W) {
      const P words = load_pairs(codes + (b * kPanel + lane) * 2);
      for (uint32_t j = 0; j < 8; j++)
        store(out + (b * 8 + j) * kPanel + lane, table.at(words, j / 2 * 4 + j % 2 * 16));
    }
}
inline void unpack_codes(Nf4, const uint16_t* codes, uint32_t depth, uint16_t* out) {
#if defined(__AVX512BW__)
  uint16_t t[32];
  for (uint32_t i = 0; i < 32; i++) t[i] = f32_to_bf16(kNf4[i % 16]);
  const __m512i table = _mm512_loadu_si512(t);
  for (uint32_t b = 0; b < depth / 8; b++)
    for (uint32_t lane = 0; lane < kPanel; lane += W) {
      const P words = load_pairs(codes + (b * kPanel + lane) * 2);
      for (uint32_t s = 0; s < 4; s++)
        _mm512_storeu_si512(out + ((b * 4 + s) * kPanel + lane) * 2,
                            _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * s), table));
    }
#else
  const Nf4Table<uint16_t> table;
  for (uint32_t b = 0; b < depth / 8; b++)
    for (uint32_t lane = 0; lane < kPanel; lane += W) {
      const P words = load_pairs(codes + (b * kPanel + lane) * 2);
      for (uint32_t s = 0; s < 4; s++)
        store_pairs(out + ((b * 4 + s) * kPanel + lane) * 2, table.at(words, 4 * s),
                    table.at(words, 4 * s + 16));
    }
#endif
}

}  // namespace RLV_ISA
}  // namespace rlv
