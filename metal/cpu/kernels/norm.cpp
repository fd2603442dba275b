// RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) with a fused residual. x, delta, h, y, dy, dres, dx are
// [rows, cols] of dtype dt, weight and dweight float32 [cols].
//
//   forward   h = x + delta (rounded to dt), r = 1/sqrt(mean(h^2) + eps), y = h*r*weight; threads take rows.
//   backward  n = h*r, dx = dres + r*(dy*w - n*mean(dy*w*n)) ("="); threads take blocks of 64 rows.
//             dweight += sum over rows of dy*n: each block of 64 rows sums its rows in order into its line of
//             `partial` [ceil(rows/64), cols]; after a barrier threads take columns and add the lines, in
//             order, to what dweight holds.
//
// A row's sums run over its own columns in four chains of lanes, whatever the row's place. Saved: h (x
// without delta); r is recomputed.
#include "args.gen.hpp"
#include "rms.h"

namespace rlv {
namespace RLV_ISA {

namespace {

constexpr uint32_t kChains = 4;

// Calls body(i, count, chain) over the vectors of a row, chains in rotation.
template <class F>
inline void for_row(uint32_t cols, F body) {
  uint32_t i = 0;
  for (; i + kChains * W <= cols; i += kChains * W)
    for (uint32_t j = 0; j < kChains; j++) body(i + j * W, W, j);
  for (uint32_t j = 0; i < cols; i += W, j++) body(i, part(i, cols), j);
}

inline float fold(const V* s) { return hsum(add(add(s[0], s[1]), add(s[2], s[3]))); }

template <class T, bool Fused>
void norm_forward(Ctx& c, const args::RmsNormFwd& a) {
  const float* weight = static_cast<const float*>(a.weight);
  const Range rows = split(a.rows, c);
  for (uint32_t t = rows.begin; t < rows.end; t++) {
    const size_t at = size_t(t) * a.cols;
    const T* x = static_cast<const T*>(a.x) + at;
    const T* delta = Fused ? static_cast<const T*>(a.delta) + at : nullptr;
    T* h = Fused ? static_cast<T*>(a.h) + at : nullptr;
    T* y = static_cast<T*>(a.y) + at;
    V s[kChains] = {zero(), zero(), zero(), zero()};
    for_row(a.cols, [&](uint32_t i, int count, uint32_t j) {
      V v = load_part(x + i, count);
      if (Fused) {
        store_part(h + i, add(v, load_part(delta + i, count)), count);
        v = load_part(h + i, count);  // as stored: the backward must see the same h
      }
      s[j] = fma(v, v, s[j]);
    });
    const V r = set1(reciprocal_rms(fold(s), a.cols, a.eps));
    const T* from = Fused ? h : x;
    for_row(a.cols, [&](uint32_t i, int count, uint32_t) {
      store_part(y + i, mul(mul(load_part(from + i, count), r), load_part(weight + i, count)), count);
    });
  }
}

template <class T>
void norm_backward_rows(const args::RmsNormBwd& a, uint32_t begin, uint32_t end, float* partial) {
  const float* weight = static_cast<const float*>(a.weight);
  const float inv_cols = 1.0f / float(a.cols);
  for (uint32_t t = begin; t < end; t++) {
    const size_t at = size_t(t) * a.cols;
    const T* dy = static_cast<const T*>(a.dy) + at;
    const T* h = static_cast<const T*>(a.h) + at;
    const T* dres = a.dres ? static_cast<const T*>(a.dres) + at : nullptr;
    T* dx = static_cast<T*>(a.dx) + at;
    V s[kChains] = {zero(), zero(), zero(), zero()}, p[kChains] = {zero(), zero(), zero(), zero()};
    for_row(a.cols, [&](uint32_t i, int count, uint32_t j) {
      const V v = load_part(h + i, count);
      s[j] = fma(v, v, s[j]);
      p[j] = fma(mul(load_part(dy + i, count), load_part(weight + i, count)), v, p[j]);
    });
    const float rms = reciprocal_rms(fold(s), a.cols, a.eps);
    const V r = set1(rms), mean = set1(fold(p) * rms * inv_cols);  // mean(dy*w*n)
    for_row(a.cols, [&](uint32_t i, int count, uint32_t) {
      const V d = load_part(dy + i, count), n = mul(load_part(h + i, count), r);
      V g = mul(r, fnma(n, mean, mul(d, load_part(weight + i, count))));
      if (dres) g = add(g, load_part(dres + i, count));
      if (partial) {
        const V before = t == begin ? zero() : load_part(partial + i, count);
        store_part(partial + i, fma(d, n, before), count);
      }
      store_part(dx + i, g, count);
    });
  }
}

template <class T>
void norm_backward(Ctx& c, const args::RmsNormBwd& a) {
  float* partial = a.dweight ? static_cast<float*>(a.partial) : nullptr;
  const uint32_t blocks = uint32_t(ceil_div(a.rows, RLV_ROW_BLOCK));
  const Range own = split(blocks, c);
  for (uint32_t b = own.begin; b < own.end; b++) {
    const uint32_t begin = b * RLV_ROW_BLOCK, left = a.rows - begin;
    const uint32_t end = begin + (left < RLV_ROW_BLOCK ? left : RLV_ROW_BLOCK);
    norm_backward_rows<T>(a, begin, end, partial ? partial + size_t(b) * a.cols : nullptr);
  }
  if (!partial) return;
  c.barrier();
  add_blocks(c, static_cast<float*>(a.dweight), partial, blocks, a.cols);
}

}  // namespace

void rms_norm_fwd(Ctx& c, const args::RmsNormFwd& a) {
  if (a.delta && !a.h) return c.fail("rms_norm_fwd: delta without h");
  if (a.dt == RLV_BF16)
    a.delta ? norm_forward<uint16_t, true>(c, a) : norm_forward<uint16_t, false>(c, a);
  else
    a.delta ? norm_forward<float, true>(c, a) : norm_forward<float, false>(c, a);
}

void rms_norm_bwd(Ctx& c, const args::RmsNormBwd& a) {
  if (a.dweight && !a.partial) return c.fail("rms_norm_bwd: dweight without partial");
  a.dt == RLV_BF16 ? norm_backward<uint16_t>(c, a) : norm_backward<float>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
