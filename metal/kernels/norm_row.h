// RMSNorm of a row by one simdgroup: what rms_norm_fwd and the fused operations of decoding share, bit for
// bit.
#pragma once
#include "common.h"

// x[i], or x[i] + delta[i] rounded as it is stored.
template <typename S>
METAL_FUNC S sum_element(device const S* x, device const S* delta, bool fused, uint i) {
  return fused ? narrow<S>(widen(x[i]) + widen(delta[i])) : x[i];
}

// 1/sqrt(mean(h^2) + eps) with h = x + delta or x, the same in every lane. Lane l sums elements l, l + 32,
// ... in order; lanes fold as simd_sum does.
template <typename S>
METAL_FUNC float inverse_rms_of_sum(device const S* x, device const S* delta, bool fused, uint cols,
                                    float eps, uint lane) {
  float sum = 0.0f;
  for (uint i = lane; i < cols; i += RLV_SIMD) {
    const float v = widen(sum_element(x, delta, fused, i));
    sum = fma(v, v, sum);
  }
  return 1.0f / sqrt(simd_sum(sum) / float(cols) + eps);
}
template <typename S>
METAL_FUNC float inverse_rms(device const S* x, uint cols, float eps, uint lane) {
  return inverse_rms_of_sum(x, x, false, cols, eps, lane);
}

// An element of the normalised row, rounded as rms_norm_fwd stores it.
template <typename S>
METAL_FUNC S normalised(float x, float inverse, float weight) {
  return narrow<S>(x * inverse * weight);
}
