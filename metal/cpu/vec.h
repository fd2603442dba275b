// Vectors of float32 for one instruction set. Kernel sources are compiled once per set with -DRLV_ISA=NAME
// and live in namespace rlv::NAME. fma is fused where the set has it; -ffp-contract=off keeps everything
// else as written, so that two kernels which spell the same chain compute the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef RLV_ISA
#error "compile with -DRLV_ISA=avx512bf16|avx512|avx2|neon|portable"
#endif

// Accumulators stay in registers only where their function has been inlined.
#define RLV_INLINE inline __attribute__((always_inline))

namespace rlv {
namespace RLV_ISA {

inline float bf16_to_f32(uint16_t x) {
  const uint32_t u = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
// Round to nearest even; NaN stays a quiet NaN.
inline uint16_t f32_to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40u);
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#if defined(__AVX512F__)
constexpr int W = 16;
using V = __m512;   // W float32
using P = __m512i;  // W pairs of bfloat16
inline V zero() { return _mm512_setzero_ps(); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline __mmask16 mask_n(int n) { return __mmask16((1u << n) - 1u); }
// The first n < W elements; the rest reads as zero and is not written.
inline V load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(mask_n(n), p); }
inline void store_n(float* p, V v, int n) { _mm512_mask_storeu_ps(p, mask_n(n), v); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V vmax(V a, V b) { return _mm512_max_ps(a, b); }
inline V vmin(V a, V b) { return _mm512_min_ps(a, b); }
inline V vsqrt(V a) { return _mm512_sqrt_ps(a); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }    // a*b + c
inline V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a*b
inline V round_even(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V pow2i(V n) {  // 2^n for integral n in [-126, 127]
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline V load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline __m256i narrow_exact(V v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i r =
      _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i nan = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan));
}
#if defined(__AVX512BF16__)
// Subnormals become zero, here and in the dot products.
inline __m256i narrow_bf16(V v) { return (__m256i)_mm512_cvtneps_pbh(v); }
#else
inline __m256i narrow_bf16(V v) { return narrow_exact(v); }
#endif
inline void store_bf16(uint16_t* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(v));
}
inline void store_bf16_exact(uint16_t* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_exact(v));
}
inline V load_bf16_n(const uint16_t* p, int n) {
  const __m256i u = _mm256_maskz_loadu_epi16(mask_n(n), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(u), 16));
}
inline void store_bf16_n(uint16_t* p, V v, int n) { _mm256_mask_storeu_epi16(p, mask_n(n), narrow_bf16(v)); }
#define RLV_NATIVE_BF16_PARTS 1
inline P load_pairs(const uint16_t* p) { return _mm512_loadu_si512(p); }
// Pairs of the elements of two rows.
inline P join_pairs(const uint16_t* low, const uint16_t* high) {
  const __m512i l = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)));
  return _mm512_or_si512(l, _mm512_castps_si512(load_bf16(high)));
}
inline P set1_pair(uint32_t pair) { return _mm512_set1_epi32(int(pair)); }
inline V pair_low(P p) { return _mm512_castsi512_ps(_mm512_slli_epi32(p, 16)); }
inline V pair_high(P p) {
  return _mm512_castsi512_ps(_mm512_and_si512(p, _mm512_set1_epi32(int(0xffff0000u))));
}
#if defined(__AVX512BF16__)
inline V dot_pairs(V acc, P a, P b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
#define RLV_NATIVE_BF16_DOT 1
#endif
#elif defined(__AVX2__)
constexpr int W = 8;
using V = __m256;
using P = __m256i;
inline V zero() { return _mm256_setzero_ps(); }
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline __m256i mask_n(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline V load_n(const float* p, int n) { return _mm256_maskload_ps(p, mask_n(n)); }
inline void store_n(float* p, V v, int n) { _mm256_maskstore_ps(p, mask_n(n), v); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V vmax(V a, V b) { return _mm256_max_ps(a, b); }
inline V vmin(V a, V b) { return _mm256_min_ps(a, b); }
inline V vsqrt(V a) { return _mm256_sqrt_ps(a); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
inline V round_even(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V pow2i(V n) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline V load_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline void store_bf16(uint16_t* p, V v) {
  float f[W];
  store(f, v);
  for (int i = 0; i < W; i++) p[i] = f32_to_bf16(f[i]);
}
inline P load_pairs(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline P join_pairs(const uint16_t* low, const uint16_t* high) {
  const __m256i l = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
  return _mm256_or_si256(l, _mm256_castps_si256(load_bf16(high)));
}
inline P set1_pair(uint32_t pair) { return _mm256_set1_epi32(int(pair)); }
inline V pair_low(P p) { return _mm256_castsi256_ps(_mm256_slli_epi32(p, 16)); }
inline V pair_high(P p) {
  return _mm256_castsi256_ps(_mm256_and_si256(p, _mm256_set1_epi32(int(0xffff0000u))));
}
#else
// Compiler vectors of 16 bytes: NEON on arm64 (with fused multiply-add), SSE2 or whatever there is elsewhere.
constexpr int W = 4;
typedef float V __attribute__((vector_size(16)));
typedef uint32_t P __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
inline V zero() { return V{0, 0, 0, 0}; }
inline V set1(float x) { return V{x, x, x, x}; }
inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, 16);
  return v;
}
inline void store(float* p, V v) { std::memcpy(p, &v, 16); }
inline V load_n(const float* p, int n) {
  V v = zero();
  std::memcpy(&v, p, size_t(n) * 4);
  return v;
}
inline void store_n(float* p, V v, int n) { std::memcpy(p, &v, size_t(n) * 4); }
inline V add(V a, V b) { return a + b; }
inline V sub(V a, V b) { return a - b; }
inline V mul(V a, V b) { return a * b; }
inline V div(V a, V b) { return a / b; }
inline V vmax(V a, V b) { return a > b ? a : b; }
inline V vmin(V a, V b) { return a < b ? a : b; }
inline V vsqrt(V a) { return V{std::sqrt(a[0]), std::sqrt(a[1]), std::sqrt(a[2]), std::sqrt(a[3])}; }
#if defined(__ARM_NEON) && defined(__aarch64__)
inline V fma(V a, V b, V c) { return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline V fnma(V a, V b, V c) { return (V)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
inline V fma(V a, V b, V c) { return a * b + c; }
inline V fnma(V a, V b, V c) { return c - a * b; }
#endif
inline V round_even(V a) {
  return V{std::nearbyintf(a[0]), std::nearbyintf(a[1]), std::nearbyintf(a[2]), std::nearbyintf(a[3])};
}
inline V pow2i(V n) {
  const I i{int32_t(n[0]), int32_t(n[1]), int32_t(n[2]), int32_t(n[3])};
  return (V)((i + 127) << 23);
}
inline V load_bf16(const uint16_t* p) {
  return V{bf16_to_f32(p[0]), bf16_to_f32(p[1]), bf16_to_f32(p[2]), bf16_to_f32(p[3])};
}
inline void store_bf16(uint16_t* p, V v) {
  for (int i = 0; i < W; i++) p[i] = f32_to_bf16(v[i]);
}
inline P load_pairs(const uint16_t* p) {
  P v;
  std::memcpy(&v, p, 16);
  return v;
}
inline P join_pairs(const uint16_t* low, const uint16_t* high) {
  return P{low[0], low[1], low[2], low[3]} | (P)load_bf16(high);
}
inline P set1_pair(uint32_t pair) { return P{pair, pair, pair, pair}; }
inline V pair_low(P p) { return (V)(p << 16); }
inline V pair_high(P p) { return (V)(p & 0xffff0000u); }
#endif

#ifndef RLV_NATIVE_BF16_DOT
// Without a dot instruction a pair is two links of the chain: low first, then high.
inline V dot_pairs(V acc, P a, P b) {
  return fma(pair_high(a), pair_high(b), fma(pair_low(a), pair_low(b), acc));
}
#endif

// Storage types: float, or uint16_t holding bfloat16. All arithmetic is float32.
inline V load_as(const float* p) { return load(p); }
inline V load_as(const uint16_t* p) { return load_bf16(p); }
inline void store_as(float* p, V v) { store(p, v); }
inline void store_as(uint16_t* p, V v) { store_bf16(p, v); }
inline float get(const float* p) { return *p; }
inline float get(const uint16_t* p) { return bf16_to_f32(*p); }
inline void put(float* p, float f) { *p = f; }
inline void put(uint16_t* p, float f) { *p = f32_to_bf16(f); }
#ifndef RLV_NATIVE_BF16_PARTS
inline void store_bf16_exact(uint16_t* p, V v) { store_bf16(p, v); }
inline V load_bf16_n(const uint16_t* p, int n) {
  float f[W] = {};
  for (int i = 0; i < n; i++) f[i] = get(p + i);
  return load(f);
}
inline void store_bf16_n(uint16_t* p, V v, int n) {
  float f[W];
  store(f, v);
  for (int i = 0; i < n; i++) p[i] = f32_to_bf16(f[i]);
}
#endif
// The first n <= W elements.
inline V load_part(const float* p, int n) { return n == W ? load(p) : load_n(p, n); }
inline V load_part(const uint16_t* p, int n) { return n == W ? load_bf16(p) : load_bf16_n(p, n); }
inline void store_part(float* p, V v, int n) { n == W ? store(p, v) : store_n(p, v, n); }
inline void store_part(uint16_t* p, V v, int n) { n == W ? store_bf16(p, v) : store_bf16_n(p, v, n); }

// ---- rearranging

// even[i], odd[i] to at[2i], at[2i + 1], and back.
inline void store_interleaved(float* at, V even, V odd) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  store(at, _mm512_permutex2var_ps(even, low, odd));
  store(at + W, _mm512_permutex2var_ps(even, high, odd));
#else
  float e[W], o[W];
  store(e, even);
  store(o, odd);
  for (int i = 0; i < W; i++) {
    at[2 * i] = e[i];
    at[2 * i + 1] = o[i];
  }
#endif
}
inline void load_interleaved(const float* at, V& even, V& odd) {
#if defined(__AVX512F__)
  const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const V a = load(at), b = load(at + W);
  even = _mm512_permutex2var_ps(a, first, b);
  odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(1)), b);
#else
  float e[W], o[W];
  for (int i = 0; i < W; i++) {
    e[i] = at[2 * i];
    o[i] = at[2 * i + 1];
  }
  even = load(e);
  odd = load(o);
#endif
}

// Pairs of the first n <= W elements of two rows, zero beyond; `high` null reads as zero.
inline P join_pairs(const uint16_t* low, const uint16_t* high, int n) {
  if (n == W && high) return join_pairs(low, high);
#if defined(__AVX512F__)
  const __m512i l = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask_n(n), low));
  if (!high) return l;
  return _mm512_or_si512(
      l, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask_n(n), high)), 16));
