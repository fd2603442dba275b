#include "simdgroup.h"
#include <algorithm>
#include <cmath>
#include "number_formats.h"

// A product and its sum are never fused: the same bits on every processor.
#pragma clang fp contract(off)

namespace soft {

namespace {

constexpr uint32_t kUndefined = 0x7fc0dead;  // what a lane reads where Metal leaves the value open

uint32_t lane_bit(uint32_t lane) { return 1u << lane; }

float combine_float(uint32_t operation, float a, float b) {
  switch (operation) {
    case kSimdSum:
      return a + b;
    case kSimdMax:
      return std::fmax(a, b);
    case kSimdMin:
      return std::fmin(a, b);
    default:
      return a * b;
  }
}

template <typename T>
uint32_t combine_integer(uint32_t operation, uint32_t a, uint32_t b) {
  const T x = T(a), y = T(b);
  switch (operation) {
    case kSimdSum:
      return a + b;
    case kSimdMax:
      return uint32_t(std::max(x, y));
    case kSimdMin:
      return uint32_t(std::min(x, y));
    case kSimdProduct:
      return a * b;
    case kSimdAnd:
      return a & b;
    case kSimdOr:
      return a | b;
    default:
      return a ^ b;
  }
}

uint32_t to_bits(float x) { return bits_as<uint32_t>(x); }
float to_float(uint32_t bits) { return bits_as<float>(bits); }

// Halves the distance from 16 to 1, so the order of sums is fixed; absent lanes are skipped.
uint32_t reduce_some(const Simdgroup& g) {
  uint32_t values[kLanes], mask = g.mask;
  std::copy(g.in, g.in + kLanes, values);
  for (uint32_t step = kLanes / 2; step > 0; step /= 2)
    for (uint32_t i = 0; i < step; i++) {
      if (!(mask & lane_bit(i + step))) continue;
      const bool both = mask & lane_bit(i);
      values[i] = both ? combine(g.operation, g.type, values[i], values[i + step]) : values[i + step];
      mask |= lane_bit(i);
    }
  return values[0];
}

template <uint32_t kOperation>
uint32_t reduce_floats(const Simdgroup& g) {
  float values[kLanes];
  for (uint32_t i = 0; i < kLanes; i++) values[i] = to_float(g.in[i]);
  for (uint32_t step = kLanes / 2; step > 0; step /= 2)
    for (uint32_t i = 0; i < step; i++)
      values[i] = kOperation == kSimdSum ? values[i] + values[i + step]
                                         : combine_float(kOperation, values[i], values[i + step]);
  return to_bits(values[0]);
}

uint32_t reduce(const Simdgroup& g) {
  if (g.type == kFloat && g.mask == ~0u) {
    if (g.operation == kSimdSum) return reduce_floats<kSimdSum>(g);
    if (g.operation == kSimdMax) return reduce_floats<kSimdMax>(g);
    if (g.operation == kSimdMin) return reduce_floats<kSimdMin>(g);
  }
  return reduce_some(g);
}

void scan(Simdgroup& g) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < kLanes; i++) {
    if (!(g.mask & lane_bit(i))) continue;
    const uint32_t next = combine(kSimdSum, g.type, sum, g.in[i]);
    g.out[i] = g.operation == kSimdExclusiveSum ? sum : next;
    sum = next;
  }
}

// The lane that `lane` reads, possibly outside 0..31.
int source_lane(uint32_t operation, int lane, int argument) {
  switch (operation) {
    case kSimdShuffleXor:
      return lane ^ argument;
    case kSimdShuffleDown:
      return lane + argument;
    case kSimdShuffleUp:
      return lane - argument;
    case kSimdRotateDown:
      return (lane + argument) & 31;
    case kSimdRotateUp:
      return (lane - argument) & 31;
    default:
      return argument;  // shuffle, broadcast
  }
}

SimdFault shuffle(Simdgroup& g) {
  SimdFault fault;
  const bool shifts = g.operation == kSimdShuffleDown || g.operation == kSimdShuffleUp;
  const uint32_t first = uint32_t(__builtin_ctz(g.mask));
  for (uint32_t i = 0; i < kLanes; i++) {
    if (!(g.mask & lane_bit(i))) continue;
    const int from = source_lane(g.operation, int(i), int(g.argument[i]));
    const bool inside = from >= 0 && from < int(kLanes);
    const bool active = inside && g.mask & lane_bit(uint32_t(from));
    g.out[i] = active ? g.in[from] : shifts ? g.in[i] : kUndefined;
    if (g.operation != kSimdShuffle && g.argument[i] != g.argument[first])
      fault = {"lanes disagree on an argument that must be uniform", i};
    else if (!active && (inside || !shifts))
      fault = {"value taken from an inactive lane", i};
  }
  return fault;
}

}  // namespace

