// RMSNorm with a fused residual and per-head RMSNorm with rotary embedding, forward and backward. A row (or a head of
// one) belongs to one simdgroup, so its bits do not depend on its neighbours. Needs MSL 2.3.
#include "rope_row.h"

#define ROWS_PER_GROUP 8     // simdgroups of the row kernels
#define ROPE_ROWS 4          // rows of a head that a simdgroup takes: the weight and the angles serve more than one
#define BLOCK_SIMDGROUPS 8   // simdgroups that share a block of 64 rows
#define HEAD_PARTS 16        // elements of a head per lane: head_dim up to 512

// y = rms_norm(h)*weight, h = x + delta rounded (written) or x itself. Grid (rows/8), 256 threads.
template <typename S>
kernel void rms_norm_fwd(constant rlv_op_rms_norm_fwd& a [[buffer(0)]], device S* y [[buffer(1)]],
                         device S* h [[buffer(2)]], device const S* x [[buffer(3)]],
                         device const S* delta [[buffer(4)]], device const float* weight [[buffer(5)]],
                         uint group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row = group * ROWS_PER_GROUP + simdgroup;
  if (row >= a.rows) return;
  const bool fused = a.delta.buffer != 0;
  const ulong at = ulong(row) * a.cols;
  const float inverse = inverse_rms_of_sum(x + at, delta + (fused ? at : 0), fused, a.cols, a.eps, lane);
  for (uint i = lane; i < a.cols; i += RLV_SIMD) {
    const S value = sum_element(x + at, delta + (fused ? at : 0), fused, i);
    if (fused) h[at + i] = value;
    y[at + i] = normalised<S>(widen(value), inverse, weight[i]);
  }
}
RLV_KERNEL("rms_norm_fwd_f32", rms_norm_fwd, float)
RLV_KERNEL("rms_norm_fwd_bf16", rms_norm_fwd, bf16)

// dx of a row: with n = h*r, dx = dres + r*(dy*w - n*mean(dy*w*n)). Returns r.
template <typename S>
METAL_FUNC float rms_norm_bwd_row(constant rlv_op_rms_norm_bwd& a, device S* dx, device const S* dy, device const S* h,
                              device const float* weight, device const S* dres, uint lane) {
  const float r = inverse_rms(h, a.cols, a.eps, lane);
  float sum = 0.0f;
  for (uint i = lane; i < a.cols; i += RLV_SIMD) sum = fma(widen(dy[i]) * weight[i], widen(h[i]), sum);
  const float mean = simd_sum(sum) * r / float(a.cols);
  for (uint i = lane; i < a.cols; i += RLV_SIMD) {
    const float d = r * fma(-(widen(h[i]) * r), mean, widen(dy[i]) * weight[i]);
    dx[i] = narrow<S>(a.dres.buffer != 0 ? d + widen(dres[i]) : d);
  }
  return r;
}

// dx alone, for a frozen weight. Grid (rows/8), 256 threads.
template <typename S>
kernel void rms_norm_bwd(constant rlv_op_rms_norm_bwd& a [[buffer(0)]], device S* dx [[buffer(1)]],
                         device const S* dy [[buffer(3)]], device const S* h [[buffer(4)]],
                         device const float* weight [[buffer(5)]], device const S* dres [[buffer(6)]],
                         uint group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row = group * ROWS_PER_GROUP + simdgroup;
  if (row >= a.rows) return;
  const ulong at = ulong(row) * a.cols;
  rms_norm_bwd_row(a, dx + at, dy + at, h + at, weight, dres + (a.dres.buffer != 0 ? at : 0), lane);
}
RLV_KERNEL("rms_norm_bwd_f32", rms_norm_bwd, float)
RLV_KERNEL("rms_norm_bwd_bf16", rms_norm_bwd, bf16)

// dx of a block of 64 rows, then partial[block][col] = sum of dy*n over its rows, in order.
// Grid (rows/64), 256 threads, 256 bytes.
template <typename S>
kernel void rms_norm_bwd_block(constant rlv_op_rms_norm_bwd& a [[buffer(0)]], device S* dx [[buffer(1)]],
                               device const S* dy [[buffer(3)]], device const S* h [[buffer(4)]],
                               device const float* weight [[buffer(5)]], device const S* dres [[buffer(6)]],
                               device float* partial [[buffer(7)]], uint group [[threadgroup_position_in_grid]],
                               uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                               uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float inverse[RLV_ROW_BLOCK];
  const uint row0 = group * RLV_ROW_BLOCK, rows = min(a.rows - row0, RLV_ROW_BLOCK);
  for (uint i = simdgroup; i < rows; i += BLOCK_SIMDGROUPS) {
    const ulong at = ulong(row0 + i) * a.cols;
    const float r =
        rms_norm_bwd_row(a, dx + at, dy + at, h + at, weight, dres + (a.dres.buffer != 0 ? at : 0), lane);
    if (lane == 0) inverse[i] = r;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint col = t; col < a.cols; col += BLOCK_SIMDGROUPS * RLV_SIMD) {
    float sum = 0.0f;
    for (uint i = 0; i < rows; i++) {
      const ulong at = ulong(row0 + i) * a.cols + col;
      sum = fma(widen(dy[at]), widen(h[at]) * inverse[i], sum);
    }
    partial[ulong(group) * a.cols + col] = sum;
  }
}
RLV_KERNEL("rms_norm_bwd_block_f32", rms_norm_bwd_block, float)
RLV_KERNEL("rms_norm_bwd_block_bf16", rms_norm_bwd_block, bf16)

