#include "common.h"
template <typename S>
kernel void cast(constant rlv_op_swiglu_fwd& a [[buffer(0)]], device S* y [[buffer(1)]], device const S* g [[buffer(2)]], device const S* u [[buffer(3)]], device atomic_uint* error [[buffer(RLV_ERROR)]], uint i [[thread_position_in_grid]]) {
  if (i >= a.n) { report(error, RLV_BAD_LOGITS, i); return; }
  const float x = widen(g[i]);
  y[i] = narrow<S>(x / (1.0f + exp(-x)) * widen(u[i]));
}
RLV_KERNEL("swiglu_fwd_f32", cast, float)
RLV_KERNEL("swiglu_fwd_bf16", cast, bf16)
