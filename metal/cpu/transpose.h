// Squares of W by W 32-bit words (a float32, or a pair of bfloat16) turned over in registers, and the
// conversions between rows of float32 and of bfloat16 that go with them.
#pragma once
#include "vec.h"

namespace rlv {
namespace RLV_ISA {

#if defined(__AVX512F__)
inline void transpose(P (&r)[W]) {
  P t[W];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) {
      r[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + j + 2]);
      r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + j + 2]);
    }
  for (int i = 0; i < 4; i++)
    for (int h = 0; h < 2; h++) {
      t[8 * h + i] = _mm512_shuffle_i32x4(r[8 * h + i], r[8 * h + i + 4], 0x88);
      t[8 * h + i + 4] = _mm512_shuffle_i32x4(r[8 * h + i], r[8 * h + i + 4], 0xdd);
    }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}
inline P load_words(const void* p) { return _mm512_loadu_si512(p); }
inline void store_words(void* p, P v) { _mm512_storeu_si512(p, v); }
// Past the caches; p is a multiple of the vector's size.
inline void stream_words(void* p, P v) { _mm512_stream_si512(static_cast<__m512i*>(p), v); }
inline void end_stream() { _mm_sfence(); }
#elif defined(__AVX2__)
inline void transpose(P (&r)[W]) {
  P t[W];
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) {
      r[4 * i + 2 * j] = _mm256_unpacklo_epi64(t[4 * i + j], t[4 * i + j + 2]);
      r[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(t[4 * i + j], t[4 * i + j + 2]);
    }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < W; i++) r[i] = t[i];
}
inline P load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_words(void* p, P v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline void stream_words(void* p, P v) { _mm256_stream_si256(static_cast<__m256i*>(p), v); }
inline void end_stream() { _mm_sfence(); }
#else
inline void transpose(P (&r)[W]) {
  const P a = r[0], b = r[1], c = r[2], d = r[3];
  for (int i = 0; i < W; i++) r[i] = P{a[i], b[i], c[i], d[i]};
}
inline P load_words(const void* p) {
  P v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_words(void* p, P v) { std::memcpy(p, &v, sizeof v); }
inline void stream_words(void* p, P v) { store_words(p, v); }
inline void end_stream() {}
#endif

// to[j][i] = from[i][j], W x W float32.
inline void transpose_block(const float* from, size_t ldf, float* to, size_t ldt) {
  P r[W];
  for (int i = 0; i < W; i++) r[i] = load_words(from + size_t(i) * ldf);
  transpose(r);
  for (int i = 0; i < W; i++) store_words(to + size_t(i) * ldt, r[i]);
}

// to[j][i] = rows[i][j] for i < 16, j < n words; `to` has lines of 16 words. A null row reads as zeros.
inline void transpose_rows(const void* const* rows, uint32_t n, void* to) {
  auto word = [](const void* p, size_t i) { return static_cast<const char*>(p) + 4 * i; };
  char* out = static_cast<char*>(to);
  uint32_t j = 0;
  for (; j + W <= n; j += W)
    for (int lane = 0; lane < 16; lane += W) {
      P r[W];
      for (int i = 0; i < W; i++) r[i] = rows[lane + i] ? load_words(word(rows[lane + i], j)) : set1_pair(0);
      transpose(r);
      for (int i = 0; i < W; i++) store_words(out + 4 * (size_t(j + uint32_t(i)) * 16 + size_t(lane)), r[i]);
    }
  for (; j < n; j++)
    for (size_t i = 0; i < 16; i++) {
      uint32_t value = 0;
      if (rows[i]) std::memcpy(&value, word(rows[i], j), 4);
      std::memcpy(out + 4 * (size_t(j) * 16 + i), &value, 4);
    }
}

// Sources: W words of a row from memory of any alignment, as they lie there or converted. kBytes: read for
// one word.
struct FromWords {
  static constexpr int kBytes = 4;
  static P load(const char* p) { return load_words(p); }
};

#if defined(__AVX512F__)
inline P join(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }
#endif

// float32 -> the high halves of its split into bfloat16 and remainder: ties go up, since to even would need
// a rest of +32768.
struct FromF32High {
  static constexpr int kBytes = 8;
  static P load(const char* p) {
#if defined(__AVX512F__)
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i a = _mm512_add_epi32(_mm512_loadu_si512(p), half);
    const __m512i b = _mm512_add_epi32(_mm512_loadu_si512(p + 64), half);
    return join(_mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16)),
                _mm512_cvtepi32_epi16(_mm512_srli_epi32(b, 16)));
#else
    uint32_t u[2 * W];
    uint16_t h[2 * W];
    std::memcpy(u, p, sizeof u);
    for (int i = 0; i < 2 * W; i++) h[i] = uint16_t((u[i] + 0x8000u) >> 16);
    return load_words(h);
#endif
  }
};