// dweight[col] += the blocks in order. Grid (cols/128), 128 threads.
kernel void rms_norm_dweight(constant rlv_op_rms_norm_bwd& a [[buffer(0)]], device float* dweight [[buffer(2)]],
                             device const float* partial [[buffer(7)]], uint col [[thread_position_in_grid]]) {
  if (col >= a.cols) return;
  float sum = 0.0f;
  for (uint block = 0; block < ceil_div(a.rows, RLV_ROW_BLOCK); block++) sum += partial[ulong(block) * a.cols + col];
  dweight[col] += sum;
}

// Grid (heads/8, rows/4), 256 threads.
template <typename S>
kernel void qk_norm_rope_fwd(constant rlv_op_qk_norm_rope_fwd& a [[buffer(0)]], device S* y [[buffer(1)]],
                             device const S* x [[buffer(2)]], device const float* weight [[buffer(3)]],
                             device const uint* positions [[buffer(4)]], device const float* rope [[buffer(5)]],
                             device atomic_uint* error [[buffer(RLV_ERROR)]],
                             uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint head = group.x * ROWS_PER_GROUP + simdgroup;
  if (head >= a.heads) return;
  for (uint row = group.y * ROPE_ROWS; row < min(a.rows, (group.y + 1) * ROPE_ROWS); row++) {
    const uint position = positions[row];
    if (position >= a.max_pos) {
      if (head == 0 && lane == 0) report(error, RLV_BAD_ROPE_POSITION, position);
      continue;
    }
    const ulong at = (ulong(row) * a.heads + head) * a.head_dim;
    rope_row<S>(y + at, 1, x + at, weight, a.weight.buffer != 0, rope + ulong(position) * a.head_dim, a.head_dim,
                a.eps, lane);
  }
}
RLV_KERNEL("qk_norm_rope_fwd_f32", qk_norm_rope_fwd, float)
RLV_KERNEL("qk_norm_rope_fwd_bf16", qk_norm_rope_fwd, bf16)

// The cotangent of the normalised head: dy rotated back. Elements i and i + half.
METAL_FUNC float2 rotated_back(float low, float high, float cosine, float sine) {
  return float2(fma(low, cosine, high * sine), fma(high, cosine, -(low * sine)));
}

// dx of one (row, head); with a norm, dn*n is added to the lane's dweight[2*j], dweight[2*j + 1] of elements
// lane + 32*j and that + half.
template <typename S>
METAL_FUNC void qk_norm_rope_bwd_head(constant rlv_op_qk_norm_rope_bwd& a, device S* dx, device const S* dy,
                                  device const S* x, device const float* weight, device const float* angles,
                                  thread float* dweight, uint lane) {
  const uint half_dim = a.head_dim / 2;
  const bool norm = a.weight.buffer != 0;
  const float r = norm ? inverse_rms(x, a.head_dim, a.eps, lane) : 1.0f;
  float sum = 0.0f;
  if (norm)
    for (uint i = lane; i < half_dim; i += RLV_SIMD) {
      const float2 dn = rotated_back(widen(dy[i]), widen(dy[i + half_dim]), angles[i], angles[i + half_dim]);
      sum = fma(dn.x * weight[i], widen(x[i]) * r, sum);
      sum = fma(dn.y * weight[i + half_dim], widen(x[i + half_dim]) * r, sum);
    }
  const float mean = norm ? simd_sum(sum) / float(a.head_dim) : 0.0f;
  RLV_UNROLL
  for (uint part = 0; part < HEAD_PARTS; part += 2) {
    const uint i = lane + RLV_SIMD * (part / 2);
    if (i >= half_dim) continue;
    const float2 dn = rotated_back(widen(dy[i]), widen(dy[i + half_dim]), angles[i], angles[i + half_dim]);
    if (!norm) {
      dx[i] = narrow<S>(dn.x);
      dx[i + half_dim] = narrow<S>(dn.y);
      continue;
    }
    const float low = widen(x[i]) * r, high = widen(x[i + half_dim]) * r;
    dx[i] = narrow<S>(r * fma(-low, mean, dn.x * weight[i]));
    dx[i + half_dim] = narrow<S>(r * fma(-high, mean, dn.y * weight[i + half_dim]));
    dweight[part] = fma(dn.x, low, dweight[part]);
    dweight[part + 1] = fma(dn.y, high, dweight[part + 1]);
  }
}

