// Element-wise operations, copies and the packed weight layout. Needs MSL 2.3.
#include "common.h"

// Threads of these kernels go over their elements in strides of the grid: the launch file bounds its size.

// y = a + b; y may be a or b.
template <typename S>
kernel void add(constant rlv_op_add& a [[buffer(0)]], device S* y [[buffer(1)]], device const S* x0 [[buffer(2)]],
                device const S* x1 [[buffer(3)]], uint i [[thread_position_in_grid]],
                uint threads [[threads_per_grid]]) {
  for (ulong at = i; at < a.n; at += threads) y[at] = narrow<S>(widen(x0[at]) + widen(x1[at]));
}
RLV_KERNEL("add_f32", add, float)
RLV_KERNEL("add_bf16", add, bf16)

// y = value, float32.
kernel void fill(constant rlv_op_fill& a [[buffer(0)]], device float* y [[buffer(1)]],
                 uint i [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
  for (ulong at = i; at < a.n; at += threads) y[at] = a.value;
}

// n bytes: words of 16, then the rest one by one.
kernel void copy(constant rlv_op_copy& a [[buffer(0)]], device uchar* y [[buffer(1)]],
                 device const uchar* x [[buffer(2)]], uint i [[thread_position_in_grid]],
                 uint threads [[threads_per_grid]]) {
  const uint words = a.n / 16;
  for (ulong at = i; at < words; at += threads) ((device uint4*)y)[at] = ((device const uint4*)x)[at];
  if (i < a.n % 16) y[ulong(words) * 16 + i] = x[ulong(words) * 16 + i];
}

// y = x in another type, rounded to nearest even.
template <typename Y, typename X>
kernel void cast(constant rlv_op_cast& a [[buffer(0)]], device Y* y [[buffer(1)]], device const X* x [[buffer(2)]],
                 uint i [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
  for (ulong at = i; at < a.n; at += threads) y[at] = narrow<Y>(widen(x[at]));
}
RLV_KERNEL("cast_f32_f32", cast, float, float)
RLV_KERNEL("cast_f32_bf16", cast, bf16, float)
RLV_KERNEL("cast_bf16_f32", cast, float, bf16)
RLV_KERNEL("cast_bf16_bf16", cast, bf16, bf16)

// Row and column of element `at` of the packed layout; the row may be padding, and so may the last column of pairs.
struct Place {
  uint row, col;
};
METAL_FUNC Place packed_place(ulong at, uint k, bool pairs) {
  const uint depth = pairs ? (k + 1) / 2 : k, width = pairs ? 2 * RLV_PANEL : RLV_PANEL;
  const ulong line = at / width;
  const uint within = uint(at % width);
  Place p;
  p.row = uint(line / depth) * RLV_PANEL + (pairs ? within / 2 : within);
  p.col = pairs ? uint(line % depth) * 2 + within % 2 : uint(line % depth);
  return p;
}
METAL_FUNC ulong packed_elements(uint n, uint k, bool pairs) {
  return ulong(ceil_div(n, RLV_PANEL)) * RLV_PANEL * (pairs ? (k + 1) / 2 * 2 : k);
}

// Row-major [n][k] to the packed layout of W, padding zero. A bfloat16 weight is the nearest, ties up, with its
// remainder or without: float32 bits = (w << 16) + lo.
template <typename W, typename S>
kernel void pack_weight(constant rlv_op_pack_weight& a [[buffer(0)]], device W* w [[buffer(1)]],
                        device short* lo [[buffer(2)]], device const S* src [[buffer(3)]],
                        uint i [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
  const ulong count = packed_elements(a.n, a.k, packs_pairs<W>());
  for (ulong at = i; at < count; at += threads) {
    const Place p = packed_place(at, a.k, packs_pairs<W>());
    const float x = p.row < a.n && p.col < a.k ? widen(src[ulong(p.row) * a.k + p.col]) : 0.0f;
    if (packs_pairs<W>()) {
      const uint bits = as_type<uint>(x);
      ((device ushort*)w)[at] = ushort((bits + 0x8000u) >> 16);
      if (a.lo.buffer != 0) lo[at] = as_type<short>(ushort(bits));
    } else {
      w[at] = narrow<W>(x);
    }
  }
}
RLV_KERNEL("pack_f32_f32", pack_weight, float, float)
RLV_KERNEL("pack_f32_bf16", pack_weight, float, bf16)
RLV_KERNEL("pack_bf16_f32", pack_weight, bf16, float)
RLV_KERNEL("pack_bf16_bf16", pack_weight, bf16, bf16)

// The inverse: elements of type E in the layout of a.dt, with their remainder if there is one, to row-major [n][k].
template <typename E, typename D>
kernel void unpack_weight(constant rlv_op_unpack_weight& a [[buffer(0)]], device D* dst [[buffer(1)]],
                          device const E* w [[buffer(2)]], device const short* lo [[buffer(3)]],
                          uint i [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
  const bool pairs = a.dt == RLV_BF16;
  const ulong count = packed_elements(a.n, a.k, pairs);
  for (ulong at = i; at < count; at += threads) {
    const Place p = packed_place(at, a.k, pairs);
    if (p.row >= a.n || p.col >= a.k) continue;
    const float x = a.lo.buffer != 0 && packs_pairs<E>()
                        ? as_type<float>((uint(((device const ushort*)w)[at]) << 16) + uint(int(lo[at])))
                        : widen(w[at]);
    dst[ulong(p.row) * a.k + p.col] = narrow<D>(x);
  }
}
RLV_KERNEL("unpack_f32_f32", unpack_weight, float, float)
RLV_KERNEL("unpack_f32_bf16", unpack_weight, float, bf16)
RLV_KERNEL("unpack_bf16_f32", unpack_weight, bf16, float)
RLV_KERNEL("unpack_bf16_bf16", unpack_weight, bf16, bf16)
