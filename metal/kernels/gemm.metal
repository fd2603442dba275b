// Products with packed weights, in three transposes, and the bias gradient. float32 accumulation throughout.
// Needs MSL 3.0 (simdgroup_matrix).
#include "gemm_skinny.h"

// Tile row and column of a threadgroup. Groups side by side go along the shorter side of the result, so that they
// read the same tile of the larger operand while it is in the cache.
METAL_FUNC uint2 tile_at(uint2 group, uint rows, uint cols) {
  return rows <= cols ? group : uint2(group.y, group.x);
}

METAL_FUNC float epilogue(constant rlv_op_gemm_nt& a, float sum, device const float* bias, float before, uint col) {
  if (a.bias.buffer != 0) sum += bias[col];
  return a.accumulate != 0 ? sum + before : sum;
}

// y[m][n] (+)= x[m][k]*w[n][k]^T + bias[n], tiles of 64 x 64: 4 simdgroups of 32 x 32. For more than 64 rows.
// Grid (m/64, n/64) by tile_at, 128 threads. 16.5 KiB of threadgroup memory, none if DIRECT.
template <typename S, typename Y, bool DIRECT>
kernel void gemm_nt(constant rlv_op_gemm_nt& a [[buffer(0)]], device Y* y [[buffer(1)]],
                    device const S* x [[buffer(2)]], device const S* w [[buffer(3)]],
                    device const float* bias [[buffer(4)]], uint2 group [[threadgroup_position_in_grid]],
                    uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[DIRECT ? 1 : 4 * RLV_STAGE];
  const uint2 tile = tile_at(group, a.m, a.n);
  const uint outer_a = tile.x * RLV_TILE, outer_b = tile.y * RLV_TILE;
  Accumulators total;
  forward_tile<S, DIRECT>(total, x, operand(a.k, a.m, a.k), w, operand(a.k, a.n, a.k), stages, outer_a, outer_b, t,
                          lane, simdgroup);
  RLV_UNROLL
  for (uint i = 0; i < 4; i++)
    RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = outer_a + simdgroup / 2 * 32 + 8 * i + fragment_row(lane);
        const uint col = outer_b + simdgroup % 2 * 32 + 8 * j + fragment_col(lane) + e;
        if (row >= a.m || col >= a.n) continue;
        device Y* to = y + ulong(row) * a.n + col;
        const float before = a.accumulate != 0 ? widen(*to) : 0.0f;
        *to = narrow<Y>(epilogue(a, total.c[i][j].thread_elements()[e], bias, before, col));
      }
}
RLV_KERNEL("gemm_nt_f32_f32", gemm_nt, float, float, false)
RLV_KERNEL("gemm_nt_f32_bf16", gemm_nt, float, bf16, false)
RLV_KERNEL("gemm_nt_bf16_f32", gemm_nt, bf16, float, false)
RLV_KERNEL("gemm_nt_bf16_bf16", gemm_nt, bf16, bf16, false)
RLV_KERNEL("gemm_nt_direct_f32_f32", gemm_nt, float, float, true)
RLV_KERNEL("gemm_nt_direct_f32_bf16", gemm_nt, float, bf16, true)
RLV_KERNEL("gemm_nt_direct_bf16_f32", gemm_nt, bf16, float, true)
RLV_KERNEL("gemm_nt_direct_bf16_bf16", gemm_nt, bf16, bf16, true)

