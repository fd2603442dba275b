// IEEE double precision in integers, as far as the gradient norm needs it: non-negative values, sums and
// conversion. MSL has no double, and the sums of squares that the host reads are doubles.
#pragma once
#include "two_float.h"

#define DOUBLE_INFINITY 0x7ff0000000000000ul
#define DOUBLE_NAN 0x7ff8000000000000ul
#define DOUBLE_FRACTION 0x000ffffffffffffful
#define DOUBLE_ONE 0x0010000000000000ul  // the implicit bit

METAL_FUNC int double_exponent(ulong x) { return int(x >> 52); }
METAL_FUNC ulong double_mantissa(ulong x) {
  return double_exponent(x) == 0 ? x & DOUBLE_FRACTION : (x & DOUBLE_FRACTION) | DOUBLE_ONE;
}

// a + b, to nearest, ties to even; infinities and NaN stay.
METAL_FUNC ulong add_doubles(ulong a, ulong b) {
  if (a < b) {
    const ulong swap = a;
    a = b;
    b = swap;
  }
  if (a >= DOUBLE_INFINITY) return a;
  const int exponent_a = max(double_exponent(a), 1), exponent_b = max(double_exponent(b), 1);
  const int shift = exponent_a - exponent_b;
  // Eight more bits below; whatever is shifted out beyond them stays as one sticky bit.
  const ulong low = double_mantissa(b) << 8;
  const ulong aligned = shift > 60 ? (low != 0 ? 1ul : 0ul)
                                   : (low >> shift) | ((low & ((1ul << shift) - 1ul)) != 0 ? 1ul : 0ul);
  ulong sum = (double_mantissa(a) << 8) + aligned;
  int exponent = exponent_a;
  if (sum >> 61 != 0) {
    sum = (sum >> 1) | (sum & 1ul);
    exponent++;
  }
  const ulong rest = sum & 255ul;
  ulong mantissa = sum >> 8;
  if (rest > 128ul || (rest == 128ul && (mantissa & 1ul) != 0)) mantissa++;
  if (mantissa < DOUBLE_ONE) return mantissa;  // subnormal
  const ulong bits = (ulong(exponent - 1) << 52) + mantissa;
  return min(bits, DOUBLE_INFINITY);
}

// x*2^exponent for x >= 0 whose parts are finite float32 numbers.
METAL_FUNC ulong to_double(Two x, int exponent) {
  const uint high = as_type<uint>(x.high), low = as_type<uint>(abs(x.low));
  if (high < 0x00800000u) return 0;
  const int high_exponent = int(high >> 23), low_exponent = int(low >> 23);
  ulong mantissa = ulong((high & 0x7fffffu) | 0x800000u) << 36;  // 60 bits
  if (low_exponent > 0) {
    const int shift = high_exponent - low_exponent;
    const ulong part = ulong((low & 0x7fffffu) | 0x800000u) << 36;
    const ulong aligned = shift > 60 ? 0ul : part >> shift;
    mantissa = x.low < 0.0f ? mantissa - aligned : mantissa + aligned;
  }
  int binary = high_exponent - 127 + exponent + 1023;
  const int lead = int(clz(mantissa)) - 4;  // where bit 59 stays: 0
  if (lead > 0) {
    mantissa <<= lead;
    binary -= lead;
  } else if (lead < 0) {
    mantissa >>= -lead;
    binary -= lead;
  }
  ulong kept = mantissa >> 7;
  const ulong rest = mantissa & 127ul;
  if (rest > 64ul || (rest == 64ul && (kept & 1ul) != 0)) kept++;
  return (ulong(binary - 1) << 52) + kept;
}

// x = m*2^(2*half) with 1 <= m < 4; x finite and positive.
struct EvenSplit {
  Two m;
  int half_exponent;
};
METAL_FUNC EvenSplit split_double(ulong x) {
  int exponent = double_exponent(x) - 1023;
  ulong mantissa = double_mantissa(x);
  if (double_exponent(x) == 0) {
    const int lead = int(clz(mantissa)) - 11;
    mantissa <<= lead;
    exponent = -1022 - lead;
  }
  const int odd = exponent & 1;
  EvenSplit s;
  // 53 bits: the leading 24, then 29 of which a float holds the upper 24.
  const float high = float(uint(mantissa >> 29)), low = float(uint(mantissa & 0x1ffffffful));
  const float unit = odd != 0 ? 2.384185791015625e-7f : 1.1920928955078125e-7f;  // 2^-22, 2^-23
  s.m = fast_two_sum(high * unit, low * (unit * 1.862645149230957e-9f));         // 2^-29
  s.half_exponent = (exponent - odd) / 2;
  return s;
}
