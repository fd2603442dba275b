// Element-wise work in vectors: the loop that element-wise kernels share.
#pragma once
#include "../ctx.h"
#include "../vec.h"
#include "row_split.h"

namespace rlv {
namespace RLV_ISA {

// Calls body(i, count) for the calling thread's share of n elements: count is W, except for the last piece of
// the share. A lane never sees its neighbours, so neither the split nor the tail can change a result.
template <class F>
inline void for_lanes(const Ctx& c, uint32_t n, F body) {
  const Range r = even_split(c.threads, n) ? split(n, c) : split_units(n, 64, c);
  size_t i = r.begin;
  for (; i + W <= r.end; i += W) body(i, W);
  if (i < r.end) body(i, int(r.end - i));
}

// Elements of a row's vector that starts at column i.
inline int part(uint32_t i, uint32_t n) { return n - i < uint32_t(W) ? int(n - i) : W; }

}  // namespace RLV_ISA
}  // namespace rlv
