// Products with frozen quantized weights, and the way to codes and back. Formats: src/ops/quant.ts. Codes are widened
// inside the tile; scales multiply float32 sums. Needs MSL 3.0 (simdgroup_matrix).
#include "gemm_skinny.h"

constant float kNf4[16] = {RLV_NF4_CODES};
constant float kLimits[15] = {RLV_NF4_LIMITS};

// Code types. Where the codes of a matrix lie, and what a code is as a number of type S.
struct Int8 {
  static constexpr constant bool blocks = false;
};
struct Nf4 {
  static constexpr constant bool blocks = true;
};

template <typename S>
METAL_FUNC float nf4_code(uint word, uint shift) {
  return widen(narrow<S>(kNf4[(word >> shift) & 15u]));
}
METAL_FUNC float byte_code(uint word, uint shift) { return float(int(word << (24 - shift)) >> 24); }

// Two columns r, r + 1 (r even) of one output: x the even one.
template <typename S>
METAL_FUNC float2 code_pair(device const void* codes, uint k, uint outer, uint r, Int8) {
  const uint word = ((device const ushort*)codes)[(ulong(outer / RLV_PANEL) * ((k + 1) / 2) + r / 2) * RLV_PANEL +
                                                  outer % RLV_PANEL];
  return float2(byte_code(word, 0), byte_code(word, 8));
}
template <typename S>
METAL_FUNC float2 code_pair(device const void* codes, uint k, uint outer, uint r, Nf4) {
  const uint word =
      ((device const uint*)codes)[(ulong(outer / RLV_PANEL) * (k / 8) + r / 8) * RLV_PANEL + outer % RLV_PANEL];
  const uint shift = r % 8 / 2 * 4;
  return float2(nf4_code<S>(word, shift), nf4_code<S>(word, shift + 16));
}
// The same of four outputs from a multiple of 4 on: v[0..3] the even columns, v[4..7] the odd ones.
template <typename S>
METAL_FUNC void code_pairs4(thread float* v, device const void* codes, uint k, uint outer, uint r, Int8) {
  const uint2 words = *(device const uint2*)((device const ushort*)codes +
                                             (ulong(outer / RLV_PANEL) * ((k + 1) / 2) + r / 2) * RLV_PANEL +
                                             outer % RLV_PANEL);
  RLV_UNROLL
  for (uint i = 0; i < 4; i++) {
    v[i] = byte_code(words[i / 2], i % 2 * 16);
    v[4 + i] = byte_code(words[i / 2], i % 2 * 16 + 8);
  }
}
template <typename S>
METAL_FUNC void code_pairs4(thread float* v, device const void* codes, uint k, uint outer, uint r, Nf4) {
  const uint4 words = *(device const uint4*)((device const uint*)codes +
                                             (ulong(outer / RLV_PANEL) * (k / 8) + r / 8) * RLV_PANEL +
                                             outer % RLV_PANEL);
  const uint shift = r % 8 / 2 * 4;
  RLV_UNROLL
  for (uint i = 0; i < 4; i++) {
    v[i] = nf4_code<S>(words[i], shift);
    v[4 + i] = nf4_code<S>(words[i], shift + 16);
  }
}

METAL_FUNC ulong scale_index(uint outer, uint, uint, Int8) { return outer; }
METAL_FUNC ulong scale_index(uint outer, uint r, uint k, Nf4) {
  return (ulong(outer / RLV_PANEL) * (k / RLV_QUANT_BLOCK) + r / RLV_QUANT_BLOCK) * RLV_PANEL + outer % RLV_PANEL;
}

// Steps of one of the spans of K; those of nf4 are whole blocks.
#define BLOCK_STEPS (RLV_QUANT_BLOCK / RLV_STEP)
template <typename Q>
METAL_FUNC uint quant_span(uint k) {
  return Q::blocks ? ceil_div(k / RLV_QUANT_BLOCK, spans_of(k)) * BLOCK_STEPS : span_steps(k);
}

// total += scale of its column * part, for a fragment whose first column is col0.
template <typename Q>
METAL_FUNC void add_scaled(thread simdgroup_float8x8& total, thread simdgroup_float8x8& part,
                           device const float* scales, uint n, uint k, uint col0, uint step, uint lane) {
  RLV_UNROLL
  for (uint e = 0; e < 2; e++) {
    const uint col = col0 + fragment_col(lane) + e;
    const float scale = col < n ? scales[scale_index(col, step * RLV_STEP, k, Q())] : 0.0f;
    total.thread_elements()[e] = fma(scale, part.thread_elements()[e], total.thread_elements()[e]);
  }
}

