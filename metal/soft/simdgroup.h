// What 32 lanes compute together: reductions, scans, shuffles and the 8x8 matrix product.
#pragma once
#include <cstdint>
#include "executor.h"
#include "fiber.h"

namespace soft {

// Numbers in the interface to metal_stdlib.
enum SimdOperation : uint32_t {
  kSimdSum = 0,
  kSimdMax,
  kSimdMin,
  kSimdProduct,
  kSimdAnd,
  kSimdOr,
  kSimdXor,
  kSimdInclusiveSum,
  kSimdExclusiveSum,
  kSimdBroadcastFirst,
  kSimdShuffle = 16,
  kSimdShuffleXor,
  kSimdShuffleDown,
  kSimdShuffleUp,
  kSimdBroadcast,
  kSimdRotateDown,
  kSimdRotateUp,
};
enum ValueType : uint32_t {
  kFloat = 0,
  kInt,
  kUint,
  kHalf,
  kBfloat,
  kShort,
  kUshort,
  kChar,
  kUchar,
  kBool,
};
const char* simd_operation_name(uint32_t operation);

// sum, max, min or product of two values as bits; what atomics use too.
uint32_t combine(uint32_t operation, uint32_t type, uint32_t a, uint32_t b);

// Of the calls that all lanes of a simdgroup make together.
enum class Rendezvous : uint32_t { kNone, kBarrier, kSimd, kMatrix };

struct alignas(64) Simdgroup {
  uint32_t live = 0;     // lanes whose threads have not returned
  uint32_t arrived = 0;  // at the current rendezvous
  uint32_t mask = 0;     // lanes that have arrived
  Rendezvous kind = Rendezvous::kNone;
  uint32_t operation = 0, type = 0;
  int line = 0;
  uint64_t site = 0;
  uint32_t phase_threadgroup = 1, phase_device = 1;  // begun by simdgroup barriers
  Fiber* waiting[kLanes];
  uint32_t in[kLanes], out[kLanes], argument[kLanes];
  alignas(64) float a[64], b[64], c[64], d[64];  // row-major
};

// A misuse that does not stop the operation; lane says where.
struct SimdFault {
  const char* what = nullptr;
  uint32_t lane = 0;
};
// in, argument -> out for the lanes of the mask.
SimdFault compute_simd(Simdgroup& group);
// d = a * b + c, each element summed over ascending k, product and sum rounded separately.
void compute_matrix(Simdgroup& group);

// Lane -> its two consecutive elements in a row-major 8x8 matrix, and their conversion.
constexpr uint32_t fragment_position(uint32_t lane) {
  const uint32_t quad = lane / 4, row = (quad & 4) + lane / 2 % 4, column = (quad & 2) * 2 + lane % 2 * 2;
  return row * 8 + column;
}
void load_fragment(float* to, uint64_t address, uint32_t type);
void store_fragment(uint64_t address, const float* from, uint32_t type);

}  // namespace soft
