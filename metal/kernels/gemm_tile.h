// Matrix products of 8x8 simdgroup fragments: what gemm.metal and head.metal share.
//
// C[outer_a][outer_b] = sum over r of A[outer_a][r]*B[r][outer_b]. The reduction runs in steps of 16: two
// 8-deep products, whose order is fixed by r alone. Where the weights store pairs of r (bfloat16), a step
// multiplies its even r first and its odd r second, in every kernel, so that a lane takes whole pairs from
// memory. A forward product over K of 512 and more is four chains over fixed spans of K, added in order: a
// skinny product gives each span a simdgroup. So an output's bits depend on its row and K alone, whichever
// kernel computed it.
#pragma once
#include "common.h"

#define RLV_TILE 64u         // outputs of a threadgroup in both directions
#define RLV_STEP 16u         // r of one step
#define RLV_TILE_STRIDE 66u  // floats of a staged row: 64 and two to keep columns in different banks
#define RLV_STAGE (RLV_STEP * RLV_TILE_STRIDE)
#define RLV_TILE_THREADS 128u

// How an operand lies in memory.
#define RLV_ROWS 0       // [outer][r]
#define RLV_COLS 1       // [r][outer]
#define RLV_WEIGHT_NT 2  // packed weight, r along k: float32 [outer/32][r][32], bfloat16 pairs of r
#define RLV_WEIGHT_NN 3  // packed weight, r along n: the same with r and outer exchanged

struct Operand {
  ulong stride;   // elements of a row; of a packed weight: its k
  uint outer, r;  // sizes
};
METAL_FUNC Operand operand(ulong stride, uint outer, uint r) {
  Operand o;
  o.stride = stride;
  o.outer = outer;
  o.r = r;
  return o;
}

// Steps of one span; the last spans may be shorter or empty.
METAL_FUNC uint spans_of(uint k) { return k >= 512u ? 4u : 1u; }
METAL_FUNC uint span_steps(uint k) { return ceil_div(ceil_div(k, RLV_STEP), spans_of(k)); }

template <typename S, int KIND>
METAL_FUNC ulong element_index(Operand o, uint outer, uint r) {
  if (KIND == RLV_ROWS) return outer * o.stride + r;
  if (KIND == RLV_COLS) return r * o.stride + outer;
  if (KIND == RLV_WEIGHT_NT) return packed_index(outer, r, uint(o.stride), packs_pairs<S>());
  return packed_index(r, outer, uint(o.stride), packs_pairs<S>());
}
template <typename S, int KIND>
METAL_FUNC float element(device const S* p, Operand o, uint outer, uint r) {
  return outer < o.outer && r < o.r ? widen(p[element_index<S, KIND>(o, outer, r)]) : 0.0f;
}

METAL_FUNC float low_half(uint pair) { return as_type<float>(pair << 16); }
METAL_FUNC float high_half(uint pair) { return as_type<float>(pair & 0xffff0000u); }

// ---- device memory to registers to threadgroup memory
// -------------------------------------------------------

// Eight elements at a multiple of 16 bytes.
METAL_FUNC void load8(thread float* v, device const float* p) {
  const float4 a = ((device const float4*)p)[0], b = ((device const float4*)p)[1];
  RLV_UNROLL
  for (uint i = 0; i < 4; i++) {
    v[i] = a[i];
    v[4 + i] = b[i];
  }
}
METAL_FUNC void load8(thread float* v, device const bf16* p) {
  const uint4 pairs = *(device const uint4*)p;
  RLV_UNROLL
  for (uint i = 0; i < 4; i++) {
    v[2 * i] = low_half(pairs[i]);
    v[2 * i + 1] = high_half(pairs[i]);
  }
}
// Four pairs: v[0..3] the low halves, v[4..7] the high ones; zeros where there are none.
METAL_FUNC void load_pairs(thread float* v, device const void* p, ulong at, bool there) {
  const uint4 pairs = there ? *(device const uint4*)((device const uint*)p + at) : uint4(0);
  RLV_UNROLL
  for (uint i = 0; i < 4; i++) {
    v[i] = low_half(pairs[i]);
    v[4 + i] = high_half(pairs[i]);
  }
}