// An output from its sum: int8 has its scale here.
template <typename Q>
METAL_FUNC float finished(constant rlv_op_quant_linear& a, float sum, device const float* scales,
                          device const float* bias, uint col) {
  if (!Q::blocks) sum *= scales[col];
  return a.bias.buffer != 0 ? sum + bias[col] : sum;
}

// ---- tiles of 64 x 64 through threadgroup memory ----------------------------------------------------------

// A thread's 8 elements of a 16 x 64 stage of weights. NN: outer is a column of w, r an output; the value has its scale
// and is rounded to S.
template <typename S, typename Q, bool NN>
METAL_FUNC void load_codes(thread float* v, device const void* codes, device const float* scales, uint n, uint k,
                           uint outer0, uint r0, uint t) {
  const uint output = NN ? r0 + t % 4 * 4 : outer0 + t % 16 * 4;
  const uint col = NN ? outer0 + t / 4 * 2 : r0 + t / 16 * 2;
  if (output >= n || col >= k) {
    RLV_UNROLL
    for (uint i = 0; i < 8; i++) v[i] = 0.0f;
    return;
  }
  // Panels are padded to 32 outputs: four from a multiple of 4 on are there.
  code_pairs4<S>(v, codes, k, output, col, Q());
  if (!NN) return;
  const float4 scale = *(device const float4*)(scales + scale_index(output, col, k, Q()));
  RLV_UNROLL
  for (uint i = 0; i < 4; i++) {
    v[i] = widen(narrow<S>(v[i] * scale[i]));
    v[4 + i] = widen(narrow<S>(v[4 + i] * scale[i]));
  }
}
template <bool NN, bool PAIRED>
METAL_FUNC void store_codes(threadgroup float* stage, thread const float* v, uint t) {
  RLV_UNROLL
  for (uint i = 0; i < 4; i++)
    if (NN) {
      stage[(t % 4 * 4 + i) * RLV_TILE_STRIDE + t / 4 * 2] = v[i];
      stage[(t % 4 * 4 + i) * RLV_TILE_STRIDE + t / 4 * 2 + 1] = v[4 + i];
    } else {
      const uint pair = t / 16, outer = t % 16 * 4 + i;
      stage[(PAIRED ? pair : 2 * pair) * RLV_TILE_STRIDE + outer] = v[i];
      stage[(PAIRED ? 8 + pair : 2 * pair + 1) * RLV_TILE_STRIDE + outer] = v[4 + i];
    }
}