// The same for at most 8*ROWS rows (decoding): a simdgroup takes all rows of 16 columns over one span of K, with the
// weights straight from device memory, each read once. SPANS 4: the four simdgroups are the spans of the same 16
// columns, added in order through threadgroup memory; 1: each has 16 columns of its own.
// Grid (n/(64/SPANS)), 128 threads, 2*ROWS KiB of threadgroup memory.
template <typename S, typename Y, uint ROWS, uint SPANS>
kernel void gemm_nt_skinny(constant rlv_op_gemm_nt& a [[buffer(0)]], device Y* y [[buffer(1)]],
                           device const S* x [[buffer(2)]], device const S* w [[buffer(3)]],
                           device const float* bias [[buffer(4)]], uint group [[threadgroup_position_in_grid]],
                           uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[4][ROWS * 8][16];
  const Operand ox = operand(a.k, a.m, a.k), ow = operand(a.k, a.n, a.k);
  const uint col0 = SPANS == 4 ? group * 16 : group * 64 + simdgroup * 16;
  const uint first = first_step<SPANS>(a.k, simdgroup), last = last_step<SPANS>(a.k, simdgroup);

  simdgroup_float8x8 acc[ROWS][2];
  const Rows<S> rows = plain_rows(x, ox);
  skinny_product<S, ROWS, false>(acc, rows, w, ow, col0, first, last, lane);
  store_parts<ROWS>(acc, &parts[0][0][0], simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const uint blocks = 4 / SPANS;  // of 16 columns
  for (uint at = t; at < blocks * ROWS * 8 * 16; at += RLV_TILE_THREADS) {
    const uint block = at / (ROWS * 8 * 16), row = at / 16 % (ROWS * 8), c = at % 16;
    const uint col = group * 16 * blocks + block * 16 + c;
    if (row >= a.m || col >= a.n) continue;
    const float sum = sum_parts<ROWS, SPANS>(&parts[0][0][0], block, row, c);
    device Y* to = y + ulong(row) * a.n + col;
    const float before = a.accumulate != 0 ? widen(*to) : 0.0f;
    *to = narrow<Y>(epilogue(a, sum, bias, before, col));
  }
}
#define SKINNY(rows, spans)                                                                                  \
  RLV_KERNEL("gemm_nt_skinny" #rows "_" #spans "_f32_f32", gemm_nt_skinny, float, float, rows, spans)       \
  RLV_KERNEL("gemm_nt_skinny" #rows "_" #spans "_f32_bf16", gemm_nt_skinny, float, bf16, rows, spans)       \
  RLV_KERNEL("gemm_nt_skinny" #rows "_" #spans "_bf16_f32", gemm_nt_skinny, bf16, float, rows, spans)       \
  RLV_KERNEL("gemm_nt_skinny" #rows "_" #spans "_bf16_bf16", gemm_nt_skinny, bf16, bf16, rows, spans)
SKINNY(1, 1)
SKINNY(2, 1)
SKINNY(4, 1)
SKINNY(8, 1)
SKINNY(1, 4)
SKINNY(2, 4)
SKINNY(4, 4)
SKINNY(8, 4)

// dx[m][k] (+)= dy[m][n]*w[n][k]: one chain over n. Grid (m/64, k/64) by tile_at, 128 threads, 16.5 KiB.
template <typename S, bool DIRECT>
kernel void gemm_nn(constant rlv_op_gemm_nn& a [[buffer(0)]], device S* dx [[buffer(1)]],
                    device const S* dy [[buffer(2)]], device const S* w [[buffer(3)]],
                    uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[DIRECT ? 1 : 4 * RLV_STAGE];
  const uint2 tile = tile_at(group, a.m, a.k);
  const uint outer_a = tile.x * RLV_TILE, outer_b = tile.y * RLV_TILE;
  const uint row0 = simdgroup / 2 * 32, col0 = simdgroup % 2 * 32, steps = ceil_div(a.n, RLV_STEP);
  const Operand oa = operand(a.n, a.m, a.n), ob = operand(a.k, a.k, a.n);
  Accumulators acc;
  clear(acc);
  if (DIRECT)
    multiply_direct<S, RLV_ROWS, S, RLV_WEIGHT_NN, false>(acc, dy, oa, w, ob, outer_a + row0, outer_b + col0, 0, steps,
                                                          lane);
  else
    multiply_staged<S, RLV_ROWS, S, RLV_WEIGHT_NN, false>(acc, dy, oa, w, ob, stages, outer_a, outer_b, row0, col0, 0,
                                                          steps, t);
  RLV_UNROLL
  for (uint i = 0; i < 4; i++)
    RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = outer_a + row0 + 8 * i + fragment_row(lane);
        const uint col = outer_b + col0 + 8 * j + fragment_col(lane) + e;
        if (row >= a.m || col >= a.k) continue;
        device S* to = dx + ulong(row) * a.k + col;
        const float sum = acc.c[i][j].thread_elements()[e];
        *to = narrow<S>(a.accumulate != 0 ? sum + widen(*to) : sum);
      }
}
RLV_KERNEL("gemm_nn_f32", gemm_nn, float, false)
RLV_KERNEL("gemm_nn_bf16", gemm_nn, bf16, false)
RLV_KERNEL("gemm_nn_direct_f32", gemm_nn, float, true)
RLV_KERNEL("gemm_nn_direct_bf16", gemm_nn, bf16, true)

// dw[n][k] += dy[m][n]^T*x[m][k], of type G in the packed layout of S: one chain over m. Computed as its transpose,
// rows k and columns n, since n is what lies together in a panel. Grid (k/64, n/64) by tile_at, 128 threads, 16.5 KiB.
template <typename S, typename G, bool DIRECT>
kernel void gemm_tn(constant rlv_op_gemm_tn& a [[buffer(0)]], device G* dw [[buffer(1)]],
                    device const S* dy [[buffer(2)]], device const S* x [[buffer(3)]],
                    uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[DIRECT ? 1 : 4 * RLV_STAGE];
  const uint2 tile = tile_at(group, a.k, a.n);
  const uint outer_a = tile.x * RLV_TILE, outer_b = tile.y * RLV_TILE;
  const uint row0 = simdgroup / 2 * 32, col0 = simdgroup % 2 * 32, steps = ceil_div(a.m, RLV_STEP);
  const Operand oa = operand(a.k, a.k, a.m), ob = operand(a.n, a.n, a.m);
  Accumulators acc;
  clear(acc);
  if (DIRECT)
    multiply_direct<S, RLV_COLS, S, RLV_COLS, false>(acc, x, oa, dy, ob, outer_a + row0, outer_b + col0, 0, steps,
                                                     lane);
  else
    multiply_staged<S, RLV_COLS, S, RLV_COLS, false>(acc, x, oa, dy, ob, stages, outer_a, outer_b, row0, col0, 0,
                                                     steps, t);
  RLV_UNROLL
  for (uint i = 0; i < 4; i++)
    RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = outer_a + row0 + 8 * i + fragment_row(lane);
        const uint col = outer_b + col0 + 8 * j + fragment_col(lane) + e;
        if (row >= a.k || col >= a.n) continue;
        const ulong at = packed_index(col, row, a.k, packs_pairs<S>());
        dw[at] = narrow<G>(widen(dw[at]) + acc.c[i][j].thread_elements()[e]);
      }
}
RLV_KERNEL("gemm_tn_f32_f32", gemm_tn, float, float, false)
RLV_KERNEL("gemm_tn_bf16_f32", gemm_tn, bf16, float, false)
RLV_KERNEL("gemm_tn_bf16_bf16", gemm_tn, bf16, bf16, false)
RLV_KERNEL("gemm_tn_direct_f32_f32", gemm_tn, float, float, true)
RLV_KERNEL("gemm_tn_direct_bf16_f32", gemm_tn, bf16, float, true)
RLV_KERNEL("gemm_tn_direct_bf16_bf16", gemm_tn, bf16, bf16, true)

// partial[block][n] = sum of dy over a block of 64 rows, rows in order. A thread has a column of a block.
// Grid (n/128, m/64), 128 threads.
template <typename S>
kernel void bias_partial(constant rlv_op_bias_bwd& a [[buffer(0)]], device const S* dy [[buffer(2)]],
                         device float* partial [[buffer(3)]], uint2 group [[threadgroup_position_in_grid]],
                         uint t [[thread_index_in_threadgroup]]) {
  const uint col = group.x * RLV_TILE_THREADS + t, row0 = group.y * RLV_ROW_BLOCK;
  if (col >= a.n) return;
  float sum = 0.0f;
  for (uint row = row0; row < min(row0 + RLV_ROW_BLOCK, a.m); row++) sum += widen(dy[ulong(row) * a.n + col]);
  partial[ulong(group.y) * a.n + col] = sum;
}
RLV_KERNEL("bias_partial_f32", bias_partial, float)
RLV_KERNEL("bias_partial_bf16", bias_partial, bf16)

// dbias[n] += the blocks in order. Grid (n/128), 128 threads.
kernel void bias_bwd(constant rlv_op_bias_bwd& a [[buffer(0)]], device float* dbias [[buffer(1)]],
                     device const float* partial [[buffer(3)]], uint col [[thread_position_in_grid]]) {
  if (col >= a.n) return;
  float sum = 0.0f;
  for (uint block = 0; block < ceil_div(a.m, RLV_ROW_BLOCK); block++) sum += partial[ulong(block) * a.n + col];
  dbias[col] += sum;
}