// A thread's 8 elements of the 16 x 64 stage of operand p that begins at (outer0, r0). Eight consecutive ones
// in memory where the kind allows: r for ROWS and WEIGHT_NN, outer for the others; bfloat16 weights as four
// pairs.
template <typename S, int KIND>
METAL_FUNC void fetch(thread float* v, device const S* p, Operand o, uint outer0, uint r0, uint t) {
  const bool along_r = KIND == RLV_ROWS || KIND == RLV_WEIGHT_NN;
  const uint outer = outer0 + (along_r ? t / 2 : t % 8 * 8);
  const uint r = r0 + (along_r ? t % 2 * 8 : t / 8);
  const bool whole = along_r ? outer < o.outer && r + 8 <= o.r : outer + 8 <= o.outer && r < o.r;
  // Rows of a multiple of 8 elements, and panels of packed weights, begin at multiples of 16 bytes.
  if (whole && (KIND >= RLV_WEIGHT_NT || o.stride % 8 == 0)) {
    load8(v, p + element_index<S, KIND>(o, outer, r));
  } else {
    RLV_UNROLL
    for (uint i = 0; i < 8; i++)
      v[i] = along_r ? element<S, KIND>(p, o, outer, r + i) : element<S, KIND>(p, o, outer + i, r);
  }
}
METAL_FUNC void fetch_pairs_nt(thread float* v, device const void* p, Operand o, uint outer0, uint r0,
                               uint t) {
  const uint outer = outer0 + t % 16 * 4, pair = r0 / 2 + t / 16;
  const ulong at = (ulong(outer / RLV_PANEL) * ((o.stride + 1) / 2) + pair) * RLV_PANEL + outer % RLV_PANEL;
  // Panels are padded to 32 columns, so the last ones of a weight are there even beyond its n.
  load_pairs(v, p, at, outer < o.outer && 2 * pair < o.r);
}
METAL_FUNC void fetch_pairs_nn(thread float* v, device const void* p, Operand o, uint outer0, uint r0,
                               uint t) {
  const uint pair = outer0 / 2 + t / 4, r = r0 + t % 4 * 4;
  const ulong at = (ulong(r / RLV_PANEL) * ((o.stride + 1) / 2) + pair) * RLV_PANEL + r % RLV_PANEL;
  load_pairs(v, p, at, r < o.r && 2 * pair < o.outer);
}

template <int KIND, bool PAIRED>
METAL_FUNC void place(threadgroup float* stage, thread const float* v, uint t) {
  const bool along_r = KIND == RLV_ROWS || KIND == RLV_WEIGHT_NN;
  const uint outer = along_r ? t / 2 : t % 8 * 8;
  const uint r = along_r ? t % 2 * 8 : t / 8;
  RLV_UNROLL
  for (uint i = 0; i < 8; i++) {
    const uint to = along_r ? r + i : r;
    // Position of r in the stage: even r first.
    const uint position = PAIRED ? (to % 2) * 8 + to / 2 : to;
    stage[position * RLV_TILE_STRIDE + outer + (along_r ? 0 : i)] = v[i];
  }
}

// One operand's part of a stage, as two functions so that loads of the next stage overlap this one's
// products.
template <typename S, int KIND>
struct Stage {
  static constexpr constant bool pairs_in_memory = sizeof(S) == 2 && KIND >= RLV_WEIGHT_NT;
  static METAL_FUNC void load(thread float* v, device const S* p, Operand o, uint outer0, uint r0, uint t) {
    if (pairs_in_memory && KIND == RLV_WEIGHT_NT)
      fetch_pairs_nt(v, p, o, outer0, r0, t);
    else if (pairs_in_memory)
      fetch_pairs_nn(v, p, o, outer0, r0, t);
    else
      fetch<S, KIND>(v, p, o, outer0, r0, t);
  }
  template <bool PAIRED>
  static METAL_FUNC void store(threadgroup float* stage, thread const float* v, uint t) {
    if (pairs_in_memory && KIND == RLV_WEIGHT_NT) {
      const uint outer = t % 16 * 4, pair = t / 16;
      RLV_UNROLL
      for (uint i = 0; i < 4; i++) {
        stage[pair * RLV_TILE_STRIDE + outer + i] = v[i];
        stage[(8 + pair) * RLV_TILE_STRIDE + outer + i] = v[4 + i];
      }
    } else if (pairs_in_memory) {
      const uint outer = t / 4 * 2, r = t % 4 * 4;
      RLV_UNROLL
      for (uint i = 0; i < 4; i++) {
        stage[(r + i) * RLV_TILE_STRIDE + outer] = v[i];
        stage[(r + i) * RLV_TILE_STRIDE + outer + 1] = v[4 + i];
      }
    } else {
      place<KIND, PAIRED>(stage, v, t);
    }
  }
};

// ---- one simdgroup's 32 x 32 part of a tile
// -----------------------------------------------------------------

