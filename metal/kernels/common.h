// What every kernel file includes: storage types, loads and stores, and how a kernel reports bad
// data.
//
// A kernel's arguments: [[buffer(0)]] the operation's record (ops.gen.h); [[buffer(1 + i)]] its i-th tensor
// (a dummy when absent: ask `a.bias.buffer != 0`); [[buffer(RLV_EXTRA)]] constants of one dispatch, if any;
// [[buffer(RLV_ERROR)]] the error record. bfloat16 is stored as ushort and widened by a shift, so that no
// chip needs hardware bfloat. Needs MSL 3.0.
#pragma once
#include <metal_stdlib>
#include "ops.gen.h"
#include "errors.h"
using namespace metal;

// The same expression gives the same bits in every kernel: a product and a sum become one operation only by
// fma().
#pragma METAL fp contract(off)
#pragma STDC FP_CONTRACT OFF

// Loops over arrays of a thread: an index that is not known when compiling would put the array into memory.
// Apple's compiler does not unroll loops around simdgroup matrices by itself. Helpers are METAL_FUNC (always
// inlined) for the same reason.
#define RLV_UNROLL _Pragma("clang loop unroll(full)")

#define RLV_EXTRA 29
#define RLV_ERROR 30
#define RLV_SIMD 32u

typedef ushort bf16;

// Instantiates kernel template `name` as `host`: RLV_KERNEL("cast_f32_bf16", cast, float, bf16)
#define RLV_KERNEL(host, name, ...) \
  template [[host_name(host)]] [[kernel]] decltype(name<__VA_ARGS__>) name<__VA_ARGS__>;

METAL_FUNC float widen(float x) { return x; }
METAL_FUNC float widen(bf16 x) { return as_type<float>(uint(x) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
METAL_FUNC bf16 to_bf16(float x) {
  const uint bits = as_type<uint>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16((bits >> 16) | 0x40u);
  return bf16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
template <typename S>
METAL_FUNC S narrow(float x);
template <>
METAL_FUNC float narrow<float>(float x) {
  return x;
}
template <>
METAL_FUNC bf16 narrow<bf16>(float x) {
  return to_bf16(x);
}

// Elements of a packed weight's reduction dimension, bytes apart: f32 [N/32][K][32], bf16
// [N/32][ceil(K/2)][32][2].
METAL_FUNC ulong packed_index(uint row, uint col, uint k, bool pairs) {
  const ulong panel = row / RLV_PANEL;
  const uint lane = row % RLV_PANEL;
  if (pairs) return ((panel * ((k + 1) / 2) + col / 2) * RLV_PANEL + lane) * 2 + col % 2;
  return (panel * k + col) * RLV_PANEL + lane;
}
template <typename S>
METAL_FUNC bool packs_pairs();
template <>
METAL_FUNC bool packs_pairs<float>() {
  return false;
}
template <>
METAL_FUNC bool packs_pairs<bf16>() {
  return true;
}

// Where the keys of a kv head begin in a page of the store: {K [dim][16], V [16][dim]} by head.
METAL_FUNC ulong page_offset(uint page, uint kv_heads, uint kv_head, uint dim) {
  return (ulong(page) * kv_heads + kv_head) * 2 * RLV_PAGE * dim;
}

// Row of an 8 x 8 simdgroup matrix that a lane holds two elements of, and the column of the first.
METAL_FUNC uint fragment_row(uint lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
METAL_FUNC uint fragment_col(uint lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }

METAL_FUNC uint ceil_div(uint a, uint b) { return (a + b - 1) / b; }

// The first report of a command buffer is kept.
METAL_FUNC void report(device atomic_uint* error, uint code, uint value) {
  uint expected = 0;
  while (expected == 0) {
    if (atomic_compare_exchange_weak_explicit(error, &expected, code, memory_order_relaxed,
                                              memory_order_relaxed)) {
      atomic_store_explicit(error + 1, value, memory_order_relaxed);
      return;
    }
  }
}
