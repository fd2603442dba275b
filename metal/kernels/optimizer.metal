// The optimizer step on flat parameters (in whatever layout: every element is on its own). Needs MSL 2.3.
#include "philox.h"
#include "soft_double.h"

// Squares of float32 do not fit float32, so they are summed in three ranges of magnitude (Blue 1978): g is scaled by
// a power of two that keeps its square, and the rest of it, normal.
#define RANGE_SMALL 9.313225746154785e-10f  // 2^-30
#define RANGE_LARGE 1099511627776.0f        // 2^40
#define SCALE_SMALL 80
#define SCALE_LARGE (-80)

#define NORM_THREADS 256u

struct Squares {
  Two small, medium, large;
};

METAL_FUNC Two with_square(Two sum, float x) {
  const Two square = two_product(x, x), high = two_sum(sum.high, square.high);
  return fast_two_sum(high.high, high.low + (sum.low + square.low));
}

// Sum over the threads of a group, complete in thread 0. `scratch`: one pair for each simdgroup.
METAL_FUNC Two group_sum(Two x, threadgroup float2* scratch, uint t, uint lane, uint simdgroup) {
  x = simd_sum_two(x);
  if (lane == 0) scratch[simdgroup] = float2(x.high, x.low);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  Two sum = two(0.0f, 0.0f);
  if (t == 0)
    for (uint s = 0; s < NORM_THREADS / RLV_SIMD; s++) sum = add(sum, two(scratch[s].x, scratch[s].y));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return sum;
}

// partial[block] = sum of g^2 over 65536 elements, as the bits of a double. One group of 256 threads has a block.
kernel void square_blocks(constant rlv_op_sq_norm& a [[buffer(0)]], device const float* g [[buffer(2)]],
                          device ulong* partial [[buffer(3)]], uint block [[threadgroup_position_in_grid]],
                          uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float2 scratch[NORM_THREADS / RLV_SIMD];
  Squares sums;
  sums.small = sums.medium = sums.large = two(0.0f, 0.0f);
  bool infinite = false, not_a_number = false;
  const ulong first = ulong(block) * RLV_NORM_BLOCK;
  const uint count = uint(min(ulong(RLV_NORM_BLOCK), a.n - first));
  for (uint i = t; i < count; i += NORM_THREADS) {
    const float x = g[first + i], size = abs(x);
    if (size < RANGE_SMALL) sums.small = with_square(sums.small, ldexp(x, SCALE_SMALL));
    else if (size < RANGE_LARGE) sums.medium = with_square(sums.medium, x);
    else if (size < INFINITY) sums.large = with_square(sums.large, ldexp(x, SCALE_LARGE));
    else if (size == INFINITY) infinite = true;
    else not_a_number = true;
  }
  const uint found = simd_or((infinite ? 1u : 0u) | (not_a_number ? 2u : 0u));
  threadgroup uint special[NORM_THREADS / RLV_SIMD];
  if (lane == 0) special[simdgroup] = found;
  const Two small = group_sum(sums.small, scratch, t, lane, simdgroup);
  const Two medium = group_sum(sums.medium, scratch, t, lane, simdgroup);
  const Two large = group_sum(sums.large, scratch, t, lane, simdgroup);
  if (t != 0) return;
  uint seen = 0;
  for (uint s = 0; s < NORM_THREADS / RLV_SIMD; s++) seen |= special[s];
  ulong sum = add_doubles(add_doubles(to_double(small, -2 * SCALE_SMALL), to_double(medium, 0)),
                          to_double(large, -2 * SCALE_LARGE));
  if (seen != 0) sum = (seen & 2u) != 0 ? DOUBLE_NAN : DOUBLE_INFINITY;
  partial[block] = sum;
}

// sums[slot] = sum of the blocks: lane l of one simdgroup takes blocks l, l + 32, ..; lane 0 adds the lanes in order.
kernel void square_sum(constant rlv_op_sq_norm& a [[buffer(0)]], device ulong* sums [[buffer(1)]],
                       device const ulong* partial [[buffer(3)]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup ulong lanes[RLV_SIMD];
  const uint blocks = ceil_div(a.n, RLV_NORM_BLOCK);
  ulong sum = 0;
  for (uint b = lane; b < blocks; b += RLV_SIMD) sum = add_doubles(sum, partial[b]);
  lanes[lane] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane != 0) return;
  for (uint l = 1; l < RLV_SIMD; l++) sum = add_doubles(sum, lanes[l]);
  sums[a.slot] = sum;
}

struct ClipResult {
  float norm, coef;
  uint nonfinite, reserved;
};