// 4 x 4 fragments; part (row, col) of the tile's 2 x 2 simdgroups.
struct Accumulators {
  simdgroup_float8x8 c[4][4];
};
METAL_FUNC void clear(thread Accumulators& acc) {
  RLV_UNROLL
  for (uint i = 0; i < 4; i++) RLV_UNROLL
  for (uint j = 0; j < 4; j++) acc.c[i][j] = simdgroup_float8x8(0.0f);
}

// acc += A*B of one stage: 16 r, stages laid out [position][outer].
METAL_FUNC void multiply_stage(thread Accumulators& acc, threadgroup const float* a,
                               threadgroup const float* b, uint row0, uint col0) {
  RLV_UNROLL
  for (uint half_step = 0; half_step < 2; half_step++) {
    simdgroup_float8x8 fa[4], fb[4];
    RLV_UNROLL
    for (uint i = 0; i < 4; i++)
      simdgroup_load(fa[i], a + half_step * 8 * RLV_TILE_STRIDE + row0 + 8 * i, RLV_TILE_STRIDE, ulong2(0, 0),
                     true);
    RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      simdgroup_load(fb[j], b + half_step * 8 * RLV_TILE_STRIDE + col0 + 8 * j, RLV_TILE_STRIDE);
    RLV_UNROLL
    for (uint i = 0; i < 4; i++) RLV_UNROLL
    for (uint j = 0; j < 4; j++) simdgroup_multiply_accumulate(acc.c[i][j], fa[i], fb[j], acc.c[i][j]);
  }
}

// A lane's 2 x 2 elements of a step of a row: f0's in v.xy, f1's in v.zw. r is what comes first in the row.
METAL_FUNC float4 load_step(device const float* row, uint c, bool) {
  const float2 a = *(device const float2*)(row + c), b = *(device const float2*)(row + 8 + c);
  return float4(a.x, a.y, b.x, b.y);
}
METAL_FUNC float4 load_step(device const bf16* row, uint c, bool paired) {
  if (paired) {  // r = 2c, 2c + 2 for f0 and 2c + 1, 2c + 3 for f1
    const uint2 pairs = *(device const uint2*)(row + 2 * c);
    return float4(low_half(pairs.x), low_half(pairs.y), high_half(pairs.x), high_half(pairs.y));
  }
  const uint a = *(device const uint*)(row + c), b = *(device const uint*)(row + 8 + c);
  return float4(low_half(a), high_half(a), low_half(b), high_half(b));
}

// Two fragments of operand A at (outer0, r0): f0 and f1 of a step.
template <typename S, int KIND, bool PAIRED>
METAL_FUNC void fragments_a(thread simdgroup_float8x8& f0, thread simdgroup_float8x8& f1, device const S* p,
                            Operand o, uint outer0, uint r0, uint lane) {
  const uint outer = outer0 + fragment_row(lane), c = fragment_col(lane);
  if (KIND == RLV_ROWS && outer < o.outer && r0 + RLV_STEP <= o.r && o.stride % 4 == 0) {
    const float4 v = load_step(p + outer * o.stride + r0, c, PAIRED);
    RLV_UNROLL
    for (uint e = 0; e < 2; e++) {
      f0.thread_elements()[e] = v[e];
      f1.thread_elements()[e] = v[2 + e];
    }
    return;
  }
  RLV_UNROLL
  for (uint e = 0; e < 2; e++) {
    f0.thread_elements()[e] = element<S, KIND>(p, o, outer, r0 + (PAIRED ? 2 * (c + e) : c + e));
    f1.thread_elements()[e] = element<S, KIND>(p, o, outer, r0 + (PAIRED ? 2 * (c + e) + 1 : 8 + c + e));
  }
}
template <typename S, int KIND, bool PAIRED>
METAL_FUNC void fragments_b(thread simdgroup_float8x8& f0, thread simdgroup_float8x8& f1, device const S* p,
                            Operand o, uint outer0, uint r0, uint lane) {
  const uint row = fragment_row(lane), outer = outer0 + fragment_col(lane);
  if (PAIRED && KIND == RLV_WEIGHT_NT) {
    const uint pair = r0 / 2 + row;
    const ulong at = (ulong(outer / RLV_PANEL) * ((o.stride + 1) / 2) + pair) * RLV_PANEL + outer % RLV_PANEL;
    const uint2 pairs =
        outer < o.outer && 2 * pair < o.r ? *(device const uint2*)((device const uint*)p + at) : uint2(0);
    RLV_UNROLL
    for (uint e = 0; e < 2; e++) {
      f0.thread_elements()[e] = low_half(pairs[e]);
      f1.thread_elements()[e] = high_half(pairs[e]);
    }
  } else {
    RLV_UNROLL
    for (uint e = 0; e < 2; e++) {
      f0.thread_elements()[e] = element<S, KIND>(p, o, outer + e, r0 + row);
      f1.thread_elements()[e] = element<S, KIND>(p, o, outer + e, r0 + 8 + row);
    }
  }
}

