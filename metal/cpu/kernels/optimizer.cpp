// The optimizer step on flat parameters of n elements (in whatever layout: every element is on its own).
//
//   sq_norm    sums[slot] = sum of g^2 in float64 ("="): blocks of 65536 elements, each in 32 chains by
//   index, then
//              (after a barrier) the blocks in order. Threads take blocks. The squares are exact in float64.
//   clip_coef  result = {norm, coefficient, nonfinite, 0} from the slots in order ("="); one thread.
//   adamw      AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with torch.optim.AdamW's formulas, in
//   place.
//              Threads take ranges of elements, of whole blocks if moments have 8 bits.
//
// A bfloat16 parameter is the high half of a float32 master whose bits are exactly (p << 16) + lo, lo signed.
// The high half is the nearest bfloat16; a tie goes up, because the other way the remainder 32768 would not
// fit. bfloat16 moments are rounded stochastically: 16 random bits are added below the kept half, so the
// expected value is the unrounded one. The bits are the upper half of word 0 of Philox with key (seed,
// tensor) and counter (element, step, 0 for m and 1 for v, 0). Moments of 8 bits: moments8.h.
#include <cmath>
#include <cstring>
#include "../../core/adam.h"
#include "args.gen.hpp"
#include "lanes.h"
#include "moments8.h"
#include "philox.h"