#else
  uint16_t l[W] = {}, h[W] = {};
  std::memcpy(l, low, size_t(n) * sizeof(uint16_t));
  if (high) std::memcpy(h, high, size_t(n) * sizeof(uint16_t));
  return join_pairs(l, h);
#endif
}

// {low[i], high[i]} rounded to bfloat16.
inline P rounded_pairs(V low, V high) {
#if defined(__AVX512F__)
  return _mm512_or_si512(_mm512_cvtepu16_epi32(narrow_bf16(low)),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow_bf16(high)), 16));
#else
  uint16_t l[W], h[W];
  store_bf16(l, low);
  store_bf16(h, high);
  return join_pairs(l, h);
#endif
}
inline void store_pairs(uint16_t* p, P v) { std::memcpy(p, &v, sizeof v); }

inline uint32_t pair_at(const uint16_t* p) {
  uint32_t u;
  std::memcpy(&u, p, 4);
  return u;
}

// A multiply-add over `kWide` neighbours of a chain: one float32, or a pair of bfloat16.
template <class T>
struct Link;
template <>
struct Link<float> {
  static constexpr uint32_t kWide = 1;
  using Vec = V;
  static Vec load(const float* p) { return RLV_ISA::load(p); }
  static Vec broadcast(const float* p) { return set1(*p); }
  static V mac(V acc, Vec a, Vec b) { return fma(a, b, acc); }
};
template <>
struct Link<uint16_t> {
  static constexpr uint32_t kWide = 2;
  using Vec = P;
  static Vec load(const uint16_t* p) { return load_pairs(p); }
  static Vec broadcast(const uint16_t* p) { return set1_pair(pair_at(p)); }
  static V mac(V acc, Vec a, Vec b) { return dot_pairs(acc, a, b); }
};

