// Low-rank adapters: products whose one side is r wide, in 8*ROWS x 16 outputs of a simdgroup with fragments straight
// from device memory. u adds four spans of K in order from K = 512 on, whatever the number of rows; everything else is
// one chain. Needs MSL 3.0 (simdgroup_matrix).
#include "gemm_skinny.h"

// acc = rows from row0 of A times 16 columns from col0 of B over steps [first, last).
template <typename S, int KA, int KB, bool PAIRED, uint ROWS>
METAL_FUNC void narrow_product(thread simdgroup_float8x8 (&acc)[ROWS][2], device const S* a, Operand oa,
                               device const S* b, Operand ob, uint row0, uint col0, uint first, uint last,
                               uint lane) {
  RLV_UNROLL
  for (uint i = 0; i < ROWS; i++) RLV_UNROLL
  for (uint j = 0; j < 2; j++) acc[i][j] = simdgroup_float8x8(0.0f);
  for (uint step = first; step < last; step++) {
    simdgroup_float8x8 fa[2], fb[2][2];
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      fragments_b<S, KB, PAIRED>(fb[0][j], fb[1][j], b, ob, col0 + 8 * j, step * RLV_STEP, lane);
    RLV_UNROLL
    for (uint i = 0; i < ROWS; i++) {
      fragments_a<S, KA, PAIRED>(fa[0], fa[1], a, oa, row0 + 8 * i, step * RLV_STEP, lane);
      RLV_UNROLL
      for (uint half_step = 0; half_step < 2; half_step++) RLV_UNROLL
      for (uint j = 0; j < 2; j++)
        simdgroup_multiply_accumulate(acc[i][j], fa[half_step], fb[half_step][j], acc[i][j]);
    }
  }
}

// What multiplies column `col` of u and du.
template <typename P>
METAL_FUNC float scale_of(constant P& p, uint col) {
  return col < p.split ? p.scale : p.scale2;
}

// Element e of fragment i, j of a lane: its row and column behind row0 and col0.
METAL_FUNC uint row_of(uint row0, uint i, uint lane) { return row0 + 8 * i + fragment_row(lane); }
METAL_FUNC uint col_of(uint col0, uint j, uint e, uint lane) { return col0 + 8 * j + fragment_col(lane) + e; }

// u[m][r] = scale*(x[m][k]*a[r][k]^T) for k < 512: a simdgroup has rows of its own.
// Grid (r/16, m/(32*ROWS)), 128 threads.
template <typename S, uint ROWS>
kernel void lora_u(constant rlv_op_lora_fwd& p [[buffer(0)]], device S* u [[buffer(2)]],
                   device const S* x [[buffer(4)]], device const S* a [[buffer(5)]],
                   uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = (group.y * 4 + simdgroup) * ROWS * 8, col0 = group.x * 16;
  simdgroup_float8x8 acc[ROWS][2];
  narrow_product<S, RLV_ROWS, RLV_WEIGHT_NT, sizeof(S) == 2, ROWS>(acc, x, operand(p.k, p.m, p.k), a,
                                                                  operand(p.k, p.r, p.k), row0, col0, 0,
                                                                  ceil_div(p.k, RLV_STEP), lane);
  RLV_UNROLL
  for (uint i = 0; i < ROWS; i++)
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = row_of(row0, i, lane), col = col_of(col0, j, e, lane);
        if (row < p.m && col < p.r)
          u[ulong(row) * p.r + col] = narrow<S>(scale_of(p, col) * acc[i][j].thread_elements()[e]);
      }
}

// The same for k from 512 on: the four simdgroups are the spans of the same rows.
// Grid (r/16, m/(8*ROWS)), 128 threads, 2*ROWS KiB of threadgroup memory.
template <typename S, uint ROWS>
kernel void lora_u_spans(constant rlv_op_lora_fwd& p [[buffer(0)]], device S* u [[buffer(2)]],
                         device const S* x [[buffer(4)]], device const S* a [[buffer(5)]],
                         uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[4 * ROWS * 8 * 16];
  const uint row0 = group.y * ROWS * 8, col0 = group.x * 16;
  simdgroup_float8x8 acc[ROWS][2];
  narrow_product<S, RLV_ROWS, RLV_WEIGHT_NT, sizeof(S) == 2, ROWS>(
      acc, x, operand(p.k, p.m, p.k), a, operand(p.k, p.r, p.k), row0, col0, first_step<4>(p.k, simdgroup),
      last_step<4>(p.k, simdgroup), lane);
  store_parts<ROWS>(acc, parts, simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint at = t; at < ROWS * 8 * 16; at += RLV_TILE_THREADS) {
    const uint row = row0 + at / 16, col = col0 + at % 16;
    if (row < p.m && col < p.r)
      u[ulong(row) * p.r + col] = narrow<S>(scale_of(p, col) * sum_parts<ROWS, 4>(parts, 0, at / 16, at % 16));
  }
}

