// The key-value store: pages of 16 positions. Needs MSL 2.3.
#include "common.h"

#define APPEND_THREADS 256
#define COPY_THREADS 128

// Keys and values of new tokens into their pages. A threadgroup has 16 rows, which are one page while a prompt is
// encoded: then its columns of keys are written whole. Grid (kv_heads, rows/16), 256 threads.
template <typename S>
kernel void kv_append(constant rlv_op_kv_append& a [[buffer(0)]], device S* kv [[buffer(1)]],
                      device const S* k [[buffer(2)]], device const S* v [[buffer(3)]],
                      device const uint* slots [[buffer(4)]], device atomic_uint* error [[buffer(RLV_ERROR)]],
                      uint2 at [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
  const uint row0 = at.y * RLV_PAGE, rows = min(a.rows - row0, RLV_PAGE);
  // Keys lie by column, values by row: each in the order that writes neighbours.
  for (uint i = t; i < 2 * RLV_PAGE * a.head_dim; i += APPEND_THREADS) {
    const bool key = i < RLV_PAGE * a.head_dim;
    const uint j = key ? i : i - RLV_PAGE * a.head_dim;
    const uint row = key ? j % RLV_PAGE : j / a.head_dim, col = key ? j / RLV_PAGE : j % a.head_dim;
    const uint slot = row < rows ? slots[row0 + row] : RLV_NONE;
    if (slot == RLV_NONE) continue;
    if (slot / RLV_PAGE >= a.kv_pages) {
      if (at.x == 0 && key && col == 0) report(error, RLV_BAD_APPEND_SLOT, slot);
      continue;
    }
    device S* page = kv + page_offset(slot / RLV_PAGE, a.kv_heads, at.x, a.head_dim);
    const ulong from = (ulong(row0 + row) * a.kv_heads + at.x) * a.head_dim + col;
    if (key)
      page[col * RLV_PAGE + slot % RLV_PAGE] = k[from];
    else
      page[(RLV_PAGE + slot % RLV_PAGE) * a.head_dim + col] = v[from];
  }
}
RLV_KERNEL("kv_append_f32", kv_append, float)
RLV_KERNEL("kv_append_bf16", kv_append, bf16)

// pairs[i] = (source page, destination page). Grid (kv_heads, count), 128 threads.
template <typename S>
kernel void kv_copy(constant rlv_op_kv_copy& a [[buffer(0)]], device S* kv [[buffer(1)]],
                    device const uint* pairs [[buffer(2)]], device atomic_uint* error [[buffer(RLV_ERROR)]],
                    uint2 at [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
  const uint from = pairs[2 * at.y], to = pairs[2 * at.y + 1];
  if (from >= a.kv_pages || to >= a.kv_pages) {
    if (at.x == 0 && t == 0) report(error, RLV_BAD_COPY_PAGE, from >= a.kv_pages ? from : to);
    return;
  }
  device const S* source = kv + page_offset(from, a.kv_heads, at.x, a.head_dim);
  device S* target = kv + page_offset(to, a.kv_heads, at.x, a.head_dim);
  for (uint i = t; i < 2 * RLV_PAGE * a.head_dim; i += COPY_THREADS) target[i] = source[i];
}
RLV_KERNEL("kv_copy_f32", kv_copy, float)
RLV_KERNEL("kv_copy_bf16", kv_copy, bf16)