namespace rlv {
namespace RLV_ISA {

namespace {

constexpr uint32_t kSquareChains = 32;
constexpr int kBlock = 64;  // elements of one step of adamw

typedef float Floats __attribute__((vector_size(32)));
inline void load_floats(Floats& f, const float* p) { std::memcpy(&f, p, sizeof f); }
inline void load_floats(Floats& f, const uint16_t* p) {
  typedef uint16_t Halves __attribute__((vector_size(16)));
  typedef uint32_t Words __attribute__((vector_size(32)));
  Halves h;
  std::memcpy(&h, p, sizeof h);
  f = (Floats)(__builtin_convertvector(h, Words) << 16);
}

template <class G>
double sum_squares(const G* g, uint32_t n) {
  typedef double Doubles __attribute__((vector_size(64)));
  Doubles s[kSquareChains / 8] = {};
  const auto take = [&s](const G* from) {
    for (uint32_t j = 0; j < kSquareChains / 8; j++) {
      Floats f;
      load_floats(f, from + 8 * j);
      const Doubles d = __builtin_convertvector(f, Doubles);
      s[j] += d * d;
    }
  };
  uint32_t i = 0;
  for (; i + kSquareChains <= n; i += kSquareChains) take(g + i);
  G rest[kSquareChains] = {};
  std::memcpy(rest, g + i, (n - i) * sizeof(G));
  take(rest);
  double sum[8];
  const Doubles all = (s[0] + s[2]) + (s[1] + s[3]);
  std::memcpy(sum, &all, sizeof sum);
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// Blocks of kBlock values between storage and float32; loops without branches, so that they vectorise.
inline void load_master(float* out, const float* p, const int16_t*) { std::memcpy(out, p, kBlock * 4); }
inline void load_master(float* out, const uint16_t* p, const int16_t* lo) {
  for (int i = 0; i < kBlock; i++) out[i] = float_of((uint32_t(p[i]) << 16) + uint32_t(int32_t(lo[i])));
}
inline void store_master(float* p, int16_t*, const float* x) { std::memcpy(p, x, kBlock * 4); }
inline void store_master(uint16_t* p, int16_t* lo, const float* x) {
  for (int i = 0; i < kBlock; i++) {
    const uint32_t u = bits_of(x[i]);
    p[i] = uint16_t((u + 0x8000u) >> 16);
    lo[i] = int16_t(uint16_t(u));
  }
}

// Elements that are computed together. Scales are those of a block of 8-bit moments.
template <class M>
constexpr int kUnit = kBlock;
template <>
constexpr int kUnit<uint8_t> = RLV_MOMENT_BLOCK;
struct Scales {
  float *m, *v;
};
inline void load_moments(float* first, float* second, const float* m, const float* v) {
  std::memcpy(first, m, kBlock * 4);
  std::memcpy(second, v, kBlock * 4);
}
inline void load_moments(float* first, float* second, const uint16_t* m, const uint16_t* v) {
  for (int i = 0; i < kBlock; i++) first[i] = bf16_to_f32(m[i]);
  for (int i = 0; i < kBlock; i++) second[i] = bf16_to_f32(v[i]);
}
inline void round_moment(uint16_t* to, const float* x, const Rounding& key, uint32_t which,
                         uint32_t element) {
  uint32_t random[kBlock];
  philox_row<kBlock>(random, key.seed, key.tensor, element, key.step, which, 0);
  for (int i = 0; i < kBlock; i++) to[i] = uint16_t((bits_of(x[i]) + (random[i] >> 16)) >> 16);
}
inline void store_moments(float* m, float* v, const float* first, const float* second, const Rounding&,
                          uint32_t) {
  std::memcpy(m, first, kBlock * 4);
  std::memcpy(v, second, kBlock * 4);
}
inline void store_moments(uint16_t* m, uint16_t* v, const float* first, const float* second,
                          const Rounding& key, uint32_t element) {
  round_moment(m, first, key, 0, element);
  round_moment(v, second, key, 1, element);
}

template <class G>
inline void update(const Adam& k, float clip, float* p, float* m, float* v, const G* g) {
  const V coef = set1(clip), decay = set1(k.decay), rate = set1(k.rate), eps = set1(k.eps);
  const V beta1 = set1(k.beta1), rest1 = set1(k.rest1), beta2 = set1(k.beta2), rest2 = set1(k.rest2);
  const V root_c2 = set1(k.root_c2);
  for (int i = 0; i < kBlock; i += W) {
    const V gradient = mul(load_as(g + i), coef);
    const V first = fma(rest1, gradient, mul(beta1, load(m + i)));
    const V second = fma(mul(rest2, gradient), gradient, mul(beta2, load(v + i)));
    const V scale = add(div(vsqrt(second), root_c2), eps);
    store(p + i, sub(mul(load(p + i), decay), div(mul(rate, first), scale)));
    store(m + i, first);
    store(v + i, second);
  }
}

template <class P, class G, class M>
inline void step_unit(const Adam& k, float clip, P* p, int16_t* lo, const G* g, M* m, M* v, Scales,
                      const Rounding& key, uint32_t element) {
  alignas(64) float master[kBlock], first[kBlock], second[kBlock];
  load_master(master, p, lo);
  load_moments(first, second, m, v);
  update(k, clip, master, first, second, g);
  store_master(p, lo, master);
  store_moments(m, v, first, second, key, element);
}
// In four parts: the arithmetic of random bits and codes fills the waits for divisions and roots.
template <class P, class G>
inline void step_unit(const Adam& k, float clip, P* p, int16_t* lo, const G* g, uint8_t* m, uint8_t* v,
                      Scales scale, const Rounding& key, uint32_t element) {
  alignas(64) float master[kBlock], first[kMoments], second[kMoments];
  uint32_t random[kMoments];
  for (int part = 0; part < kMoments / kBlock; part++) {
    const int i = part * kBlock;
    load_master(master, p + i, lo ? lo + i : nullptr);
    decode_first<kBlock>(first + i, m + i, *scale.m);
    decode_second<kBlock>(second + i, v + i, *scale.v);
    update(k, clip, master, first + i, second + i, g + i);
    store_master(p + i, lo ? lo + i : nullptr, master);
    moment_words(random, key, element, part);
  }
  *scale.m = encode_first(m, first, random);
  *scale.v = encode_second(v, second, random);
}

template <class P, class G, class M>
void adamw_as(Ctx& c, const args::Adamw& a, float coef) {
  constexpr uint32_t N = kUnit<M>;
  const Adam k = adam_constants(a);
  const Rounding key{a.seed, a.tensor, a.step};
  P* p = static_cast<P*>(a.p);
  int16_t* lo = static_cast<int16_t*>(a.lo);
  const G* g = static_cast<const G*>(a.g);
  M* m = static_cast<M*>(a.m);
  M* v = static_cast<M*>(a.v);
  const auto scales = [&a](size_t i) {
    return sizeof(M) == 1
               ? Scales{static_cast<float*>(a.m_scale) + i / N, static_cast<float*>(a.v_scale) + i / N}
               : Scales{};
  };
  const Range r = split_units(a.n, N, c);
  size_t i = r.begin;
  for (; i + N <= r.end; i += N)
    step_unit(k, coef, p + i, lo ? lo + i : nullptr, g + i, m + i, v + i, scales(i), key, uint32_t(i));
  if (i == r.end) return;
  // The rest goes through the same unit, padded with zeros.
  const size_t rest = r.end - i;
  P p_unit[N] = {};
  int16_t lo_unit[N] = {};
  G g_unit[N] = {};
  M m_unit[N] = {}, v_unit[N] = {};
  std::memcpy(p_unit, p + i, rest * sizeof(P));
  if (lo) std::memcpy(lo_unit, lo + i, rest * 2);
  std::memcpy(g_unit, g + i, rest * sizeof(G));
  std::memcpy(m_unit, m + i, rest * sizeof(M));
  std::memcpy(v_unit, v + i, rest * sizeof(M));
  step_unit(k, coef, p_unit, lo_unit, g_unit, m_unit, v_unit, scales(i), key, uint32_t(i));
  std::memcpy(p + i, p_unit, rest * sizeof(P));
  if (lo) std::memcpy(lo + i, lo_unit, rest * 2);
  std::memcpy(m + i, m_unit, rest * sizeof(M));
  std::memcpy(v + i, v_unit, rest * sizeof(M));
}

template <class P, class G>
void adamw_of(Ctx& c, const args::Adamw& a, float coef) {
  if (a.mdt == RLV_F8)
    adamw_as<P, G, uint8_t>(c, a, coef);
  else if (a.mdt == RLV_BF16)
    adamw_as<P, G, uint16_t>(c, a, coef);
  else
    adamw_as<P, G, float>(c, a, coef);
}

template <class G>
void norm_blocks(Ctx& c, const args::SqNorm& a, uint32_t blocks) {
  const G* g = static_cast<const G*>(a.g);
  double* partial = static_cast<double*>(a.partial);
  const Range own = split(blocks, c);
  for (uint32_t b = own.begin; b < own.end; b++) {
    const size_t begin = size_t(b) * RLV_NORM_BLOCK, left = a.n - begin;
    partial[b] = sum_squares(g + begin, uint32_t(left < RLV_NORM_BLOCK ? left : RLV_NORM_BLOCK));
  }
}

struct ClipResult {
  float norm, coef;
  uint32_t nonfinite, reserved;
};

}  // namespace

void sq_norm(Ctx& c, const args::SqNorm& a) {
  if (a.slot >= a.slots) return c.fail("sq_norm: slot beyond the slots", a.slot);
  const uint32_t blocks = uint32_t(ceil_div(a.n, RLV_NORM_BLOCK));
  a.gdt == RLV_BF16 ? norm_blocks<uint16_t>(c, a, blocks) : norm_blocks<float>(c, a, blocks);
  c.barrier();
  if (c.tid != 0) return;
  const double* partial = static_cast<const double*>(a.partial);
  double sum = 0;
  for (uint32_t b = 0; b < blocks; b++) sum += partial[b];
  static_cast<double*>(a.sums)[a.slot] = sum;
}

void clip_coef(Ctx& c, const args::ClipCoef& a) {
  if (c.tid != 0) return;
  const double* sums = static_cast<const double*>(a.sums);
  double sum = 0;
  for (uint32_t s = 0; s < a.slots; s++) sum += sums[s];
  const double norm = std::sqrt(sum), ratio = double(a.max_norm) / (norm + 1e-6);
  ClipResult result{float(norm), 1.0f, 0, 0};
  if (a.max_norm > 0) result.coef = ratio < 1 ? float(ratio) : 1.0f;
  if (!std::isfinite(result.norm)) result.nonfinite = 1;
  std::memcpy(a.result, &result, sizeof result);
}

void adamw(Ctx& c, const args::Adamw& a) {
  ClipResult result;
  std::memcpy(&result, a.result, sizeof result);
  if (result.nonfinite) return;
  if (a.wdt == RLV_BF16 && !a.lo) return c.fail("adamw: a bfloat16 parameter needs its remainder");
  if (a.mdt == RLV_F8 && !(a.m_scale && a.v_scale)) return c.fail("adamw: 8-bit moments need their scales");
  const bool half = a.gdt == RLV_BF16;
  if (a.wdt == RLV_BF16)
    half ? adamw_of<uint16_t, uint16_t>(c, a, result.coef) : adamw_of<uint16_t, float>(c, a, result.coef);
  else
    half ? adamw_of<float, uint16_t>(c, a, result.coef) : adamw_of<float, float>(c, a, result.coef);
}

}  // namespace RLV_ISA
}  // namespace rlv
