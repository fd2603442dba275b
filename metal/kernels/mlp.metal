// SwiGLU. Needs MSL 2.3.
#include "rope_row.h"

// y = silu(gate)*up. Threads go over the elements in strides of the grid.
template <typename S>
kernel void swiglu_fwd(constant rlv_op_swiglu_fwd& a [[buffer(0)]], device S* y [[buffer(1)]],
                       device const S* gate [[buffer(2)]], device const S* up [[buffer(3)]],
                       uint i [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
  for (ulong at = i; at < a.n; at += threads) y[at] = narrow<S>(silu_times(widen(gate[at]), widen(up[at])));
}
RLV_KERNEL("swiglu_fwd_f32", swiglu_fwd, float)
RLV_KERNEL("swiglu_fwd_bf16", swiglu_fwd, bf16)

// With s = sigmoid(gate): dgate = dy*up*s*(1 + gate*(1 - s)), dup = dy*gate*s.
template <typename S>
kernel void swiglu_bwd(constant rlv_op_swiglu_bwd& a [[buffer(0)]], device S* dgate [[buffer(1)]],
                       device S* dup [[buffer(2)]], device const S* dy [[buffer(3)]],
                       device const S* gate [[buffer(4)]], device const S* up [[buffer(5)]],
                       uint i [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
  for (ulong at = i; at < a.n; at += threads) {
    const float g = widen(gate[at]), d = widen(dy[at]), s = 1.0f / (1.0f + exp(-g));
    dgate[at] = narrow<S>(d * widen(up[at]) * s * fma(g, 1.0f - s, 1.0f));
    dup[at] = narrow<S>(d * g * s);
  }
}
RLV_KERNEL("swiglu_bwd_f32", swiglu_bwd, float)
RLV_KERNEL("swiglu_bwd_bf16", swiglu_bwd, bf16)
