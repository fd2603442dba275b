// Does this GPU multiply 8x8 matrices in a simdgroup? Needs MSL 3.0.
#include <metal_stdlib>
using namespace metal;

// m = {a[8][8], b[8][8], c[8][8]}: c = a*b. One simdgroup.
kernel void probe_matrix(device float* m [[buffer(0)]]) {
  simdgroup_float8x8 a, b, c;
  simdgroup_load(a, m, 8);
  simdgroup_load(b, m + 64, 8);
  simdgroup_multiply(c, a, b);
  simdgroup_store(c, m + 128, 8);
}