// acc = the simdgroup's part of the product over steps [first, last), fragments straight from device memory:
// for chips whose caches feed registers faster than threadgroup memory does (Apple9 and later).
template <typename SA, int KA, typename SB, int KB, bool PAIRED>
METAL_FUNC void multiply_direct(thread Accumulators& acc, device const SA* a, Operand oa, device const SB* b,
                                Operand ob, uint row0, uint col0, uint first, uint last, uint lane) {
  for (uint step = first; step < last; step++) {
    simdgroup_float8x8 fa[2][4], fb[2][4];
    RLV_UNROLL
    for (uint i = 0; i < 4; i++) {
      fragments_a<SA, KA, PAIRED>(fa[0][i], fa[1][i], a, oa, row0 + 8 * i, step * RLV_STEP, lane);
      fragments_b<SB, KB, PAIRED>(fb[0][i], fb[1][i], b, ob, col0 + 8 * i, step * RLV_STEP, lane);
    }
    RLV_UNROLL
    for (uint half_step = 0; half_step < 2; half_step++) RLV_UNROLL
    for (uint i = 0; i < 4; i++) RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      simdgroup_multiply_accumulate(acc.c[i][j], fa[half_step][i], fb[half_step][j], acc.c[i][j]);
  }
}

// acc += steps [first, last) through threadgroup memory: two stages of both operands, 4*RLV_STAGE floats. The
// loads of the next step are under way while this one multiplies. Ends with a barrier.
template <typename SA, int KA, typename SB, int KB, bool PAIRED>
METAL_FUNC void multiply_staged(thread Accumulators& acc, device const SA* a, Operand oa, device const SB* b,
                                Operand ob, threadgroup float* stages, uint outer_a, uint outer_b, uint row0,
                                uint col0, uint first, uint last, uint t) {
  float va[8], vb[8];
  if (first < last) {
    Stage<SA, KA>::load(va, a, oa, outer_a, first * RLV_STEP, t);
    Stage<SB, KB>::load(vb, b, ob, outer_b, first * RLV_STEP, t);
  }
  for (uint step = first; step < last; step++) {
    threadgroup float* stage = stages + (step - first) % 2 * 2 * RLV_STAGE;
    Stage<SA, KA>::template store<PAIRED>(stage, va, t);
    Stage<SB, KB>::template store<PAIRED>(stage + RLV_STAGE, vb, t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (step + 1 < last) {
      Stage<SA, KA>::load(va, a, oa, outer_a, (step + 1) * RLV_STEP, t);
      Stage<SB, KB>::load(vb, b, ob, outer_b, (step + 1) * RLV_STEP, t);
    }
    multiply_stage(acc, stage, stage + RLV_STAGE, row0, col0);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The forward product's tile with its spans: total = ((span 0 + span 1) + span 2) + span 3.
template <typename S, bool DIRECT>
METAL_FUNC void forward_tile(thread Accumulators& total, device const S* x, Operand ox, device const S* w,
                             Operand ow, threadgroup float* stages, uint outer_a, uint outer_b, uint t,
                             uint lane, uint simdgroup) {
  const bool paired = sizeof(S) == 2;
  const uint row0 = simdgroup / 2 * 32, col0 = simdgroup % 2 * 32;
  const uint steps = ceil_div(ow.r, RLV_STEP), span = span_steps(ow.r);
  for (uint s = 0; s < spans_of(ow.r); s++) {
    Accumulators part;
    clear(part);
    const uint first = min(s * span, steps), last = min((s + 1) * span, steps);
    if (DIRECT)
      multiply_direct<S, RLV_ROWS, S, RLV_WEIGHT_NT, paired>(part, x, ox, w, ow, outer_a + row0,
                                                             outer_b + col0, first, last, lane);
    else
      multiply_staged<S, RLV_ROWS, S, RLV_WEIGHT_NT, paired>(part, x, ox, w, ow, stages, outer_a, outer_b,
                                                             row0, col0, first, last, t);
    RLV_UNROLL
    for (uint i = 0; i < 4; i++) RLV_UNROLL
    for (uint j = 0; j < 4; j++) RLV_UNROLL
    for (uint e = 0; e < 2; e++)
      if (s == 0)
        total.c[i][j].thread_elements()[e] = part.c[i][j].thread_elements()[e];
      else
        total.c[i][j].thread_elements()[e] += part.c[i][j].thread_elements()[e];
  }
}
