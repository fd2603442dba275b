// What a layer does while decoding, in five dispatches beside attention: each kernel gives the bits of the single
// operations it stands for (src/ops/decode.ts), their roundings included. Rows in chunks of 8*ROWS, at most 64.
// Needs MSL 3.0 (simdgroup_matrix).
#include "gemm_skinny.h"
#include "rope_row.h"

// inverse[row] of the chunk's rows, by all four simdgroups. Ends with a barrier.
template <typename S, uint ROWS>
METAL_FUNC void norm_rows(threadgroup float* inverse, device const S* h, uint rows, uint cols, float eps, uint lane,
                      uint simdgroup) {
  for (uint row = simdgroup; row < ROWS * 8; row += 4) {
    const float r = row < rows ? inverse_rms(h + ulong(row) * cols, cols, eps, lane) : 0.0f;
    if (lane == 0) inverse[row] = r;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

template <typename S>
METAL_FUNC Rows<S> normalised_rows(device const S* h, device const float* weight, threadgroup const float* inverse,
                               Operand o) {
  Rows<S> rows;
  rows.x = h;
  rows.weight = weight;
  rows.inverse_rms = inverse;
  rows.o = o;
  return rows;
}

// q, k, v = rms_norm(h)*w^T + b. The columns of the three weights follow each other in the grid.
// Grid (ceil(nq/C) + 2*ceil(nkv/C), m/(8*ROWS)) with C = 64/SPANS columns, 128 threads, at most 16.3 KiB.
template <typename S, uint ROWS, uint SPANS>
kernel void norm_qkv(constant rlv_op_norm_qkv& a [[buffer(0)]], device S* q [[buffer(1)]], device S* k [[buffer(2)]],
                     device S* v [[buffer(3)]], device const S* h [[buffer(4)]],
                     device const float* weight [[buffer(5)]], device const S* wq [[buffer(6)]],
                     device const S* wk [[buffer(7)]], device const S* wv [[buffer(8)]],
                     device const float* bq [[buffer(9)]], device const float* bk [[buffer(10)]],
                     device const float* bv [[buffer(11)]], uint2 group [[threadgroup_position_in_grid]],
                     uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[4 * ROWS * 8 * 16];
  threadgroup float inverse[ROWS * 8];
  const uint columns = 64 / SPANS, tiles_q = ceil_div(a.nq, columns), tiles_kv = ceil_div(a.nkv, columns);
  const uint which = group.x < tiles_q ? 0 : group.x < tiles_q + tiles_kv ? 1 : 2;
  const uint tile = which == 0 ? group.x : which == 1 ? group.x - tiles_q : group.x - tiles_q - tiles_kv;
  const uint n = which == 0 ? a.nq : a.nkv;
  device const S* w = which == 0 ? wq : which == 1 ? wk : wv;
  device const float* bias = which == 0 ? bq : which == 1 ? bk : bv;
  const bool biased = (which == 0 ? a.bq.buffer : which == 1 ? a.bk.buffer : a.bv.buffer) != 0;
  device S* y = which == 0 ? q : which == 1 ? k : v;

  const uint row0 = group.y * ROWS * 8, rows = min(a.m - row0, ROWS * 8);
  device const S* h0 = h + ulong(row0) * a.cols;
  norm_rows<S, ROWS>(inverse, h0, rows, a.cols, a.eps, lane, simdgroup);
  simdgroup_float8x8 acc[ROWS][2];
  const Rows<S> x = normalised_rows(h0, weight, inverse, operand(a.cols, rows, a.cols));
  skinny_product<S, ROWS, true>(acc, x, w, operand(a.cols, n, a.cols),
                                tile * columns + (SPANS == 4 ? 0 : simdgroup * 16), first_step<SPANS>(a.cols, simdgroup),
                                last_step<SPANS>(a.cols, simdgroup), lane);
  store_parts<ROWS>(acc, parts, simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint at = t; at < 4 / SPANS * ROWS * 8 * 16; at += RLV_TILE_THREADS) {
    const uint block = at / (ROWS * 8 * 16), row = at / 16 % (ROWS * 8), c = at % 16;
    const uint col = tile * columns + block * 16 + c;
    if (row >= rows || col >= n) continue;
    float sum = sum_parts<ROWS, SPANS>(parts, block, row, c);
    if (biased) sum += bias[col];
    y[ulong(row0 + row) * n + col] = narrow<S>(sum);
  }
}

// y = residual + x*w^T, the product rounded first. Grid (n/C, m/(8*ROWS)), 128 threads, at most 16 KiB.
template <typename S, uint ROWS, uint SPANS>
kernel void linear_residual(constant rlv_op_linear_residual& a [[buffer(0)]], device S* y [[buffer(1)]],
                            device const S* residual [[buffer(2)]], device const S* x [[buffer(3)]],
                            device const S* w [[buffer(4)]], uint2 group [[threadgroup_position_in_grid]],
                            uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[4 * ROWS * 8 * 16];
  const uint columns = 64 / SPANS, row0 = group.y * ROWS * 8, rows = min(a.m - row0, ROWS * 8);
  simdgroup_float8x8 acc[ROWS][2];
  const Rows<S> from = plain_rows(x + ulong(row0) * a.k, operand(a.k, rows, a.k));
  skinny_product<S, ROWS, false>(acc, from, w, operand(a.k, a.n, a.k),
                                 group.x * columns + (SPANS == 4 ? 0 : simdgroup * 16), first_step<SPANS>(a.k, simdgroup),
                                 last_step<SPANS>(a.k, simdgroup), lane);
  store_parts<ROWS>(acc, parts, simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint at = t; at < 4 / SPANS * ROWS * 8 * 16; at += RLV_TILE_THREADS) {
    const uint block = at / (ROWS * 8 * 16), row = at / 16 % (ROWS * 8), c = at % 16;
    const uint col = group.x * columns + block * 16 + c;
    if (row >= rows || col >= a.n) continue;
    const ulong to = ulong(row0 + row) * a.n + col;
    y[to] = narrow<S>(widen(residual[to]) + widen(narrow<S>(sum_parts<ROWS, SPANS>(parts, block, row, c))));
  }
}

// y = silu(gate)*up, gate and up = rms_norm(h)*w^T, both rounded. A threadgroup has the same columns of both; its
// parts hold first the one, then the other. Grid (n/C, m/(8*ROWS)), 128 threads, at most 16.3 KiB.
template <typename S, uint ROWS, uint SPANS>
kernel void norm_swiglu(constant rlv_op_norm_swiglu& a [[buffer(0)]], device S* y [[buffer(1)]],
                        device const S* h [[buffer(2)]], device const float* weight [[buffer(3)]],
                        device const S* wgate [[buffer(4)]], device const S* wup [[buffer(5)]],
                        uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[4 * ROWS * 8 * 16];
  threadgroup float inverse[ROWS * 8];
  const uint columns = 64 / SPANS, row0 = group.y * ROWS * 8, rows = min(a.m - row0, ROWS * 8);
  constexpr uint MINE = 4 / SPANS * ROWS * 8 * 16 / RLV_TILE_THREADS;  // outputs of a thread
  device const S* h0 = h + ulong(row0) * a.cols;
  norm_rows<S, ROWS>(inverse, h0, rows, a.cols, a.eps, lane, simdgroup);
  const Rows<S> x = normalised_rows(h0, weight, inverse, operand(a.cols, rows, a.cols));
  const uint col0 = group.x * columns + (SPANS == 4 ? 0 : simdgroup * 16);
  const uint first = first_step<SPANS>(a.cols, simdgroup), last = last_step<SPANS>(a.cols, simdgroup);
  float gate[MINE];
  for (uint product = 0; product < 2; product++) {
    simdgroup_float8x8 acc[ROWS][2];
    skinny_product<S, ROWS, true>(acc, x, product == 0 ? wgate : wup, operand(a.cols, a.n, a.cols), col0, first, last,
                                  lane);
    store_parts<ROWS>(acc, parts, simdgroup);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    RLV_UNROLL
    for (uint i = 0; i < MINE; i++) {
      const uint at = t + i * RLV_TILE_THREADS;
      const uint block = at / (ROWS * 8 * 16), row = at / 16 % (ROWS * 8), c = at % 16;
      const uint col = group.x * columns + block * 16 + c;
      const float sum = widen(narrow<S>(sum_parts<ROWS, SPANS>(parts, block, row, c)));
      if (product == 0)
        gate[i] = sum;
      else if (row < rows && col < a.n)
        y[ulong(row0 + row) * a.n + col] = narrow<S>(silu_times(gate[i], sum));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

#define DECODE(kernel_name, rows, spans)                                                        \
  RLV_KERNEL(#kernel_name #rows "_" #spans "_f32", kernel_name, float, rows, spans)            \
  RLV_KERNEL(#kernel_name #rows "_" #spans "_bf16", kernel_name, bf16, rows, spans)
#define DECODE_ROWS(kernel_name) \
  DECODE(kernel_name, 1, 1)      \
  DECODE(kernel_name, 2, 1)      \
  DECODE(kernel_name, 4, 1)      \
  DECODE(kernel_name, 8, 1)      \
  DECODE(kernel_name, 1, 4)      \
  DECODE(kernel_name, 2, 4)      \
  DECODE(kernel_name, 4, 4)      \
  DECODE(kernel_name, 8, 4)
DECODE_ROWS(norm_qkv)
DECODE_ROWS(linear_residual)
DECODE_ROWS(norm_swiglu)

// One simdgroup has a (row, head): rotated queries to y, rotated keys and values to their pages.
// Grid ((heads + kv_heads)/4, rows), 128 threads.
template <typename S>
kernel void rope_append(constant rlv_op_rope_append& a [[buffer(0)]], device S* y [[buffer(1)]],
                        device S* kv [[buffer(2)]], device const S* q [[buffer(3)]], device const S* k [[buffer(4)]],
                        device const S* v [[buffer(5)]], device const float* qweight [[buffer(6)]],
                        device const float* kweight [[buffer(7)]], device const uint* positions [[buffer(8)]],
                        device const float* rope [[buffer(9)]], device const uint* slots [[buffer(10)]],
                        device atomic_uint* error [[buffer(RLV_ERROR)]], uint2 group [[threadgroup_position_in_grid]],
                        uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row = group.y, head = group.x * 4 + simdgroup, dim = a.head_dim;
  if (head >= a.heads + a.kv_heads) return;
  const uint position = positions[row];
  if (position >= a.max_pos) {
    if (head == 0 && lane == 0) report(error, RLV_BAD_ROPE_POSITION, position);
    return;
  }
  device const float* angles = rope + ulong(position) * dim;
  if (head < a.heads) {
    const ulong at = (ulong(row) * a.heads + head) * dim;
    rope_row<S>(y + at, 1, q + at, qweight, a.qweight.buffer != 0, angles, dim, a.eps, lane);
    return;
  }
  const uint slot = slots[row], kv_head = head - a.heads;
  if (slot == RLV_NONE) return;
  if (slot / RLV_PAGE >= a.kv_pages) {
    if (kv_head == 0 && lane == 0) report(error, RLV_BAD_APPEND_SLOT, slot);
    return;
  }
  const ulong from = (ulong(row) * a.kv_heads + kv_head) * dim;
  device S* page = kv + page_offset(slot / RLV_PAGE, a.kv_heads, kv_head, dim);
  rope_row<S>(page + slot % RLV_PAGE, RLV_PAGE, k + from, kweight, a.kweight.buffer != 0, angles, dim, a.eps, lane);
  for (uint d = lane; d < dim; d += RLV_SIMD) page[ulong(RLV_PAGE + slot % RLV_PAGE) * dim + d] = v[from + d];
}
RLV_KERNEL("rope_append_f32", rope_append, float)
RLV_KERNEL("rope_append_bf16", rope_append, bf16)