// dx alone. Grid (heads/8, rows/4), 256 threads.
template <typename S>
kernel void qk_norm_rope_bwd(constant rlv_op_qk_norm_rope_bwd& a [[buffer(0)]], device S* dx [[buffer(1)]],
                             device const S* dy [[buffer(3)]], device const S* x [[buffer(4)]],
                             device const float* weight [[buffer(5)]], device const uint* positions [[buffer(6)]],
                             device const float* rope [[buffer(7)]], device atomic_uint* error [[buffer(RLV_ERROR)]],
                             uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint head = group.x * ROWS_PER_GROUP + simdgroup;
  if (head >= a.heads) return;
  float unused[HEAD_PARTS];
  RLV_UNROLL
  for (uint i = 0; i < HEAD_PARTS; i++) unused[i] = 0.0f;
  for (uint row = group.y * ROPE_ROWS; row < min(a.rows, (group.y + 1) * ROPE_ROWS); row++) {
    const uint position = positions[row];
    if (position >= a.max_pos) {
      if (head == 0 && lane == 0) report(error, RLV_BAD_ROPE_BWD_POSITION, position);
      continue;
    }
    const ulong at = (ulong(row) * a.heads + head) * a.head_dim;
    qk_norm_rope_bwd_head(a, dx + at, dy + at, x + at, weight, rope + ulong(position) * a.head_dim, unused, lane);
  }
}
RLV_KERNEL("qk_norm_rope_bwd_f32", qk_norm_rope_bwd, float)
RLV_KERNEL("qk_norm_rope_bwd_bf16", qk_norm_rope_bwd, bf16)

// dx of a block of 64 rows, and partial[block][i] = sum of dn*n over its (row, head): each simdgroup takes every
// eighth of them, then simdgroups are added in order. Grid (rows/64), 256 threads, 16 KiB.
template <typename S>
kernel void qk_norm_rope_bwd_block(constant rlv_op_qk_norm_rope_bwd& a [[buffer(0)]], device S* dx [[buffer(1)]],
                                   device const S* dy [[buffer(3)]], device const S* x [[buffer(4)]],
                                   device const float* weight [[buffer(5)]],
                                   device const uint* positions [[buffer(6)]], device const float* rope [[buffer(7)]],
                                   device float* partial [[buffer(8)]], device atomic_uint* error [[buffer(RLV_ERROR)]],
                                   uint group [[threadgroup_position_in_grid]],
                                   uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float sums[BLOCK_SIMDGROUPS][HEAD_PARTS * RLV_SIMD];
  const uint row0 = group * RLV_ROW_BLOCK, rows = min(a.rows - row0, RLV_ROW_BLOCK), half_dim = a.head_dim / 2;
  float dweight[HEAD_PARTS];
  RLV_UNROLL
  for (uint i = 0; i < HEAD_PARTS; i++) dweight[i] = 0.0f;
  for (uint pair = simdgroup; pair < rows * a.heads; pair += BLOCK_SIMDGROUPS) {
    const uint row = row0 + pair / a.heads, head = pair % a.heads, position = positions[row];
    if (position >= a.max_pos) {
      if (lane == 0) report(error, RLV_BAD_ROPE_BWD_POSITION, position);
      continue;
    }
    const ulong at = (ulong(row) * a.heads + head) * a.head_dim;
    qk_norm_rope_bwd_head(a, dx + at, dy + at, x + at, weight, rope + ulong(position) * a.head_dim, dweight, lane);
  }
  RLV_UNROLL
  for (uint part = 0; part < HEAD_PARTS; part += 2) {
    const uint i = lane + RLV_SIMD * (part / 2);
    if (i >= half_dim) continue;
    sums[simdgroup][i] = dweight[part];
    sums[simdgroup][i + half_dim] = dweight[part + 1];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = t; i < 2 * half_dim; i += BLOCK_SIMDGROUPS * RLV_SIMD) {
    float sum = 0.0f;
    for (uint s = 0; s < BLOCK_SIMDGROUPS; s++) sum += sums[s][i];
    partial[ulong(group) * a.head_dim + i] = sum;
  }
}
RLV_KERNEL("qk_norm_rope_bwd_block_f32", qk_norm_rope_bwd_block, float)
RLV_KERNEL("qk_norm_rope_bwd_block_bf16", qk_norm_rope_bwd_block, bf16)

// dweight[i] += the blocks in order. Grid (head_dim/128), 128 threads.
kernel void qk_norm_rope_dweight(constant rlv_op_qk_norm_rope_bwd& a [[buffer(0)]],
                                 device float* dweight [[buffer(2)]], device const float* partial [[buffer(8)]],
                                 uint i [[thread_position_in_grid]]) {
  if (i >= a.head_dim) return;
  float sum = 0.0f;
  for (uint block = 0; block < ceil_div(a.rows, RLV_ROW_BLOCK); block++) sum += partial[ulong(block) * a.head_dim + i];
  dweight[i] += sum;
}