const char* simd_operation_name(uint32_t operation) {
  static const char* const reductions[] = {"simd_sum",
                                           "simd_max",
                                           "simd_min",
                                           "simd_product",
                                           "simd_and",
                                           "simd_or",
                                           "simd_xor",
                                           "simd_prefix_inclusive_sum",
                                           "simd_prefix_exclusive_sum",
                                           "simd_broadcast_first"};
  static const char* const shuffles[] = {
      "simd_shuffle",   "simd_shuffle_xor",         "simd_shuffle_down",     "simd_shuffle_up",
      "simd_broadcast", "simd_shuffle_rotate_down", "simd_shuffle_rotate_up"};
  if (operation <= kSimdBroadcastFirst) return reductions[operation];
  if (operation >= kSimdShuffle && operation <= kSimdRotateUp) return shuffles[operation - kSimdShuffle];
  return "simd operation";
}

uint32_t combine(uint32_t operation, uint32_t type, uint32_t a, uint32_t b) {
  const bool bitwise = operation >= kSimdAnd && operation <= kSimdXor;
  switch (bitwise ? uint32_t(kUint) : type) {
    case kFloat:
      return to_bits(combine_float(operation, to_float(a), to_float(b)));
    case kHalf:
      return float_to_half(combine_float(operation, half_to_float(uint16_t(a)), half_to_float(uint16_t(b))));
    case kBfloat:
      return float_to_bfloat(
          combine_float(operation, bfloat_to_float(uint16_t(a)), bfloat_to_float(uint16_t(b))));
    case kInt:
      return combine_integer<int32_t>(operation, a, b);
    case kShort:
      return combine_integer<int16_t>(operation, a, b);
    case kChar:
      return combine_integer<int8_t>(operation, a, b);
    case kUshort:
      return combine_integer<uint16_t>(operation, a, b);
    case kUchar:
      return combine_integer<uint8_t>(operation, a, b);
    default:
      return combine_integer<uint32_t>(operation, a, b);
  }
}

SimdFault compute_simd(Simdgroup& g) {
  if (g.operation <= kSimdXor) {
    std::fill(g.out, g.out + kLanes, reduce(g));
  } else if (g.operation <= kSimdExclusiveSum) {
    scan(g);
  } else if (g.operation == kSimdBroadcastFirst) {
    std::fill(g.out, g.out + kLanes, g.in[__builtin_ctz(g.mask)]);
  } else {
    return shuffle(g);
  }
  return {};
}

#if defined(__x86_64__) && defined(__linux__)
#define SOFT_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define SOFT_VECTOR_CLONES
#endif

SOFT_VECTOR_CLONES void compute_matrix(Simdgroup& g) {
  using Row = float __attribute__((vector_size(32)));
  Row sums[8];
  std::memcpy(sums, g.c, sizeof sums);
  for (int k = 0; k < 8; k++) {
    Row b;
    std::memcpy(&b, g.b + 8 * k, sizeof b);
    for (int i = 0; i < 8; i++) sums[i] += g.a[8 * i + k] * b;
  }
  std::memcpy(g.d, sums, sizeof sums);
}

void load_fragment(float* to, uint64_t address, uint32_t type) {
  if (type == kFloat) {
    std::memcpy(to, reinterpret_cast<const void*>(address), 2 * sizeof(float));
    return;
  }
  uint16_t pair[2];
  std::memcpy(pair, reinterpret_cast<const void*>(address), sizeof pair);
  for (int i = 0; i < 2; i++) to[i] = type == kHalf ? half_to_float(pair[i]) : bfloat_to_float(pair[i]);
}

void store_fragment(uint64_t address, const float* from, uint32_t type) {
  if (type == kFloat) {
    std::memcpy(reinterpret_cast<void*>(address), from, 2 * sizeof(float));
    return;
  }
  uint16_t pair[2];
  for (int i = 0; i < 2; i++) pair[i] = type == kHalf ? float_to_half(from[i]) : float_to_bfloat(from[i]);
  std::memcpy(reinterpret_cast<void*>(address), pair, sizeof pair);
}

}  // namespace soft
