// The language-model head fused with log-softmax, gather and entropy: z = (x*w^T)*inv_temp. Logits of a batch never
// exist: the forward pass reduces a 64 x 64 tile of them at a time, the gradient holds 256 x 4096.
// Needs MSL 3.0 (simdgroup_matrix).
#include "gemm_tile.h"
#include "softmax_tile.h"

// Which part of the head's gradient a dispatch computes.
struct HeadChunk {
  uint row0, rows;   // of x
  uint col0, cols;   // of the vocabulary
  uint stride;       // floats of a row of dz
  uint accumulate;   // dx has a part already
};

// `work` of the gradient: dz of a chunk, then dx in float32 [rows][cols]. dz comes first because it is read as vectors.
METAL_FUNC ulong dx_offset(constant rlv_op_logprob_bwd& a) {
  const uint columns = min(ceil_div(a.vocab, RLV_VOCAB_TILE) * RLV_VOCAB_TILE, RLV_HEAD_VOCAB_CHUNK);
  return ulong(min(a.rows, RLV_HEAD_ROW_CHUNK)) * columns;
}

// partial[row][tile] = {max, sum, dot} over a tile of 512 columns, and logprob[row] = z[target] from the tile that
// has it. A threadgroup has 64 rows and one tile, 64 columns at a time: products by all four simdgroups, then 16 rows
// of them reduced by each. Rows from first_row on. Grid (rows/64, vocab/512), 128 threads: groups side by side share a tile of the weights, 16.5 KiB (stages, then logits).
template <typename S, bool DIRECT>
kernel void logprob_tiles(constant rlv_op_logprob_fwd& a [[buffer(0)]], device float* logprob [[buffer(1)]],
                          device const S* x [[buffer(4)]], device const S* w [[buffer(5)]],
                          device const uint* targets [[buffer(6)]], device float4* partial [[buffer(7)]],
                          constant uint& first_row [[buffer(RLV_EXTRA)]],
                          device atomic_uint* error [[buffer(RLV_ERROR)]],
                          uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[4 * RLV_STAGE];
  const uint row0 = first_row + group.x * RLV_TILE, first_col = group.y * RLV_VOCAB_TILE;
  const Operand ox = operand(a.cols, a.rows, a.cols), ow = operand(a.cols, a.vocab, a.cols);
  TileSum mine = empty_tile();  // lanes 0..15: of row row0 + 16*simdgroup + lane

  for (uint col0 = first_col; col0 < min(first_col + RLV_VOCAB_TILE, a.vocab); col0 += RLV_TILE) {
    Accumulators total;
    forward_tile<S, DIRECT>(total, x, ox, w, ow, stages, row0, col0, t, lane, simdgroup);
    RLV_UNROLL
    for (uint i = 0; i < 4; i++)
      RLV_UNROLL
      for (uint j = 0; j < 4; j++)
        simdgroup_store(total.c[i][j],
                        stages + (simdgroup / 2 * 32 + 8 * i) * RLV_TILE_STRIDE + simdgroup % 2 * 32 + 8 * j,
                        RLV_TILE_STRIDE);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < 16; i++) {
      const uint row = row0 + 16 * simdgroup + i;
      float z[2];
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint col = col0 + lane + 32 * e;
        const float logit = stages[(16 * simdgroup + i) * RLV_TILE_STRIDE + lane + 32 * e];
        z[e] = col < a.vocab ? logit * a.inv_temp : -INFINITY;
        if (row < a.rows && col < a.vocab && targets[row] == col) logprob[row] = z[e];
      }
      const TileSum sum = strip_sum(z[0], z[1]);
      if (lane == i) {
        if (col0 == first_col)
          mine = sum;
        else
          mine = merge(mine, sum);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  const uint row = row0 + 16 * simdgroup + lane;
  if (lane < 16 && row < a.rows) {
    const uint tiles = ceil_div(a.vocab, RLV_VOCAB_TILE);
    partial[ulong(row) * tiles + group.y] = float4(mine.max, mine.sum, mine.dot, 0.0f);
    if (group.y == 0 && targets[row] >= a.vocab) report(error, RLV_BAD_TARGET, targets[row]);
  }
}
RLV_KERNEL("logprob_tiles_f32", logprob_tiles, float, false)
RLV_KERNEL("logprob_tiles_bf16", logprob_tiles, bf16, false)
RLV_KERNEL("logprob_tiles_direct_f32", logprob_tiles, float, true)
RLV_KERNEL("logprob_tiles_direct_bf16", logprob_tiles, bf16, true)

// lse, entropy and logprob of a row from its tiles, in ascending order. A thread has a row.
kernel void logprob_fwd(constant rlv_op_logprob_fwd& a [[buffer(0)]], device float* logprob [[buffer(1)]],
                        device float* lse [[buffer(2)]], device float* entropy [[buffer(3)]],
                        device const uint* targets [[buffer(6)]], device const float4* partial [[buffer(7)]],
                        device float* again [[buffer(8)]], uint row [[thread_position_in_grid]]) {
  if (row >= a.rows) return;
  const uint tiles = ceil_div(a.vocab, RLV_VOCAB_TILE);
  const TileSum sum = merged_tiles(partial + ulong(row) * tiles, tiles);
  const float all = lse_of(sum);
  lse[row] = all;
  entropy[row] = entropy_of(sum);
  const float value = targets[row] < a.vocab ? logprob[row] - all : NAN;
  logprob[row] = value;
  if (a.again.buffer != 0) again[row] = value;
}

// dz[row][col] of a chunk, float32: with p = exp(z - lse),
//   dz = inv_temp*(dlogprob*(1[col = target] - p) - dentropy*p*(z - lse + H)).
// Grid (rows/64, cols/64) of the chunk, 128 threads, 16.5 KiB.
template <typename S, bool DIRECT>
kernel void logprob_dz(constant rlv_op_logprob_bwd& a [[buffer(0)]], device const S* x [[buffer(3)]],
                       device const S* w [[buffer(4)]], device const uint* targets [[buffer(5)]],
                       device const float* lse [[buffer(6)]], device const float* entropy [[buffer(7)]],
                       device const float* dlogprob [[buffer(8)]], device const float* dentropy [[buffer(9)]],
                       device float* work [[buffer(10)]], device float* logprob [[buffer(11)]],
                       constant HeadChunk& chunk [[buffer(RLV_EXTRA)]],
                       device atomic_uint* error [[buffer(RLV_ERROR)]], uint2 group [[threadgroup_position_in_grid]],
                       uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[DIRECT ? 1 : 4 * RLV_STAGE];
  device const S* x0 = x + ulong(chunk.row0) * a.cols;
  device const S* w0 = w + packed_index(chunk.col0, 0, a.cols, packs_pairs<S>());
  Accumulators total;
  forward_tile<S, DIRECT>(total, x0, operand(a.cols, chunk.rows, a.cols), w0, operand(a.cols, chunk.cols, a.cols),
                          stages, group.x * RLV_TILE, group.y * RLV_TILE, t, lane, simdgroup);
  RLV_UNROLL
  for (uint i = 0; i < 4; i++)
    RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint r = group.x * RLV_TILE + simdgroup / 2 * 32 + 8 * i + fragment_row(lane);
        const uint c = group.y * RLV_TILE + simdgroup % 2 * 32 + 8 * j + fragment_col(lane) + e;
        if (r >= chunk.rows || c >= chunk.cols) continue;
        const uint row = chunk.row0 + r, target = targets[row];
        if (target >= a.vocab && chunk.col0 + c == 0) report(error, RLV_BAD_TARGET_BWD, target);
        const float logp = total.c[i][j].thread_elements()[e] * a.inv_temp - lse[row], p = exp(logp);
        float d = -dlogprob[row] * p;
        if (a.dentropy.buffer != 0) d -= dentropy[row] * p * (logp + (a.entropy.buffer != 0 ? entropy[row] : 0.0f));
        if (target == chunk.col0 + c) {
          d += dlogprob[row];
          if (a.logprob.buffer != 0) logprob[row] = logp;
        }
        work[ulong(r) * chunk.stride + c] = d * a.inv_temp;
      }
}
RLV_KERNEL("logprob_dz_f32", logprob_dz, float, false)
RLV_KERNEL("logprob_dz_bf16", logprob_dz, bf16, false)
RLV_KERNEL("logprob_dz_direct_f32", logprob_dz, float, true)
RLV_KERNEL("logprob_dz_direct_bf16", logprob_dz, bf16, true)

