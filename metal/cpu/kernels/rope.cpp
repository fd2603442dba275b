// Per-head RMSNorm of queries and keys (Qwen3; identity without weight) followed by rotary position embedding
// (Su et al. 2021, arXiv:2104.09864) in the rotate-half convention. x, y, dy, dx are [rows, heads, head_dim]
// of dtype dt, head_dim even; weight and dweight float32 [head_dim]; rope float32 [max_pos, head_dim], a line
// is the cosines of head_dim/2 angles and then their sines.
//
//   forward   n = x/sqrt(mean(x^2) + eps)*w (x without weight); y = n*cos -+ swapped half of n * sin ("=").
//             Threads take rows.
//   backward  rotates dy by -angle, then RMSNorm's gradient per head ("="). Threads take blocks of 64 rows;
//             each block sums dweight's terms, rows and heads ascending, into its line of `partial`
//             [ceil(rows/64), head_dim]; after a barrier threads take columns and add the lines, in order, to
//             what dweight holds.
//
// A head's sums run over its own elements in two chains of lanes, one per half. Saved: x; everything else is
// recomputed.
#include "args.gen.hpp"
#include "rms.h"

namespace rlv {
namespace RLV_ISA {

namespace {

template <class T>
inline float head_rms(const T* x, uint32_t half, float eps) {
  V low = zero(), high = zero();
  for (uint32_t i = 0; i < half; i += W) {
    const int count = part(i, half);
    const V a = load_part(x + i, count), b = load_part(x + half + i, count);
    low = fma(a, a, low);
    high = fma(b, b, high);
  }
  return reciprocal_rms(hsum(add(low, high)), 2 * half, eps);
}

template <class T, bool Normed>
void rope_forward(Ctx& c, const args::QkNormRopeFwd& a) {
  const uint32_t half = a.head_dim / 2;
  const float* weight = static_cast<const float*>(a.weight);
  const uint32_t* positions = static_cast<const uint32_t*>(a.positions);
  const Range rows = split(a.rows, c);
  for (uint32_t t = rows.begin; t < rows.end; t++) {
    if (positions[t] >= a.max_pos) {
      c.fail("qk_norm_rope_fwd: position beyond max_pos", positions[t]);
      continue;
    }
    const float* cosines = static_cast<const float*>(a.rope) + size_t(positions[t]) * a.head_dim;
    const float* sines = cosines + half;
    for (uint32_t head = 0; head < a.heads; head++) {
      const size_t at = (size_t(t) * a.heads + head) * a.head_dim;
      const T* x = static_cast<const T*>(a.x) + at;
      T* y = static_cast<T*>(a.y) + at;
      const V r = Normed ? set1(head_rms(x, half, a.eps)) : zero();
      for (uint32_t i = 0; i < half; i += W) {
        const int count = part(i, half);
        V low = load_part(x + i, count), high = load_part(x + half + i, count);
        if (Normed) {
          low = mul(mul(low, r), load_part(weight + i, count));
          high = mul(mul(high, r), load_part(weight + half + i, count));
        }
        const V cosine = load_part(cosines + i, count), sine = load_part(sines + i, count);
        store_part(y + i, fnma(high, sine, mul(low, cosine)), count);
        store_part(y + half + i, fma(low, sine, mul(high, cosine)), count);
      }
    }
  }
}

// The cotangent before the rotation: the transpose of a rotation is the rotation by the opposite angle.
struct Unrotated {
  V low, high;
};
template <class T>
inline Unrotated unrotate(const T* dy, const float* cosines, uint32_t half, uint32_t i, int count) {
  const V low = load_part(dy + i, count), high = load_part(dy + half + i, count);
  const V cosine = load_part(cosines + i, count), sine = load_part(cosines + half + i, count);
  return {fma(high, sine, mul(low, cosine)), fnma(low, sine, mul(high, cosine))};
}

template <class T>
inline void backward_head(const T* dy, const float* cosines, uint32_t half, T* dx) {
  for (uint32_t i = 0; i < half; i += W) {
    const int count = part(i, half);
    const Unrotated d = unrotate(dy, cosines, half, i, count);
    store_part(dx + i, d.low, count);
    store_part(dx + half + i, d.high, count);
  }
}

template <class T>
inline void backward_normed_head(const T* dy, const T* x, const float* weight, const float* cosines,
                                 uint32_t half, float eps, T* dx, float* partial) {
  V square_low = zero(), square_high = zero(), dot_low = zero(), dot_high = zero();
  for (uint32_t i = 0; i < half; i += W) {
    const int count = part(i, half);
    const Unrotated d = unrotate(dy, cosines, half, i, count);
    const V low = load_part(x + i, count), high = load_part(x + half + i, count);
    square_low = fma(low, low, square_low);
    square_high = fma(high, high, square_high);
    dot_low = fma(mul(d.low, load_part(weight + i, count)), low, dot_low);
    dot_high = fma(mul(d.high, load_part(weight + half + i, count)), high, dot_high);
  }
  const float rms = reciprocal_rms(hsum(add(square_low, square_high)), 2 * half, eps);
  const V r = set1(rms), mean = set1(hsum(add(dot_low, dot_high)) * rms / float(2 * half));
  for (uint32_t i = 0; i < half; i += W) {
    const int count = part(i, half);
    const Unrotated d = unrotate(dy, cosines, half, i, count);
    const V low = mul(load_part(x + i, count), r), high = mul(load_part(x + half + i, count), r);
    if (partial) {
      store_part(partial + i, fma(d.low, low, load_part(partial + i, count)), count);
      store_part(partial + half + i, fma(d.high, high, load_part(partial + half + i, count)), count);
    }
    store_part(dx + i, mul(r, fnma(low, mean, mul(d.low, load_part(weight + i, count)))), count);
    store_part(dx + half + i, mul(r, fnma(high, mean, mul(d.high, load_part(weight + half + i, count)))),
               count);
  }
}

template <class T>
void rope_backward(Ctx& c, const args::QkNormRopeBwd& a) {
  const uint32_t half = a.head_dim / 2;
  const float* weight = static_cast<const float*>(a.weight);
  const uint32_t* positions = static_cast<const uint32_t*>(a.positions);
  float* partial = a.weight && a.dweight ? static_cast<float*>(a.partial) : nullptr;
  const uint32_t blocks = uint32_t(ceil_div(a.rows, RLV_ROW_BLOCK));
  const Range own = split(blocks, c);
  for (uint32_t b = own.begin; b < own.end; b++) {
    const uint32_t begin = b * RLV_ROW_BLOCK, left = a.rows - begin;
    const uint32_t end = begin + (left < RLV_ROW_BLOCK ? left : RLV_ROW_BLOCK);
    float* line = partial ? partial + size_t(b) * a.head_dim : nullptr;
    for (uint32_t i = 0; line && i < a.head_dim; i++) line[i] = 0;
    for (uint32_t t = begin; t < end; t++) {
      if (positions[t] >= a.max_pos) {
        c.fail("qk_norm_rope_bwd: position beyond max_pos", positions[t]);
        continue;
      }
      const float* cosines = static_cast<const float*>(a.rope) + size_t(positions[t]) * a.head_dim;
      for (uint32_t head = 0; head < a.heads; head++) {
        const size_t at = (size_t(t) * a.heads + head) * a.head_dim;
        const T* dy = static_cast<const T*>(a.dy) + at;
        T* dx = static_cast<T*>(a.dx) + at;
        if (weight)
          backward_normed_head(dy, static_cast<const T*>(a.x) + at, weight, cosines, half, a.eps, dx, line);
        else
          backward_head(dy, cosines, half, dx);
      }
    }
  }
  if (!partial) return;
  c.barrier();
  add_blocks(c, static_cast<float*>(a.dweight), partial, blocks, a.head_dim);
}

}  // namespace

void qk_norm_rope_fwd(Ctx& c, const args::QkNormRopeFwd& a) {
  if (a.head_dim % 2) return c.fail("qk_norm_rope_fwd: head_dim is odd", a.head_dim);
  if (a.dt == RLV_BF16)
    a.weight ? rope_forward<uint16_t, true>(c, a) : rope_forward<uint16_t, false>(c, a);
  else
    a.weight ? rope_forward<float, true>(c, a) : rope_forward<float, false>(c, a);
}

void qk_norm_rope_bwd(Ctx& c, const args::QkNormRopeBwd& a) {
  if (a.head_dim % 2) return c.fail("qk_norm_rope_bwd: head_dim is odd", a.head_dim);
  if (a.weight && a.dweight && !a.partial) return c.fail("qk_norm_rope_bwd: dweight without partial");
  a.dt == RLV_BF16 ? rope_backward<uint16_t>(c, a) : rope_backward<float>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
