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
template <typename G>
kernel void square_blocks(constant rlv_op_sq_norm& a [[buffer(0)]], device const G* g [[buffer(2)]],
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
    const float x = widen(g[first + i]), size = abs(x);
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
RLV_KERNEL("square_blocks_f32", square_blocks, float)
RLV_KERNEL("square_blocks_bf16", square_blocks, bf16)

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

// One element: moments and master of the next step.
struct Updated {
  float first, second, master;
};
METAL_FUNC Updated updated(constant Adam& k, float gradient, float m, float v, float master) {
  Updated u;
  u.first = fma(k.rest1, gradient, k.beta1 * m);
  u.second = fma(k.rest2 * gradient, gradient, k.beta2 * v);
  const float scale = sqrt(u.second) / k.root_c2 + k.eps;
  u.master = master * k.decay - (k.rate * u.first) / scale;
  return u;
}

// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with torch.optim.AdamW's formulas, in place; nothing happens
// after a gradient that is not finite. Threads go over the elements in strides of the grid.
template <typename P, typename G, typename M>
kernel void adamw(constant rlv_op_adamw& a [[buffer(0)]], device P* p [[buffer(1)]], device short* lo [[buffer(2)]],
                  device const G* g [[buffer(3)]], device M* m [[buffer(4)]], device M* v [[buffer(5)]],
                  device const ClipResult* result [[buffer(8)]], constant Adam& k [[buffer(RLV_EXTRA)]],
                  uint t [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
  if (result->nonfinite != 0) return;
  const float coef = result->coef;
  for (ulong i = t; i < a.n; i += threads) {
    const Updated u = updated(k, widen(g[i]) * coef, widen(m[i]), widen(v[i]), load_master(p, lo, i));
    store_master(p, lo, i, u.master);
    store_moment(m, i, u.first, a, 0);
    store_moment(v, i, u.second, a, 1);
  }
}
RLV_KERNEL("adamw_f32_f32_f32", adamw, float, float, float)
RLV_KERNEL("adamw_f32_f32_bf16", adamw, float, float, bf16)
RLV_KERNEL("adamw_f32_bf16_f32", adamw, float, bf16, float)
RLV_KERNEL("adamw_f32_bf16_bf16", adamw, float, bf16, bf16)
RLV_KERNEL("adamw_bf16_f32_f32", adamw, bf16, float, float)
RLV_KERNEL("adamw_bf16_f32_bf16", adamw, bf16, float, bf16)
RLV_KERNEL("adamw_bf16_bf16_f32", adamw, bf16, bf16, float)
RLV_KERNEL("adamw_bf16_bf16_bf16", adamw, bf16, bf16, bf16)

// Moments of 8 bits: floats relative to the largest of their block, which is kept as its float32 scale. The codes and
// why they are so: src/ops/optimizer.ts.
#define CODE_SHIFT 20
#define FIRST_ZERO 0x37900000   // where code 0 of m would be: the bits of 1 less 127 codes
#define SECOND_ZERO 0x2f900000  // of v: less 255 codes
#define FIRST_LEAST 0x37a00000  // code 1 of m: 1.25 * 2^-16
#define PER_FIRST_LEAST (0.8f * 4294967296.0f)  // 2^16 / (1.25 * 2^-16)
#define LEAST_SCALE 8.077935669463161e-28f      // 2^-90
#define LARGEST_MOMENT 8.507059173023462e37f    // 2^126

METAL_FUNC float decode_first(uint code, float scale) {
  const uint k = code & 127u;
  const uint bits = k == 0 ? 0u : uint(FIRST_ZERO) + (k << CODE_SHIFT);
  return as_type<float>(bits | (code >> 7 << 31)) * scale;
}
METAL_FUNC float decode_second(uint k, float scale) {
  return as_type<float>(k == 0 ? 0u : uint(SECOND_ZERO) + (k << CODE_SHIFT)) * scale;
}
// A product with the scale's inverse may miss 1 by some units of the last place: half of the 16 values that the random
// bits do not reach, added below them, brings it to code 1 and not beyond.
METAL_FUNC uchar encode_first(float x, float inverse, uint noise) {
  const float part = min(abs(x) * inverse, 1.0f);
  const int bits = as_type<int>(part);
  const int least = part * PER_FIRST_LEAST > float(noise) + 0.5f ? 1 : 0;
  const int k = bits < FIRST_LEAST ? least : (bits - FIRST_ZERO + int(noise << 4) + 8) >> CODE_SHIFT;
  return uchar(k == 0 ? 0u : uint(k) | (as_type<uint>(x) >> 31 << 7));
}
METAL_FUNC uchar encode_second(float x, float inverse, uint noise) {
  const int bits = as_type<int>(min(x * inverse, 1.0f));
  const int k = (bits - SECOND_ZERO + int(noise << 4) + 8) >> CODE_SHIFT;
  return uchar(max(k, x > 0.0f ? 1 : 0));
}

#define LANE_MOMENTS (RLV_MOMENT_BLOCK / RLV_SIMD)

// The same with moments of 8 bits. A simdgroup has a block of 256 elements, lane l every 32nd from l on; simdgroups go
// over the blocks in strides of the grid.
template <typename P, typename G>
kernel void adamw_blocks(constant rlv_op_adamw& a [[buffer(0)]], device P* p [[buffer(1)]],
                         device short* lo [[buffer(2)]], device const G* g [[buffer(3)]],
                         device uchar* m [[buffer(4)]], device uchar* v [[buffer(5)]],
                         device float* m_scale [[buffer(6)]], device float* v_scale [[buffer(7)]],
                         device const ClipResult* result [[buffer(8)]], constant Adam& k [[buffer(RLV_EXTRA)]],
                         uint t [[thread_position_in_grid]], uint threads [[threads_per_grid]],
                         uint lane [[thread_index_in_simdgroup]]) {
  if (result->nonfinite != 0) return;
  const float coef = result->coef;
  const uint blocks = ceil_div(a.n, RLV_MOMENT_BLOCK);
  for (uint block = t / RLV_SIMD; block < blocks; block += threads / RLV_SIMD) {
    const ulong begin = ulong(block) * RLV_MOMENT_BLOCK + lane;
    // Lane 0 will overwrite them.
    const float old_m_scale = simd_broadcast(lane == 0 ? m_scale[block] : 0.0f, 0);
    const float old_v_scale = simd_broadcast(lane == 0 ? v_scale[block] : 0.0f, 0);
    float first[LANE_MOMENTS], second[LANE_MOMENTS], largest_m = 0.0f, largest_v = 0.0f;
    RLV_UNROLL
    for (uint j = 0; j < LANE_MOMENTS; j++) {
      const ulong i = begin + j * RLV_SIMD;
      first[j] = 0.0f;
      second[j] = 0.0f;
      if (i >= a.n) continue;
      const Updated u = updated(k, widen(g[i]) * coef, decode_first(m[i], old_m_scale),
                                decode_second(v[i], old_v_scale), load_master(p, lo, i));
      store_master(p, lo, i, u.master);
      first[j] = u.first;
      second[j] = u.second;
      largest_m = max(largest_m, abs(u.first));
      largest_v = max(largest_v, u.second);
    }
    largest_m = min(simd_max(largest_m), LARGEST_MOMENT);
    largest_v = min(simd_max(largest_v), LARGEST_MOMENT);
    const float new_m_scale = largest_m < LEAST_SCALE ? 0.0f : largest_m;
    const float new_v_scale = largest_v == 0.0f ? 0.0f : max(largest_v, LEAST_SCALE);
    const float m_inverse = new_m_scale > 0.0f ? 1.0f / new_m_scale : 0.0f;
    const float v_inverse = new_v_scale > 0.0f ? 1.0f / new_v_scale : 0.0f;
    if (lane == 0) {
      m_scale[block] = new_m_scale;
      v_scale[block] = new_v_scale;
    }
    // Word w of counter lane + 32h is that of element 64w + 32h + lane.
    RLV_UNROLL
    for (uint h = 0; h < 2; h++) {
      const uint4 words = philox_block(a.seed, a.tensor, block * 64 + h * RLV_SIMD + lane, a.step, 2, 0);
      RLV_UNROLL
      for (uint w = 0; w < 4; w++) {
        const uint j = 2 * w + h;
        const ulong i = begin + j * RLV_SIMD;
        if (i >= a.n) continue;
        m[i] = encode_first(first[j], m_inverse, words[w] >> 16);
        v[i] = encode_second(second[j], v_inverse, words[w] & 0xffffu);
      }
    }
  }
}
RLV_KERNEL("adamw_blocks_f32_f32", adamw_blocks, float, float)
RLV_KERNEL("adamw_blocks_f32_bf16", adamw_blocks, float, bf16)
RLV_KERNEL("adamw_blocks_bf16_f32", adamw_blocks, bf16, float)
RLV_KERNEL("adamw_blocks_bf16_bf16", adamw_blocks, bf16, bf16)