// acc += steps [first, last) of a product whose second operand is codes; as multiply_staged.
template <typename S, typename Q, bool NN>
METAL_FUNC void multiply_codes(thread Accumulators& acc, device const S* a, Operand oa, device const void* codes,
                               device const float* scales, uint n, uint k, threadgroup float* stages, uint outer_a,
                               uint outer_b, uint row0, uint col0, uint first, uint last, uint t) {
  const bool paired = sizeof(S) == 2 && !NN;
  float va[8], vb[8];
  if (first < last) {
    Stage<S, RLV_ROWS>::load(va, a, oa, outer_a, first * RLV_STEP, t);
    load_codes<S, Q, NN>(vb, codes, scales, n, k, outer_b, first * RLV_STEP, t);
  }
  for (uint step = first; step < last; step++) {
    threadgroup float* stage = stages + (step - first) % 2 * 2 * RLV_STAGE;
    Stage<S, RLV_ROWS>::template store<paired>(stage, va, t);
    store_codes<NN, paired>(stage + RLV_STAGE, vb, t);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (step + 1 < last) {
      Stage<S, RLV_ROWS>::load(va, a, oa, outer_a, (step + 1) * RLV_STEP, t);
      load_codes<S, Q, NN>(vb, codes, scales, n, k, outer_b, (step + 1) * RLV_STEP, t);
    }
    multiply_stage(acc, stage, stage + RLV_STAGE, row0, col0);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// y[m][n] = x[m][k]*w[n][k]^T + bias[n] for more than 64 rows. Grid (m/64, n/64), the shorter side first, 128 threads,
// 16.5 KiB.
template <typename S, typename Y, typename Q>
kernel void quant_linear(constant rlv_op_quant_linear& a [[buffer(0)]], device Y* y [[buffer(1)]],
                         device const S* x [[buffer(2)]], device const void* codes [[buffer(3)]],
                         device const float* scales [[buffer(4)]], device const float* bias [[buffer(5)]],
                         uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[4 * RLV_STAGE];
  const uint2 tile = a.m <= a.n ? group : uint2(group.y, group.x);
  const uint outer_a = tile.x * RLV_TILE, outer_b = tile.y * RLV_TILE;
  const uint row0 = simdgroup / 2 * 32, col0 = simdgroup % 2 * 32;
  const uint steps = ceil_div(a.k, RLV_STEP), span = quant_span<Q>(a.k);
  const Operand ox = operand(a.k, a.m, a.k);
  Accumulators total;
  for (uint s = 0; s < spans_of(a.k); s++) {
    const uint first = min(s * span, steps), last = min((s + 1) * span, steps);
    Accumulators sum;
    clear(sum);
    if (Q::blocks) {
      for (uint step = first; step < last; step += BLOCK_STEPS) {
        Accumulators part;
        clear(part);
        multiply_codes<S, Q, false>(part, x, ox, codes, scales, a.n, a.k, stages, outer_a, outer_b, row0, col0, step,
                                    step + BLOCK_STEPS, t);
        RLV_UNROLL
        for (uint i = 0; i < 4; i++)
          RLV_UNROLL
          for (uint j = 0; j < 4; j++)
            add_scaled<Q>(sum.c[i][j], part.c[i][j], scales, a.n, a.k, outer_b + col0 + 8 * j, step, lane);
      }
    } else {
      multiply_codes<S, Q, false>(sum, x, ox, codes, scales, a.n, a.k, stages, outer_a, outer_b, row0, col0, first,
                                  last, t);
    }
    RLV_UNROLL
    for (uint i = 0; i < 4; i++)
      RLV_UNROLL
      for (uint j = 0; j < 4; j++)
        RLV_UNROLL
        for (uint e = 0; e < 2; e++) {
          const float before = s == 0 ? 0.0f : total.c[i][j].thread_elements()[e];
          const float part = sum.c[i][j].thread_elements()[e];
          total.c[i][j].thread_elements()[e] = s == 0 ? part : before + part;
        }
  }
  RLV_UNROLL
  for (uint i = 0; i < 4; i++)
    RLV_UNROLL
    for (uint j = 0; j < 4; j++)
      RLV_UNROLL
      for (uint e = 0; e < 2; e++) {
        const uint row = outer_a + row0 + 8 * i + fragment_row(lane);
        const uint col = outer_b + col0 + 8 * j + fragment_col(lane) + e;
        if (row < a.m && col < a.n)
          y[ulong(row) * a.n + col] =
              narrow<Y>(finished<Q>(a, total.c[i][j].thread_elements()[e], scales, bias, col));
      }
}

// ---- few rows ---------------------------------------------------------------------------------------------

// Two fragments of codes at (outer0, r0): f0 and f1 of a step, even columns first for bfloat16.
template <typename S, typename Q>
METAL_FUNC void code_fragments(thread simdgroup_float8x8& f0, thread simdgroup_float8x8& f1, device const void* codes,
                               uint n, uint k, uint outer0, uint r0, uint lane) {
  const bool paired = sizeof(S) == 2;
  const uint row = fragment_row(lane), outer = outer0 + fragment_col(lane);
  RLV_UNROLL
  for (uint e = 0; e < 2; e++) {
    const bool there = outer + e < n;
    if (paired) {
      const uint r = r0 + 2 * row;
      const float2 pair = there && r < k ? code_pair<S>(codes, k, outer + e, r, Q()) : float2(0.0f);
      f0.thread_elements()[e] = pair.x;
      f1.thread_elements()[e] = pair.y;
    } else {
      const uint ra = r0 + row, rb = ra + 8;
      const float2 pa = there && ra < k ? code_pair<S>(codes, k, outer + e, ra / 2 * 2, Q()) : float2(0.0f);
      const float2 pb = there && rb < k ? code_pair<S>(codes, k, outer + e, rb / 2 * 2, Q()) : float2(0.0f);
      f0.thread_elements()[e] = ra % 2 == 0 ? pa.x : pa.y;
      f1.thread_elements()[e] = rb % 2 == 0 ? pb.x : pb.y;
    }
  }
}

template <typename S, typename Q, uint ROWS>
METAL_FUNC void multiply_skinny(thread simdgroup_float8x8 (&acc)[ROWS][2], device const S* x, Operand ox,
                                device const void* codes, uint n, uint k, uint col0, uint first, uint last,
                                uint lane) {
  const bool paired = sizeof(S) == 2;
  for (uint step = first; step < last; step++) {
    simdgroup_float8x8 fa[2], fb[2][2];
    RLV_UNROLL
    for (uint j = 0; j < 2; j++)
      code_fragments<S, Q>(fb[0][j], fb[1][j], codes, n, k, col0 + 8 * j, step * RLV_STEP, lane);
    RLV_UNROLL
    for (uint i = 0; i < ROWS; i++) {
      fragments_a<S, RLV_ROWS, paired>(fa[0], fa[1], x, ox, 8 * i, step * RLV_STEP, lane);
      RLV_UNROLL
      for (uint half_step = 0; half_step < 2; half_step++)
        RLV_UNROLL
        for (uint j = 0; j < 2; j++)
          simdgroup_multiply_accumulate(acc[i][j], fa[half_step], fb[half_step][j], acc[i][j]);
    }
  }
}

template <uint ROWS>
METAL_FUNC void clear_rows(thread simdgroup_float8x8 (&acc)[ROWS][2]) {
  RLV_UNROLL
  for (uint i = 0; i < ROWS; i++)
    RLV_UNROLL
    for (uint j = 0; j < 2; j++) acc[i][j] = simdgroup_float8x8(0.0f);
}

// The same for at most 8*ROWS rows: as gemm_nt_skinny, each code read once. Grid (n/(64/SPANS)), 128 threads,
// 2*ROWS KiB.
template <typename S, typename Y, typename Q, uint ROWS, uint SPANS>
kernel void quant_skinny(constant rlv_op_quant_linear& a [[buffer(0)]], device Y* y [[buffer(1)]],
                         device const S* x [[buffer(2)]], device const void* codes [[buffer(3)]],
                         device const float* scales [[buffer(4)]], device const float* bias [[buffer(5)]],
                         uint group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[4][ROWS * 8][16];
  const Operand ox = operand(a.k, a.m, a.k);
  const uint col0 = SPANS == 4 ? group * 16 : group * 64 + simdgroup * 16;
  const uint steps = ceil_div(a.k, RLV_STEP), span = quant_span<Q>(a.k);
  const uint first = SPANS == 4 ? min(simdgroup * span, steps) : 0;
  const uint last = SPANS == 4 ? min((simdgroup + 1) * span, steps) : steps;

  simdgroup_float8x8 sum[ROWS][2];
  clear_rows<ROWS>(sum);
  if (Q::blocks) {
    for (uint step = first; step < last; step += BLOCK_STEPS) {
      simdgroup_float8x8 part[ROWS][2];
      clear_rows<ROWS>(part);
      multiply_skinny<S, Q, ROWS>(part, x, ox, codes, a.n, a.k, col0, step, step + BLOCK_STEPS, lane);
      RLV_UNROLL
      for (uint i = 0; i < ROWS; i++)
        RLV_UNROLL
        for (uint j = 0; j < 2; j++)
          add_scaled<Q>(sum[i][j], part[i][j], scales, a.n, a.k, col0 + 8 * j, step, lane);
    }
  } else {
    multiply_skinny<S, Q, ROWS>(sum, x, ox, codes, a.n, a.k, col0, first, last, lane);
  }
  store_parts<ROWS>(sum, &parts[0][0][0], simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const uint blocks = 4 / SPANS;  // of 16 columns
  for (uint at = t; at < blocks * ROWS * 8 * 16; at += RLV_TILE_THREADS) {
    const uint block = at / (ROWS * 8 * 16), row = at / 16 % (ROWS * 8), c = at % 16;
    const uint col = group * 16 * blocks + block * 16 + c;
    if (row >= a.m || col >= a.n) continue;
    const float total = sum_parts<ROWS, SPANS>(&parts[0][0][0], block, row, c);
    y[ulong(row) * a.n + col] = narrow<Y>(finished<Q>(a, total, scales, bias, col));
  }
}

#define SKINNY(q, Q, rows, spans)                                                                                    \
  RLV_KERNEL("quant_skinny_" q #rows "_" #spans "_f32_f32", quant_skinny, float, float, Q, rows, spans)              \
  RLV_KERNEL("quant_skinny_" q #rows "_" #spans "_f32_bf16", quant_skinny, float, bf16, Q, rows, spans)              \
  RLV_KERNEL("quant_skinny_" q #rows "_" #spans "_bf16_f32", quant_skinny, bf16, float, Q, rows, spans)              \
  RLV_KERNEL("quant_skinny_" q #rows "_" #spans "_bf16_bf16", quant_skinny, bf16, bf16, Q, rows, spans)
#define LINEAR(q, Q)                                                      \
  RLV_KERNEL("quant_linear_" q "_f32_f32", quant_linear, float, float, Q) \
  RLV_KERNEL("quant_linear_" q "_f32_bf16", quant_linear, float, bf16, Q) \
  RLV_KERNEL("quant_linear_" q "_bf16_f32", quant_linear, bf16, float, Q) \
  RLV_KERNEL("quant_linear_" q "_bf16_bf16", quant_linear, bf16, bf16, Q) \
  SKINNY(q, Q, 1, 1)                                                      \
  SKINNY(q, Q, 2, 1)                                                      \
  SKINNY(q, Q, 4, 1)                                                      \
  SKINNY(q, Q, 8, 1)                                                      \
  SKINNY(q, Q, 1, 4)                                                      \
  SKINNY(q, Q, 2, 4)                                                      \
  SKINNY(q, Q, 4, 4)                                                      \
  SKINNY(q, Q, 8, 4)
LINEAR("int8", Int8)
LINEAR("nf4", Nf4)

// ---- gradient, rows, codes --------------------------------------------------------------------------------

// dx[m][k] (+)= dy[m][n]*w[n][k]: one chain over n. Grid (m/64, k/64), the shorter side first, 128 threads, 16.5 KiB.
template <typename S, typename Q>
kernel void quant_linear_bwd(constant rlv_op_quant_linear_bwd& a [[buffer(0)]], device S* dx [[buffer(1)]],
                             device const S* dy [[buffer(2)]], device const void* codes [[buffer(3)]],
                             device const float* scales [[buffer(4)]], uint2 group [[threadgroup_position_in_grid]],
                             uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float stages[4 * RLV_STAGE];
  const uint2 tile = a.m <= a.k ? group : uint2(group.y, group.x);
  const uint outer_a = tile.x * RLV_TILE, outer_b = tile.y * RLV_TILE;
  const uint row0 = simdgroup / 2 * 32, col0 = simdgroup % 2 * 32;
  Accumulators acc;
  clear(acc);
  multiply_codes<S, Q, true>(acc, dy, operand(a.n, a.m, a.n), codes, scales, a.n, a.k, stages, outer_a, outer_b, row0,
                             col0, 0, ceil_div(a.n, RLV_STEP), t);
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
RLV_KERNEL("quant_linear_bwd_int8_f32", quant_linear_bwd, float, Int8)
RLV_KERNEL("quant_linear_bwd_int8_bf16", quant_linear_bwd, bf16, Int8)
RLV_KERNEL("quant_linear_bwd_nf4_f32", quant_linear_bwd, float, Nf4)
RLV_KERNEL("quant_linear_bwd_nf4_bf16", quant_linear_bwd, bf16, Nf4)

template <typename S, typename Q>
METAL_FUNC float code_at(device const void* codes, uint k, uint outer, uint r) {
  const float2 pair = code_pair<S>(codes, k, outer, r / 2 * 2, Q());
  return r % 2 == 0 ? pair.x : pair.y;
}

// y[t] = row ids[t]. Grid (cols/256, rows), 256 threads.
template <typename Y, typename Q>
kernel void quant_embed(constant rlv_op_quant_embed& a [[buffer(0)]], device Y* y [[buffer(1)]],
                        device const uint* ids [[buffer(2)]], device const void* codes [[buffer(3)]],
                        device const float* scales [[buffer(4)]], device atomic_uint* error [[buffer(RLV_ERROR)]],
                        uint2 at [[thread_position_in_grid]]) {
  const uint id = ids[at.y];
  if (id >= a.vocab) {
    if (at.x == 0) report(error, RLV_BAD_QUANT_EMBED_ID, id);
    return;
  }
  if (at.x < a.cols)
    y[ulong(at.y) * a.cols + at.x] =
        narrow<Y>(code_at<Y, Q>(codes, a.cols, id, at.x) * scales[scale_index(id, at.x, a.cols, Q())]);
}
RLV_KERNEL("quant_embed_int8_f32", quant_embed, float, Int8)
RLV_KERNEL("quant_embed_int8_bf16", quant_embed, bf16, Int8)
RLV_KERNEL("quant_embed_nf4_f32", quant_embed, float, Nf4)
RLV_KERNEL("quant_embed_nf4_bf16", quant_embed, bf16, Nf4)

// x as the nearest float16, ties to even.
METAL_FUNC float rounded_to_f16(float x) {
  if (fabs(x) < 6.103515625e-5f) return rint(x * 16777216.0f) * 5.9604644775390625e-8f;  // multiples of 2^-24
  const uint bits = as_type<uint>(x);
  const float rounded = as_type<float>((bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu);
  return fabs(rounded) >= 65536.0f ? copysign(INFINITY, x) : rounded;
}

// Bits of magnitudes are in their order, and those of NaN above all others.
METAL_FUNC uint magnitude(float x) { return as_type<uint>(x) & 0x7fffffffu; }

// Codes of a row in bytes; rows beyond n are padding. A simdgroup has a row. Grid (padded n/4), 128 threads.
template <typename S>
kernel void quantize_int8(constant rlv_op_quantize_weight& a [[buffer(0)]], device char* codes [[buffer(1)]],
                          device float* scales [[buffer(2)]], device const S* src [[buffer(3)]],
                          uint group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row = group * 4 + simdgroup;
  uint bits = 0;
  if (row < a.n)
    for (uint i = lane; i < a.k; i += RLV_SIMD)
      bits = max(bits, magnitude(rounded_to_f16(widen(src[ulong(row) * a.k + i]))));
  const float most = as_type<float>(simd_max(bits));
  const float inverse = most > 0.0f ? 127.0f * (1.0f / most) : 0.0f;
  if (lane == 0) scales[row] = most / 127.0f;
  for (uint i = lane; i < ceil_div(a.k, 2) * 2; i += RLV_SIMD) {
    const float x = row < a.n && i < a.k ? rounded_to_f16(widen(src[ulong(row) * a.k + i])) : 0.0f;
    codes[packed_index(row, i, a.k, true)] = char(clamp(rint(x * inverse), -127.0f, 127.0f));
  }
}
RLV_KERNEL("quantize_int8_f32", quantize_int8, float)
RLV_KERNEL("quantize_int8_bf16", quantize_int8, bf16)

// Codes of a row in words of four. A simdgroup has a block of 64. Grid (k/64, padded n/4), 128 threads.
template <typename S>
kernel void quantize_nf4(constant rlv_op_quantize_weight& a [[buffer(0)]], device ushort* codes [[buffer(1)]],
                         device float* scales [[buffer(2)]], device const S* src [[buffer(3)]],
                         uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row = group.y * 4 + simdgroup, k0 = group.x * RLV_QUANT_BLOCK;
  device const S* x = src + ulong(row) * a.k + k0;
  const bool there = row < a.n;
  const uint bits = there ? max(magnitude(widen(x[lane])), magnitude(widen(x[lane + RLV_SIMD]))) : 0;
  float most = as_type<float>(simd_max(bits));
  if (most < RLV_NF4_SMALLEST) most = 0.0f;
  const float inverse = most > 0.0f ? 1.0f / most : 0.0f;
  if (lane == 0) scales[scale_index(row, k0, a.k, Nf4())] = most;
  if (lane >= RLV_QUANT_BLOCK / 4) return;
  // Lane 2b + p: columns 8b + 2s + p.
  uint word = 0;
  for (uint s = 0; s < 4 && there; s++) {
    const float value = widen(x[lane / 2 * 8 + 2 * s + lane % 2]) * inverse;
    uint code = 0;
    for (uint i = 0; i < 15; i++) code += value > kLimits[i] ? 1u : 0u;
    word |= code << (4 * s);
  }
  codes[((ulong(row / RLV_PANEL) * (a.k / 8) + k0 / 8 + lane / 2) * RLV_PANEL + row % RLV_PANEL) * 2 + lane % 2] =
      ushort(word);
}
RLV_KERNEL("quantize_nf4_f32", quantize_nf4, float)
RLV_KERNEL("quantize_nf4_bf16", quantize_nf4, bf16)

// dst[n][k] = codes*scales. Grid (k/256, n), 256 threads.
template <typename Q>
kernel void dequantize(constant rlv_op_dequantize_weight& a [[buffer(0)]], device float* dst [[buffer(1)]],
                       device const void* codes [[buffer(2)]], device const float* scales [[buffer(3)]],
                       uint2 at [[thread_position_in_grid]]) {
  if (at.x >= a.k) return;
  dst[ulong(at.y) * a.k + at.x] =
      code_at<float, Q>(codes, a.k, at.y, at.x) * scales[scale_index(at.y, at.x, a.k, Q())];
}
RLV_KERNEL("dequantize_int8", dequantize, Int8)
RLV_KERNEL("dequantize_nf4", dequantize, Nf4)