// y[m][n] = base[m][n] + u[m][r]*b[n][r]^T; base may be y. A simdgroup has 16 columns.
// Grid (n/64, m/(8*ROWS)), 128 threads.
template <typename S, uint ROWS>
kernel void lora_y(constant rlv_op_lora_fwd& p [[buffer(0)]], device S* y [[buffer(1)]],
                   device const S* u [[buffer(2)]], device const S* base [[buffer(3)]],
                   device const S* b [[buffer(6)]], uint2 group [[threadgroup_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = group.y * ROWS * 8, col0 = group.x * 64 + simdgroup * 16;
  simdgroup_float8x8 acc[ROWS][2];
  narrow_product<S, RLV_ROWS, RLV_WEIGHT_NT, sizeof(S) == 2, ROWS>(acc, u, operand(p.r, p.m, p.r), b,
                                                                  operand(p.r, p.n, p.r), row0, col0, 0,
                                                                  ceil_div(p.r, RLV_STEP), lane);
  RLV_UNROLL
  for (uint i = 0; i < ROWS; i++)
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = row_of(row0, i, lane), col = col_of(col0, j, e, lane);
        if (row >= p.m || col >= p.n) continue;
        const ulong at = ulong(row) * p.n + col;
        y[at] = narrow<S>(widen(base[at]) + acc[i][j].thread_elements()[e]);
      }
}

#define LORA_ROWS(rows)                                                  \
  RLV_KERNEL("lora_u" #rows "_f32", lora_u, float, rows)                 \
  RLV_KERNEL("lora_u" #rows "_bf16", lora_u, bf16, rows)                 \
  RLV_KERNEL("lora_u_spans" #rows "_f32", lora_u_spans, float, rows)     \
  RLV_KERNEL("lora_u_spans" #rows "_bf16", lora_u_spans, bf16, rows)     \
  RLV_KERNEL("lora_y" #rows "_f32", lora_y, float, rows)                 \
  RLV_KERNEL("lora_y" #rows "_bf16", lora_y, bf16, rows)
LORA_ROWS(1)
LORA_ROWS(2)
LORA_ROWS(4)
LORA_ROWS(8)

#define RLV_LORA_ROWS 2u  // fragments of a simdgroup in the gradients

// Whether a row adds nothing to the gradients of the weights of a column.
METAL_FUNC bool skips(constant rlv_op_lora_bwd& p, device const uint* routes, uint row, uint col) {
  return (routes[row] & (col < p.split ? 1u : 2u)) != 0;
}

// masked[0] = u[m][r] without what rows skip. Grid m*r/256, 256 threads.
template <typename S>
kernel void lora_mask(constant rlv_op_lora_bwd& p [[buffer(0)]], device const S* u [[buffer(7)]],
                      device const uint* routes [[buffer(10)]], device S* masked [[buffer(11)]],
                      uint i [[thread_position_in_grid]]) {
  if (i < p.m * p.r) masked[i] = skips(p, routes, i / p.r, i % p.r) ? S(0) : u[i];
}
RLV_KERNEL("lora_mask_f32", lora_mask, float)
RLV_KERNEL("lora_mask_bf16", lora_mask, bf16)

// du[m][r] = scale*(dy[m][n]*b[n][r]), and masked[1] as du without what rows skip. Grid (r/16, m/64), 128 threads.
template <typename S>
kernel void lora_du(constant rlv_op_lora_bwd& p [[buffer(0)]], device S* du [[buffer(4)]],
                    device const S* dy [[buffer(5)]], device const S* b [[buffer(9)]],
                    device const uint* routes [[buffer(10)]], device S* masked [[buffer(11)]],
                    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = (group.y * 4 + simdgroup) * RLV_LORA_ROWS * 8, col0 = group.x * 16;
  simdgroup_float8x8 acc[RLV_LORA_ROWS][2];
  narrow_product<S, RLV_ROWS, RLV_WEIGHT_NN, false, RLV_LORA_ROWS>(acc, dy, operand(p.n, p.m, p.n), b,
                                                                  operand(p.r, p.r, p.n), row0, col0, 0,
                                                                  ceil_div(p.n, RLV_STEP), lane);
  RLV_UNROLL
  for (uint i = 0; i < RLV_LORA_ROWS; i++)
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = row_of(row0, i, lane), col = col_of(col0, j, e, lane);
        if (row >= p.m || col >= p.r) continue;
        const ulong at = ulong(row) * p.r + col;
        du[at] = narrow<S>(scale_of(p, col) * acc[i][j].thread_elements()[e]);
        if (p.routes.buffer != 0) masked[ulong(p.m) * p.r + at] = skips(p, routes, row, col) ? S(0) : du[at];
      }
}
RLV_KERNEL("lora_du_f32", lora_du, float)
RLV_KERNEL("lora_du_bf16", lora_du, bf16)

// dx[m][k] (+)= du[m][r]*a[r][k]. A simdgroup has 16 columns. Grid (k/64, m/16), 128 threads.
template <typename S>
kernel void lora_dx(constant rlv_op_lora_bwd& p [[buffer(0)]], device S* dx [[buffer(1)]],
                    device const S* du [[buffer(4)]], device const S* a [[buffer(8)]],
                    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = group.y * RLV_LORA_ROWS * 8, col0 = group.x * 64 + simdgroup * 16;
  simdgroup_float8x8 acc[RLV_LORA_ROWS][2];
  narrow_product<S, RLV_ROWS, RLV_WEIGHT_NN, false, RLV_LORA_ROWS>(acc, du, operand(p.r, p.m, p.r), a,
                                                                  operand(p.k, p.k, p.r), row0, col0, 0,
                                                                  ceil_div(p.r, RLV_STEP), lane);
  RLV_UNROLL
  for (uint i = 0; i < RLV_LORA_ROWS; i++)
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = row_of(row0, i, lane), col = col_of(col0, j, e, lane);
        if (row >= p.m || col >= p.k) continue;
        device S* to = dx + ulong(row) * p.k + col;
        const float sum = acc[i][j].thread_elements()[e];
        *to = narrow<S>(p.accumulate != 0 ? sum + widen(*to) : sum);
      }
}
RLV_KERNEL("lora_dx_f32", lora_dx, float)
RLV_KERNEL("lora_dx_bf16", lora_dx, bf16)

// acc = wide[m][width]^T * narrow[m][r]: rows of `width`, columns of r.
template <typename S>
METAL_FUNC void gradient_product(thread simdgroup_float8x8 (&acc)[RLV_LORA_ROWS][2], device const S* wide,
                                 uint width, device const S* few, uint r, uint m, uint row0, uint col0, uint lane) {
  narrow_product<S, RLV_COLS, RLV_COLS, false, RLV_LORA_ROWS>(acc, wide, operand(width, width, m), few,
                                                             operand(r, r, m), row0, col0, 0,
                                                             ceil_div(m, RLV_STEP), lane);
}

// da[r][k] += du[m][r]^T*x[m][k], float32 in the packed layout of S; with routes of the masked du. Grid (r/16, k/64),
// 128 threads.
template <typename S>
kernel void lora_da(constant rlv_op_lora_bwd& p [[buffer(0)]], device float* da [[buffer(2)]],
                    device const S* du [[buffer(4)]], device const S* x [[buffer(6)]],
                    device const S* masked [[buffer(11)]], uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = (group.y * 4 + simdgroup) * RLV_LORA_ROWS * 8, col0 = group.x * 16;
  simdgroup_float8x8 acc[RLV_LORA_ROWS][2];
  device const S* few = p.routes.buffer != 0 ? masked + ulong(p.m) * p.r : du;
  gradient_product<S>(acc, x, p.k, few, p.r, p.m, row0, col0, lane);
  RLV_UNROLL
  for (uint i = 0; i < RLV_LORA_ROWS; i++)
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = row_of(row0, i, lane), col = col_of(col0, j, e, lane);
        if (row < p.k && col < p.r)
          da[packed_index(col, row, p.k, packs_pairs<S>())] += acc[i][j].thread_elements()[e];
      }
}
RLV_KERNEL("lora_da_f32", lora_da, float)
RLV_KERNEL("lora_da_bf16", lora_da, bf16)

// db[n][r] += dy[m][n]^T*u[m][r], the same. Grid (r/16, n/64), 128 threads.
template <typename S>
kernel void lora_db(constant rlv_op_lora_bwd& p [[buffer(0)]], device float* db [[buffer(3)]],
                    device const S* dy [[buffer(5)]], device const S* u [[buffer(7)]],
                    device const S* masked [[buffer(11)]], uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = (group.y * 4 + simdgroup) * RLV_LORA_ROWS * 8, col0 = group.x * 16;
  simdgroup_float8x8 acc[RLV_LORA_ROWS][2];
  device const S* few = p.routes.buffer != 0 ? masked : u;
  gradient_product<S>(acc, dy, p.n, few, p.r, p.m, row0, col0, lane);
  RLV_UNROLL
  for (uint i = 0; i < RLV_LORA_ROWS; i++)
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = row_of(row0, i, lane), col = col_of(col0, j, e, lane);
        if (row < p.n && col < p.r)
          db[packed_index(row, col, p.r, packs_pairs<S>())] += acc[i][j].thread_elements()[e];
      }
}
RLV_KERNEL("lora_db_f32", lora_db, float)
RLV_KERNEL("lora_db_bf16", lora_db, bf16)