// dw += dz^T*x of a chunk, as gemm_tn. Grid (cols/64, x's columns/64), 128 threads, 16.5 KiB.
template <typename S>
kernel void logprob_dw(constant rlv_op_logprob_bwd& a [[buffer(0)]], device float* dw [[buffer(2)]],
                       device const S* x [[buffer(3)]], device const float* work [[buffer(10)]],
                       constant HeadChunk& chunk [[buffer(RLV_EXTRA)]], uint2 group [[threadgroup_position_in_grid]],
                       uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[4 * RLV_STAGE];
  const uint outer_a = group.y * RLV_TILE, outer_b = group.x * RLV_TILE;
  const uint part_row = simdgroup / 2 * 32, part_col = simdgroup % 2 * 32;
  Accumulators acc;
  clear(acc);
  multiply_staged<S, RLV_COLS, float, RLV_COLS, false>(
      acc, x + ulong(chunk.row0) * a.cols, operand(a.cols, a.cols, chunk.rows), work,
      operand(chunk.stride, chunk.cols, chunk.rows), stages, outer_a, outer_b, part_row, part_col, 0,
      ceil_div(chunk.rows, RLV_STEP), t);
  RLV_UNROLL
  for (uint i = 0; i < 4; i++)
    RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint k = outer_a + part_row + 8 * i + fragment_row(lane);
        const uint c = outer_b + part_col + 8 * j + fragment_col(lane) + e;
        if (k < a.cols && c < chunk.cols)
          dw[packed_index(chunk.col0 + c, k, a.cols, packs_pairs<S>())] += acc.c[i][j].thread_elements()[e];
      }
}
RLV_KERNEL("logprob_dw_f32", logprob_dw, float)
RLV_KERNEL("logprob_dw_bf16", logprob_dw, bf16)