// out[i] = {even[i], odd[i]} for i < n <= 16 bfloat16; `odd` null reads as zero.
inline void interleave_bf16(const uint16_t* even, const uint16_t* odd, int n, uint16_t* out) {
#if defined(__AVX512F__)
  const __mmask16 mask = __mmask16((1u << n) - 1u);
  const __m512i e = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even));
  const __m512i o = odd ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd)) : _mm512_setzero_si512();
  _mm512_mask_storeu_epi32(out, mask, _mm512_or_si512(e, _mm512_slli_epi32(o, 16)));
#else
  for (int i = 0; i < n; i++) {
    out[2 * i] = even[i];
    out[2 * i + 1] = odd ? odd[i] : uint16_t(0);
  }
#endif
}

// Sum over lanes as a fixed binary tree, folding the upper half onto the lower.
#if defined(__AVX2__)
inline float hsum4(__m128 v) {
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
}
#endif
#if defined(__AVX512F__)
inline float hsum(V v) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return hsum4(_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}
#elif defined(__AVX2__)
inline float hsum(V v) { return hsum4(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1))); }
#else
inline float hsum(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#endif
#if defined(__AVX512F__)
inline float hmax(V v) { return _mm512_reduce_max_ps(v); }
#else
inline float hmax(V v) {
  float f[W];
  store(f, v);
  float m = f[0];
  for (int i = 1; i < W; i++) m = f[i] > m ? f[i] : m;
  return m;
}
#endif

// exp(x): range reduction by ln2 in two parts and a degree-6 polynomial (Cephes expf); about 1 ulp.
// Inputs below -87.3 give 0, so that a masked score (-inf) contributes exactly nothing; NaN gives NaN.
inline V vexp(V x) {
  const V lo = set1(-87.33654f), hi = set1(88.37626f);
  const V c = vmin(hi, vmax(lo, x));  // in this order NaN passes through
  const V n = round_even(mul(c, set1(1.44269504088896341f)));
  V r = fnma(n, set1(0.693359375f), c);
  r = fnma(n, set1(-2.12194440e-4f), r);
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  const V y = add(fma(p, mul(r, r), r), set1(1.0f));
  const V e = mul(y, pow2i(n));
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, lo, _CMP_NLE_UQ), e);
#elif defined(__AVX2__)
  return _mm256_and_ps(_mm256_cmp_ps(x, lo, _CMP_NLE_UQ), e);
#else
  return x <= lo ? zero() : e;
#endif
}
inline V sigmoid(V x) { return div(set1(1.0f), add(set1(1.0f), vexp(sub(zero(), x)))); }

}  // namespace RLV_ISA
}  // namespace rlv
