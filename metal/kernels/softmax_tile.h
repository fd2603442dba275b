// Softmax over the vocabulary: what logprob_fwd and sample share, so that a log-probability recorded while
// sampling equals, bit for bit, the one that training computes. Columns are reduced in strips of 64 by one
// simdgroup (lane l has columns l and l + 32), strips of a tile of 512 and then tiles are merged in ascending
// order.
#pragma once
#include "common.h"

// Of z over some columns: maximum, sum of exp(z - max), sum of exp(z - max)*(z - max).
struct TileSum {
  float max, sum, dot;
};
METAL_FUNC TileSum empty_tile() {
  TileSum t;
  t.max = -INFINITY;
  t.sum = 0.0f;
  t.dot = 0.0f;
  return t;
}

// Two columns a lane; -inf where there is none. The result is in every lane. NaN anywhere gives sum NaN.
METAL_FUNC TileSum strip_sum(float z0, float z1) {
  TileSum t;
  t.max = simd_max(max(z0, z1));
  const float origin = t.max == -INFINITY ? 0.0f : t.max;
  const float d0 = z0 - origin, d1 = z1 - origin;
  const float p0 = exp(d0), p1 = exp(d1);
  t.sum = simd_sum(p0 + p1);
  // A column of -inf has weight exactly 0; its z must not turn the product into NaN.
  t.dot = simd_sum(fma(p0, max(d0, -FLT_MAX), p1 * max(d1, -FLT_MAX)));
  return t;
}

METAL_FUNC TileSum merge(TileSum a, TileSum b) {
  TileSum t;
  t.max = max(a.max, b.max);
  const float shift_a = a.max == t.max ? 0.0f : a.max - t.max,
              shift_b = b.max == t.max ? 0.0f : b.max - t.max;
  const float scale_a = exp(shift_a), scale_b = exp(shift_b);
  t.sum = fma(a.sum, scale_a, b.sum * scale_b);
  // exp(-inf) is 0, and 0*inf must not be formed.
  const float dot_a = scale_a == 0.0f ? 0.0f : fma(shift_a, a.sum, a.dot) * scale_a;
  const float dot_b = scale_b == 0.0f ? 0.0f : fma(shift_b, b.sum, b.dot) * scale_b;
  t.dot = dot_a + dot_b;
  return t;
}

// A tile of 512 columns: lane l has z[i] of column 32*i + l.
METAL_FUNC TileSum tile_sum(thread const float* z) {
  TileSum t = strip_sum(z[0], z[1]);
  RLV_UNROLL
  for (uint i = 1; i < RLV_VOCAB_TILE / 64; i++) t = merge(t, strip_sum(z[2 * i], z[2 * i + 1]));
  return t;
}

// {max, sum, dot} of each tile of a row, merged in ascending order.
METAL_FUNC TileSum merged_tiles(device const float4* tiles, uint count) {
  TileSum all = empty_tile();
  for (uint tile = 0; tile < count; tile++) {
    const float4 t = tiles[tile];
    TileSum next;
    next.max = t.x;
    next.sum = t.y;
    next.dot = t.z;
    if (tile == 0)
      all = next;
    else
      all = merge(all, next);
  }
  return all;
}

METAL_FUNC float lse_of(TileSum t) { return t.max + log(t.sum); }

// H = lse - sum p*z = log(sum) - dot/sum, nats.
METAL_FUNC float entropy_of(TileSum t) { return log(t.sum) - t.dot / t.sum; }
