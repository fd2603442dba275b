// Does MSL's bfloat compile here and round to nearest even? Needs MSL 3.1; without it the probe says no.
#include <metal_stdlib>
using namespace metal;

// x[32 + i] = float(bfloat(x[i])). One simdgroup.
kernel void probe_bfloat(device float* x [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  x[32 + i] = float(bfloat(x[i]));
}