// norm = sqrt(sum of the slots, in order), coef = min(1, max_norm/(norm + 1e-6)) or 1 without max_norm. One thread.
kernel void clip_coef(constant rlv_op_clip_coef& a [[buffer(0)]], device ClipResult* result [[buffer(1)]],
                      device const ulong* sums [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  if (i != 0) return;
  ulong sum = 0;
  for (uint s = 0; s < a.slots; s++) sum = add_doubles(sum, sums[s]);
  Two norm = two(0.0f, 0.0f);
  if (sum >= DOUBLE_INFINITY) {
    norm.high = sum == DOUBLE_INFINITY ? INFINITY : NAN;
  } else if (sum != 0) {
    const EvenSplit x = split_double(sum);
    // One Newton step on the rounded root: twice its bits.
    const float root = sqrt(x.m.high);
    const Two rest = add(x.m, negative(two_product(root, root)));
    const Two refined = fast_two_sum(root, rest.high / (2.0f * root));
    norm = two(ldexp(refined.high, x.half_exponent), ldexp(refined.low, x.half_exponent));
  }
  const bool finite = abs(norm.high) < INFINITY;
  float coef = 1.0f;
  if (a.max_norm > 0.0f) {
    // 1e-6 as the double is 1e-6f + 2.525e-15.
    const Two ratio = divide(two(a.max_norm, 0.0f), add(norm, two(1e-6f, 2.5252427130e-15f)));
    coef = finite ? min(ratio.high, 1.0f) : norm.high == INFINITY ? 0.0f : 1.0f;
  }
  result->norm = norm.high;
  result->coef = coef;
  result->nonfinite = finite ? 0 : 1;
  result->reserved = 0;
}

// Constants of one step, rounded once from float64 by the host.
struct Adam {
  float decay, beta1, rest1, beta2, rest2, rate, root_c2, eps;
};

// A bfloat16 parameter is the high half of a float32 master whose bits are exactly (p << 16) + lo, lo signed; a tie
// goes up.
METAL_FUNC float load_master(device const float* p, device const short*, ulong i) { return p[i]; }
METAL_FUNC float load_master(device const bf16* p, device const short* lo, ulong i) {
  return as_type<float>((uint(p[i]) << 16) + uint(int(lo[i])));
}
METAL_FUNC void store_master(device float* p, device short*, ulong i, float x) { p[i] = x; }
METAL_FUNC void store_master(device bf16* p, device short* lo, ulong i, float x) {
  const uint bits = as_type<uint>(x);
  p[i] = bf16((bits + 0x8000u) >> 16);
  lo[i] = as_type<short>(ushort(bits));
}

// A bfloat16 moment takes one of its neighbours with the probability of their nearness: 16 random bits are added
// below the kept half.
METAL_FUNC void store_moment(device float* m, ulong i, float x, constant rlv_op_adamw&, uint) { m[i] = x; }
METAL_FUNC void store_moment(device bf16* m, ulong i, float x, constant rlv_op_adamw& a, uint which) {
  const uint random = philox_word(a.seed, a.tensor, uint(i), a.step, which, 0) >> 16;
  m[i] = bf16((as_type<uint>(x) + random) >> 16);
}

// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with torch.optim.AdamW's formulas, in place; nothing happens
// after a gradient that is not finite. Threads go over the elements in strides of the grid.
template <typename P, typename M>
kernel void adamw(constant rlv_op_adamw& a [[buffer(0)]], device P* p [[buffer(1)]], device short* lo [[buffer(2)]],
                  device const float* g [[buffer(3)]], device M* m [[buffer(4)]], device M* v [[buffer(5)]],
                  device const ClipResult* result [[buffer(6)]], constant Adam& k [[buffer(RLV_EXTRA)]],
                  uint t [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
  if (result->nonfinite != 0) return;
  const float coef = result->coef;
  for (ulong i = t; i < a.n; i += threads) {
    const float gradient = g[i] * coef;
    const float first = fma(k.rest1, gradient, k.beta1 * widen(m[i]));
    const float second = fma(k.rest2 * gradient, gradient, k.beta2 * widen(v[i]));
    const float scale = sqrt(second) / k.root_c2 + k.eps;
    store_master(p, lo, i, load_master(p, lo, i) * k.decay - (k.rate * first) / scale);
    store_moment(m, i, first, a, 0);
    store_moment(v, i, second, a, 1);
  }
}
RLV_KERNEL("adamw_f32_f32", adamw, float, float)
RLV_KERNEL("adamw_f32_bf16", adamw, float, bf16)
RLV_KERNEL("adamw_bf16_f32", adamw, bf16, float)
RLV_KERNEL("adamw_bf16_bf16", adamw, bf16, bf16)
