// Dropout. Needs MSL 2.3.
#include "philox.h"

// y = x*(0 or scale): a thread draws the four words of one counter, whose elements lie 64 apart. Threads go over the
// counters in strides of the grid.
template <typename S>
kernel void dropout(constant rlv_op_dropout& a [[buffer(0)]], device S* y [[buffer(1)]],
                    device const S* x [[buffer(2)]], uint i [[thread_position_in_grid]],
                    uint threads [[threads_per_grid]]) {
  const uint blocks = a.n / 256 + (a.n % 256 != 0 ? 1 : 0);
  for (uint counter = i; counter < blocks * 64; counter += threads) {
    const uint4 words = philox_block(a.seed, a.purpose, counter, a.site, a.step, a.part);
    const ulong first = ulong(counter / 64) * 256 + counter % 64;
    RLV_UNROLL
    for (uint w = 0; w < 4; w++) {
      const ulong at = first + w * 64;
      if (at < a.n) y[at] = narrow<S>(widen(x[at]) * (words[w] < a.threshold ? 0.0f : a.scale));
    }
  }
}
RLV_KERNEL("dropout_f32", dropout, float)
RLV_KERNEL("dropout_bf16", dropout, bf16)
