// Per-head RMSNorm with rotary embedding by one simdgroup, and SwiGLU of an element: what the single
// operations and the fused ones of decoding share, bit for bit.
#pragma once
#include "norm_row.h"

// y[i*stride] = rope(n)[i] of one head in the rotate-half convention, n = x/rms(x)*weight or x itself.
// angles = [cos(dim/2), sin(dim/2)].
template <typename S>
METAL_FUNC void rope_row(device S* y, uint stride, device const S* x, device const float* weight, bool norm,
                         device const float* angles, uint dim, float eps, uint lane) {
  const uint half_dim = dim / 2;
  const float inverse = norm ? inverse_rms(x, dim, eps, lane) : 1.0f;
  for (uint i = lane; i < half_dim; i += RLV_SIMD) {
    float low = widen(x[i]), high = widen(x[i + half_dim]);
    if (norm) {
      low = low * inverse * weight[i];
      high = high * inverse * weight[i + half_dim];
    }
    const float cosine = angles[i], sine = angles[i + half_dim];
    y[ulong(i) * stride] = narrow<S>(fma(low, cosine, -(high * sine)));
    y[ulong(i + half_dim) * stride] = narrow<S>(fma(high, cosine, low * sine));
  }
}

METAL_FUNC float silu_times(float gate, float up) { return gate / (1.0f + exp(-gate)) * up; }
