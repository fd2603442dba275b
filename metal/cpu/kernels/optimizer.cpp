// The optimizer step on flat parameters of n elements (in whatever layout: every element is on its own).
//
//   sq_norm    sums[slot] = sum of g^2 in float64 ("="): blocks of 65536 elements, each in 32 chains by
//   index, then
//              (after a barrier) the blocks in order. Threads take blocks. The squares are exact in float64.
//   clip_coef  result = {norm, coefficient, nonfinite, 0} from the slots in order ("="); one thread.
//   adamw      AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with torch.optim.AdamW's formulas, in
//   place.
//              Threads take ranges of elements.
//
// A bfloat16 parameter is the high half of a float32 master whose bits are exactly (p << 16) + lo, lo signed.
// The high half is the nearest bfloat16; a tie goes up, because the other way the remainder 32768 would not
// fit. bfloat16 moments are rounded stochastically: 16 random bits are added below the kept half, so the
// expected value is the unrounded one. The bits are the upper half of word 0 of Philox with key (seed,
// tensor) and counter (element, step, 0 for m and 1 for v, 0).
#include <cmath>
#include <cstring>
#include "../../core/adam.h"
#include "args.gen.hpp"
#include "lanes.h"
#include "philox.h"

namespace rlv {
namespace RLV_ISA {

namespace {

constexpr uint32_t kSquareChains = 32;
constexpr int kBlock = 64;  // elements of one step of adamw

double sum_squares(const float* g, uint32_t n) {
  typedef float Floats __attribute__((vector_size(32)));
  typedef double Doubles __attribute__((vector_size(64)));
  Doubles s[kSquareChains / 8] = {};
  const auto take = [&s](const float* from) {
    for (uint32_t j = 0; j < kSquareChains / 8; j++) {
      Floats f;
      std::memcpy(&f, from + 8 * j, sizeof f);
      const Doubles d = __builtin_convertvector(f, Doubles);
      s[j] += d * d;
    }
  };
  uint32_t i = 0;
  for (; i + kSquareChains <= n; i += kSquareChains) take(g + i);
  float rest[kSquareChains] = {};
  std::memcpy(rest, g + i, (n - i) * sizeof(float));
  take(rest);
  double sum[8];
  const Doubles all = (s[0] + s[2]) + (s[1] + s[3]);
  std::memcpy(sum, &all, sizeof sum);
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

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

// Key and step of the random bits that round a bfloat16 moment.
struct Rounding {
  uint32_t seed, tensor, step;
};
constexpr uint32_t kFirstMoment = 0, kSecondMoment = 1;
inline void load_moment(float* out, const float* m) { std::memcpy(out, m, kBlock * 4); }
inline void load_moment(float* out, const uint16_t* m) {
  for (int i = 0; i < kBlock; i++) out[i] = bf16_to_f32(m[i]);
}
inline void store_moment(float* m, const float* x, const Rounding&, uint32_t, uint32_t) {
  std::memcpy(m, x, kBlock * 4);
}
inline void store_moment(uint16_t* m, const float* x, const Rounding& k, uint32_t which, uint32_t element) {
  uint32_t random[kBlock];
  philox_row<kBlock>(random, k.seed, k.tensor, element, k.step, which, 0);
  for (int i = 0; i < kBlock; i++) m[i] = uint16_t((bits_of(x[i]) + (random[i] >> 16)) >> 16);
}

inline void update(const Adam& k, float clip, float* p, float* m, float* v, const float* g) {
  const V coef = set1(clip), decay = set1(k.decay), rate = set1(k.rate), eps = set1(k.eps);
  const V beta1 = set1(k.beta1), rest1 = set1(k.rest1), beta2 = set1(k.beta2), rest2 = set1(k.rest2);
  const V root_c2 = set1(k.root_c2);
  for (int i = 0; i < kBlock; i += W) {
    const V gradient = mul(load(g + i), coef);
    const V first = fma(rest1, gradient, mul(beta1, load(m + i)));
    const V second = fma(mul(rest2, gradient), gradient, mul(beta2, load(v + i)));
    const V scale = add(div(vsqrt(second), root_c2), eps);
    store(p + i, sub(mul(load(p + i), decay), div(mul(rate, first), scale)));
    store(m + i, first);
    store(v + i, second);
  }
}

template <class P, class M>
inline void step_block(const Adam& k, float clip, P* p, int16_t* lo, const float* g, M* m, M* v,
                       const Rounding& key, uint32_t element) {
  alignas(64) float master[kBlock], first[kBlock], second[kBlock];
  load_master(master, p, lo);
  load_moment(first, m);
  load_moment(second, v);
  update(k, clip, master, first, second, g);
  store_master(p, lo, master);
  store_moment(m, first, key, kFirstMoment, element);
  store_moment(v, second, key, kSecondMoment, element);
}

template <class P, class M>
void adamw_as(Ctx& c, const args::Adamw& a, float coef) {
  const Adam k = adam_constants(a);
  const Rounding key{a.seed, a.tensor, a.step};
  P* p = static_cast<P*>(a.p);
  int16_t* lo = static_cast<int16_t*>(a.lo);
  const float* g = static_cast<const float*>(a.g);
  M* m = static_cast<M*>(a.m);
  M* v = static_cast<M*>(a.v);
  const Range r = split_units(a.n, kBlock, c);
  size_t i = r.begin;
  for (; i + kBlock <= r.end; i += kBlock)
    step_block(k, coef, p + i, lo ? lo + i : nullptr, g + i, m + i, v + i, key, uint32_t(i));
  if (i == r.end) return;
  // The rest goes through the same block, padded with zeros.
  const size_t rest = r.end - i;
  P p_block[kBlock] = {};
  int16_t lo_block[kBlock] = {};
  float g_block[kBlock] = {};
  M m_block[kBlock] = {}, v_block[kBlock] = {};
  std::memcpy(p_block, p + i, rest * sizeof(P));
  if (lo) std::memcpy(lo_block, lo + i, rest * 2);
  std::memcpy(g_block, g + i, rest * 4);
  std::memcpy(m_block, m + i, rest * sizeof(M));
  std::memcpy(v_block, v + i, rest * sizeof(M));
  step_block(k, coef, p_block, lo_block, g_block, m_block, v_block, key, uint32_t(i));
  std::memcpy(p + i, p_block, rest * sizeof(P));
  if (lo) std::memcpy(lo + i, lo_block, rest * 2);
  std::memcpy(m + i, m_block, rest * sizeof(M));
  std::memcpy(v + i, v_block, rest * sizeof(M));
}

struct ClipResult {
  float norm, coef;
  uint32_t nonfinite, reserved;
};

}  // namespace

void sq_norm(Ctx& c, const args::SqNorm& a) {
  if (a.slot >= a.slots) return c.fail("sq_norm: slot beyond the slots", a.slot);
  const float* g = static_cast<const float*>(a.g);
  double* partial = static_cast<double*>(a.partial);
  const uint32_t blocks = uint32_t(ceil_div(a.n, RLV_NORM_BLOCK));
  const Range own = split(blocks, c);
  for (uint32_t b = own.begin; b < own.end; b++) {
    const size_t begin = size_t(b) * RLV_NORM_BLOCK, left = a.n - begin;
    partial[b] = sum_squares(g + begin, uint32_t(left < RLV_NORM_BLOCK ? left : RLV_NORM_BLOCK));
  }
  c.barrier();
  if (c.tid != 0) return;
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
  if (a.wdt == RLV_BF16)
    a.mdt == RLV_BF16 ? adamw_as<uint16_t, uint16_t>(c, a, result.coef)
                      : adamw_as<uint16_t, float>(c, a, result.coef);
  else
    a.mdt == RLV_BF16 ? adamw_as<float, uint16_t>(c, a, result.coef)
                      : adamw_as<float, float>(c, a, result.coef);
}

}  // namespace RLV_ISA
}  // namespace rlv
