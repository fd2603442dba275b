// Products of few rows with packed weights: what gemm.metal and decode.metal share. A simdgroup takes up to
// 8*ROWS rows of 16 columns over one span of K; weights come straight from device memory, each read once.
#pragma once
#include "gemm_tile.h"
#include "norm_row.h"

// SPANS 4: the simdgroups of a threadgroup are the spans of the same 16 columns; 1: each has columns of its
// own.
template <uint SPANS>
METAL_FUNC uint first_step(uint k, uint simdgroup) {
  return SPANS == 4 ? min(simdgroup * span_steps(k), ceil_div(k, RLV_STEP)) : 0u;
}
template <uint SPANS>
METAL_FUNC uint last_step(uint k, uint simdgroup) {
  const uint steps = ceil_div(k, RLV_STEP);
  return SPANS == 4 ? min((simdgroup + 1) * span_steps(k), steps) : steps;
}

// Rows of operand A, as they are or normalised on the way.
template <typename S>
struct Rows {
  device const S* x;
  device const float* weight;            // of the norm
  threadgroup const float* inverse_rms;  // of each row
  Operand o;
};
template <typename S>
METAL_FUNC Rows<S> plain_rows(device const S* x, Operand o) {
  Rows<S> rows;
  rows.x = x;
  rows.weight = nullptr;
  rows.inverse_rms = nullptr;
  rows.o = o;
  return rows;
}

// fragments_a of normalised rows: the values that rms_norm_fwd would have stored.
template <typename S>
METAL_FUNC void normalised_fragments(thread simdgroup_float8x8& f0, thread simdgroup_float8x8& f1,
                                     thread const Rows<S>& rows, uint row0, uint r0, uint lane) {
  const bool paired = sizeof(S) == 2;
  const uint row = row0 + fragment_row(lane), c = fragment_col(lane);
  const float inverse = rows.inverse_rms[row];
  RLV_UNROLL
  for (uint e = 0; e < 2; e++) {
    const uint at0 = r0 + (paired ? 2 * (c + e) : c + e), at1 = r0 + (paired ? 2 * (c + e) + 1 : 8 + c + e);
    const bool there = row < rows.o.outer;
    f0.thread_elements()[e] =
        there && at0 < rows.o.r
            ? widen(normalised<S>(widen(rows.x[row * rows.o.stride + at0]), inverse, rows.weight[at0]))
            : 0.0f;
    f1.thread_elements()[e] =
        there && at1 < rows.o.r
            ? widen(normalised<S>(widen(rows.x[row * rows.o.stride + at1]), inverse, rows.weight[at1]))
            : 0.0f;
  }
}

// acc[ROWS][2] = rows x 16 columns from col0 over steps [first, last).
template <typename S, uint ROWS, bool NORM>
METAL_FUNC void skinny_product(thread simdgroup_float8x8 (&acc)[ROWS][2], thread const Rows<S>& rows,
                               device const S* w, Operand ow, uint col0, uint first, uint last, uint lane) {
  const bool paired = sizeof(S) == 2;
  RLV_UNROLL
  for (uint i = 0; i < ROWS; i++) RLV_UNROLL
  for (uint j = 0; j < 2; j++) acc[i][j] = simdgroup_float8x8(0.0f);
  for (uint step = first; step < last; step++) {
    simdgroup_float8x8 fa[2], fb[2][2];
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      fragments_b<S, RLV_WEIGHT_NT, paired>(fb[0][j], fb[1][j], w, ow, col0 + 8 * j, step * RLV_STEP, lane);
    RLV_UNROLL
    for (uint i = 0; i < ROWS; i++) {
      if (NORM)
        normalised_fragments<S>(fa[0], fa[1], rows, 8 * i, step * RLV_STEP, lane);
      else
        fragments_a<S, RLV_ROWS, paired>(fa[0], fa[1], rows.x, rows.o, 8 * i, step * RLV_STEP, lane);
      RLV_UNROLL
      for (uint half_step = 0; half_step < 2; half_step++) RLV_UNROLL
      for (uint j = 0; j < 2; j++)
        simdgroup_multiply_accumulate(acc[i][j], fa[half_step], fb[half_step][j], acc[i][j]);
    }
  }
}

// parts[simdgroup][8*ROWS][16].
template <uint ROWS>
METAL_FUNC void store_parts(thread simdgroup_float8x8 (&acc)[ROWS][2], threadgroup float* parts,
                            uint simdgroup) {
  RLV_UNROLL
  for (uint i = 0; i < ROWS; i++) RLV_UNROLL
  for (uint j = 0; j < 2; j++)
    simdgroup_store(acc[i][j], parts + (simdgroup * ROWS * 8 + 8 * i) * 16 + 8 * j, 16);
}
// An output from its spans, in order. `block` counts blocks of 16 columns of the threadgroup.
template <uint ROWS, uint SPANS>
METAL_FUNC float sum_parts(threadgroup const float* parts, uint block, uint row, uint col) {
  float sum = parts[(block * ROWS * 8 + row) * 16 + col];
  for (uint s = 1; s < SPANS; s++) sum += parts[(s * ROWS * 8 + row) * 16 + col];
  return sum;
}
