// RMSNorm of a row by one simdgroup: what rms_norm_fwd and the fused operations of decoding share, bit for bit.
#pragma once
#include "common.h"

// 1/sqrt(mean(x^2) + eps), the same in every lane. Lane l sums elements l, l + 32, ... in order; lanes fold as
// simd_sum does.
template <typename S>
inline float inverse_rms(device const S* x, uint cols, float eps, uint lane) {
  float sum = 0.0f;
  for (uint i = lane; i < cols; i += RLV_SIMD) {
    const float v = widen(x[i]);
    sum = fma(v, v, sum);
  }
  return 1.0f / sqrt(simd_sum(sum) / float(cols) + eps);
}

// An element of the normalised row, rounded as rms_norm_fwd stores it.
template <typename S>
inline S normalised(float x, float inverse, float weight) {
  return narrow<S>(x * inverse * weight);
}