// float32 -> the remainders of that split: the low halves as they are, for the high half took their sign.
struct FromF32Low {
  static constexpr int kBytes = 8;
  static P load(const char* p) {
#if defined(__AVX512F__)
    return join(_mm512_cvtepi32_epi16(_mm512_loadu_si512(p)),
                _mm512_cvtepi32_epi16(_mm512_loadu_si512(p + 64)));
#else
    uint32_t u[2 * W];
    uint16_t l[2 * W];
    std::memcpy(u, p, sizeof u);
    for (int i = 0; i < 2 * W; i++) l[i] = uint16_t(u[i]);
    return load_words(l);
#endif
  }
};

// bfloat16 -> float32.
struct FromBf16 {
  static constexpr int kBytes = 2;
  static P load(const char* p) {
#if defined(__AVX512F__)
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))),
                             16);
#elif defined(__AVX2__)
    return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
    uint16_t h[W];
    std::memcpy(h, p, sizeof h);
    return P{uint32_t(h[0]) << 16, uint32_t(h[1]) << 16, uint32_t(h[2]) << 16, uint32_t(h[3]) << 16};
#endif
  }
};

// The remainder of what is bfloat16 already.
struct FromNothing {
  static constexpr int kBytes = 4;
  static P load(const char*) { return set1_pair(0); }
};

// Targets: W words of a row (and their remainders) to memory of any alignment. kBytes: written for one word.
struct ToWords {
  static constexpr int kBytes = 4;
  static void store(char* p, P v, P) { store_words(p, v); }
};

// float32 -> bfloat16, to nearest even.
struct ToBf16 {
  static constexpr int kBytes = 2;
  static void store(char* p, P v, P) {
    uint16_t h[W];
    store_bf16_exact(h, (V)v);
    std::memcpy(p, h, sizeof h);
  }
};

// Pairs of bfloat16 -> float32.
struct ToF32 {
  static constexpr int kBytes = 8;
  static void store(char* p, P v, P) {
    uint16_t h[2 * W];
    store_words(h, v);
    store_words(p, (P)load_bf16(h));
    store_words(p + W * 4, (P)load_bf16(h + W));
  }
};

// Pairs of bfloat16 and their remainders -> float32.
struct ToMaster {
  static constexpr int kBytes = 8;
  static void merge(uint32_t (&u)[2 * W], P v, P rest) {
    uint16_t h[2 * W];
    int16_t l[2 * W];
    store_words(h, v);
    store_words(l, rest);
    for (int i = 0; i < 2 * W; i++) u[i] = (uint32_t(h[i]) << 16) + uint32_t(int32_t(l[i]));
  }
  static void store(char* p, P v, P rest) {
    uint32_t u[2 * W];
    merge(u, v, rest);
    std::memcpy(p, u, sizeof u);
  }
};

// The same, rounded to bfloat16.
struct ToRounded {
  static constexpr int kBytes = 4;
  static void store(char* p, P v, P rest) {
    uint32_t u[2 * W];
    float f[2 * W];
    uint16_t h[2 * W];
    ToMaster::merge(u, v, rest);
    std::memcpy(f, u, sizeof f);
    store_bf16_exact(h, load(f));
    store_bf16_exact(h + W, load(f + W));
    std::memcpy(p, h, sizeof h);
  }
};

}  // namespace RLV_ISA
}  // namespace rlv
