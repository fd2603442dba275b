// Pairs of floats that stand for their unevaluated sum, about 48 bits (Dekker 1971; Shewchuk 1997): MSL has
// no double. Needs exact float32 arithmetic: no fast math, no contraction.
#pragma once
#include "common.h"

struct Two {
  float high, low;
};
METAL_FUNC Two two(float high, float low) {
  Two t;
  t.high = high;
  t.low = low;
  return t;
}
// |a| >= |b|.
METAL_FUNC Two fast_two_sum(float a, float b) {
  const float sum = a + b;
  return two(sum, b - (sum - a));
}
METAL_FUNC Two two_sum(float a, float b) {
  const float sum = a + b, other = sum - a;
  return two(sum, (a - (sum - other)) + (b - other));
}
METAL_FUNC Two two_product(float a, float b) {
  const float product = a * b;
  return two(product, fma(a, b, -product));
}
// Symmetric: every lane of a butterfly gets the same bits.
METAL_FUNC Two add(Two a, Two b) {
  const Two high = two_sum(a.high, b.high);
  return fast_two_sum(high.high, high.low + (a.low + b.low));
}
METAL_FUNC Two negative(Two a) { return two(-a.high, -a.low); }
METAL_FUNC Two multiply(Two a, Two b) {
  const Two p = two_product(a.high, b.high);
  return fast_two_sum(p.high, p.low + fma(a.high, b.low, a.low * b.high));
}
METAL_FUNC Two divide(Two a, Two b) {
  const float q = a.high / b.high;
  const Two rest = add(a, negative(multiply(two(q, 0.0f), b)));
  return fast_two_sum(q, rest.high / b.high);
}
METAL_FUNC bool less(Two a, Two b) { return a.high < b.high || (a.high == b.high && a.low < b.low); }

// Sum over a simdgroup, the same in every lane.
METAL_FUNC Two simd_sum_two(Two x) {
  for (ushort step = 16; step > 0; step /= 2) {
    Two other;
    other.high = simd_shuffle_xor(x.high, step);
    other.low = simd_shuffle_xor(x.low, step);
    x = add(x, other);
  }
  return x;
}