// dx in float32 (+)= dz*w of a chunk. Grid (x's columns/64, rows/64), 128 threads, 16.5 KiB.
template <typename S>
kernel void logprob_dx(constant rlv_op_logprob_bwd& a [[buffer(0)]], device const S* w [[buffer(4)]],
                       device float* work [[buffer(10)]], constant HeadChunk& chunk [[buffer(RLV_EXTRA)]],
                       uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[4 * RLV_STAGE];
  const uint outer_a = group.x * RLV_TILE, outer_b = group.y * RLV_TILE;
  const uint part_row = simdgroup / 2 * 32, part_col = simdgroup % 2 * 32;
  Accumulators acc;
  clear(acc);
  multiply_staged<float, RLV_ROWS, S, RLV_WEIGHT_NN, false>(
      acc, work, operand(chunk.stride, chunk.rows, chunk.cols),
      w + packed_index(chunk.col0, 0, a.cols, packs_pairs<S>()), operand(a.cols, a.cols, chunk.cols), stages, outer_a,
      outer_b, part_row, part_col, 0, ceil_div(chunk.cols, RLV_STEP), t);
  RLV_UNROLL
  for (uint i = 0; i < 4; i++)
    RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint r = outer_a + part_row + 8 * i + fragment_row(lane);
        const uint k = outer_b + part_col + 8 * j + fragment_col(lane) + e;
        if (r >= chunk.rows || k >= a.cols) continue;
        device float* to = work + dx_offset(a) + ulong(chunk.row0 + r) * a.cols + k;
        const float sum = acc.c[i][j].thread_elements()[e];
        *to = chunk.accumulate != 0 ? *to + sum : sum;
      }
}
RLV_KERNEL("logprob_dx_f32", logprob_dx, float)
RLV_KERNEL("logprob_dx_bf16", logprob_dx, bf16)

// dx rounded once. A thread has an element.
template <typename S>
kernel void logprob_round(constant rlv_op_logprob_bwd& a [[buffer(0)]], device S* dx [[buffer(1)]],
                          device const float* work [[buffer(10)]], uint2 at [[thread_position_in_grid]]) {
  if (at.x < a.cols) dx[ulong(at.y) * a.cols + at.x] = narrow<S>(work[dx_offset(a) + ulong(at.y) * a.cols + at.x]);
}
RLV_KERNEL("logprob_round_f32", logprob_round, float)
RLV_KERNEL("logprob_round_bf16", logprob_round, bf16)
