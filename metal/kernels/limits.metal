// What this GPU can do at most: products from registers, and reads. Needs MSL 3.0.
#include "common.h"

#define PRODUCTS 64   // rounds of 8 independent products, 1024 FLOP each
#define READS 16      // float4 per thread

// Every simdgroup multiplies from registers. out keeps the compiler from dropping it. 256 threads a group.
kernel void limit_products(device float* out [[buffer(0)]], uint group [[threadgroup_position_in_grid]]) {
  simdgroup_float8x8 c[8];
  const simdgroup_float8x8 a = simdgroup_float8x8(0.5f), b = simdgroup_float8x8(float(group == 0));
  RLV_UNROLL
  for (uint i = 0; i < 8; i++) c[i] = simdgroup_float8x8(float(i));
  for (uint round = 0; round < PRODUCTS; round++)
    RLV_UNROLL
    for (uint i = 0; i < 8; i++) simdgroup_multiply_accumulate(c[i], a, b, c[i]);
  float sum = 0.0f;
  RLV_UNROLL
  for (uint i = 0; i < 8; i++) sum += c[i].thread_elements()[0];
  if (sum == -1.0f) out[group] = sum;
}

// Every thread adds READS vectors, a grid apart. count float4 of x; out as above. 256 threads a group.
kernel void limit_reads(device float* out [[buffer(0)]], device const float4* x [[buffer(1)]],
                        constant uint& count [[buffer(2)]], uint i [[thread_position_in_grid]],
                        uint threads [[threads_per_grid]]) {
  float4 sum = float4(0.0f);
  for (uint r = 0; r < READS; r++) {
    const uint at = i + r * threads;
    if (at < count) sum += x[at];
  }
  if (sum.x + sum.y + sum.z + sum.w == -1.0f) out[0] = sum.x;
}
