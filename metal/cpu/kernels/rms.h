// What RMSNorm over rows and over heads share.
#pragma once
#include <cmath>
#include "lanes.h"
#include "ops.gen.h"

namespace rlv {
namespace RLV_ISA {

inline float reciprocal_rms(float sum_of_squares, uint32_t n, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / float(n) + eps);
}

// sums[cols] += partial[blocks][cols], blocks in order after what sums holds; threads take columns.
inline void add_blocks(const Ctx& c, float* sums, const float* partial, uint32_t blocks, uint32_t cols) {
  const Range r = split_units(cols, 16, c);
  for (uint32_t i = r.begin; i < r.end; i += W) {
    const int count = part(i, r.end);
    V sum = load_part(sums + i, count);
    for (uint32_t b = 0; b < blocks; b++) sum = add(sum, load_part(partial + size_t(b) * cols + i, count));
    store_part(sums + i, sum, count);
  }
}

}  // namespace RLV_ISA
}  // namespace rlv
