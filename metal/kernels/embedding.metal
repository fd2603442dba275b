// Rows of a table by token id, rows of a matrix by index, and their gradients without atomics. Needs MSL 2.3.
#include "common.h"

#define THREADS 256
#define SIMDGROUPS (THREADS / 32)
#define COLUMNS_PER_THREAD 4
#define GATHERED_ROWS 16u

// y[t] = table[ids[t]], table in the packed layout of W. Grid (cols/256, rows), 256 threads.
template <typename Y, typename W>
kernel void embed_fwd(constant rlv_op_embed_fwd& a [[buffer(0)]], device Y* y [[buffer(1)]],
                      device const uint* ids [[buffer(2)]], device const W* table [[buffer(3)]],
                      device atomic_uint* error [[buffer(RLV_ERROR)]], uint2 at [[thread_position_in_grid]]) {
  const uint id = ids[at.y];
  if (id >= a.vocab) {
    if (at.x == 0) report(error, RLV_BAD_EMBED_ID, id);
    return;
  }
  if (at.x < a.cols)
    y[ulong(at.y) * a.cols + at.x] = narrow<Y>(widen(table[packed_index(id, at.x, a.cols, packs_pairs<W>())]));
}
RLV_KERNEL("embed_fwd_f32_f32", embed_fwd, float, float)
RLV_KERNEL("embed_fwd_f32_bf16", embed_fwd, float, bf16)
RLV_KERNEL("embed_fwd_bf16_f32", embed_fwd, bf16, float)
RLV_KERNEL("embed_fwd_bf16_bf16", embed_fwd, bf16, bf16)

// y[r] = x[index[r]]. Grid (cols/256, rows), 256 threads.
template <typename S>
kernel void gather_rows(constant rlv_op_gather_rows& a [[buffer(0)]], device S* y [[buffer(1)]],
                        device const S* x [[buffer(2)]], device const uint* index [[buffer(3)]],
                        device atomic_uint* error [[buffer(RLV_ERROR)]], uint2 at [[thread_position_in_grid]]) {
  const uint row = index[at.y];
  if (row >= a.src_rows) {
    if (at.x == 0) report(error, RLV_BAD_GATHER_INDEX, row);
    return;
  }
  if (at.x < a.cols) y[ulong(at.y) * a.cols + at.x] = x[ulong(row) * a.cols + at.x];
}
RLV_KERNEL("gather_rows_f32", gather_rows, float)
RLV_KERNEL("gather_rows_bf16", gather_rows, bf16)

// Which of 256 keys from `first` on are `wanted`, as 8 words of bits. Ends with a barrier; another one must come
// before the next call.
METAL_FUNC void match(threadgroup uint* masks, device const uint* keys, uint first, uint count, uint wanted, uint t,
                  uint lane, uint simdgroup) {
  const bool hit = first + t < count && keys[first + t] == wanted;
  const uint bits = simd_sum(hit ? 1u << lane : 0u);
  if (lane == 0) masks[simdgroup] = bits;
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// sums[j] += source[r][col0 + 256*j + t] for every key r in [first, count) that is `wanted`, in ascending order.
template <typename S>
METAL_FUNC void add_matches(thread float* sums, threadgroup uint* masks, device const uint* keys, device const S* source,
                        uint first, uint count, uint wanted, uint col0, uint cols, uint t, uint lane, uint simdgroup) {
  for (uint chunk = first / THREADS * THREADS; chunk < count; chunk += THREADS) {
    match(masks, keys, chunk, count, wanted, t, lane, simdgroup);
    for (uint word = 0; word < SIMDGROUPS; word++)
      for (uint bits = masks[word]; bits != 0; bits &= bits - 1) {
        const uint row = chunk + 32 * word + ctz(bits);
        if (row < first) continue;
        RLV_UNROLL
        for (uint j = 0; j < COLUMNS_PER_THREAD; j++) {
          const uint col = col0 + THREADS * j + t;
          if (col < cols) sums[j] += widen(source[ulong(row) * cols + col]);
        }
      }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// dtable[ids[t]] += dy[t], tokens in ascending order; dtable float32 in the packed layout. The threadgroup of a token
// leaves if an earlier one has the same id, else it adds all of that id. Grid (cols/1024, rows), 256 threads, 32 bytes.
template <typename S, bool PAIRS>
kernel void embed_bwd(constant rlv_op_embed_bwd& a [[buffer(0)]], device float* dtable [[buffer(1)]],
                      device const uint* ids [[buffer(2)]], device const S* dy [[buffer(3)]],
                      device atomic_uint* error [[buffer(RLV_ERROR)]], uint2 group [[threadgroup_position_in_grid]],
                      uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint masks[SIMDGROUPS];
  const uint token = group.y, id = ids[token], col0 = group.x * THREADS * COLUMNS_PER_THREAD;
  if (id >= a.vocab) {
    if (t == 0 && group.x == 0) report(error, RLV_BAD_EMBED_BWD_ID, id);
    return;
  }
  uint earlier = 0;
  for (uint chunk = 0; chunk < token; chunk += THREADS) {
    match(masks, ids, chunk, token, id, t, lane, simdgroup);
    for (uint word = 0; word < SIMDGROUPS; word++) earlier |= masks[word];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (earlier != 0) return;  // the same for all threads
  }
  float sums[COLUMNS_PER_THREAD];
  RLV_UNROLL
  for (uint j = 0; j < COLUMNS_PER_THREAD; j++) {
    const uint col = col0 + THREADS * j + t;
    sums[j] = col < a.cols ? dtable[packed_index(id, col, a.cols, PAIRS)] : 0.0f;
  }
  add_matches(sums, masks, ids, dy, token, a.rows, id, col0, a.cols, t, lane, simdgroup);
  RLV_UNROLL
  for (uint j = 0; j < COLUMNS_PER_THREAD; j++) {
    const uint col = col0 + THREADS * j + t;
    if (col < a.cols) dtable[packed_index(id, col, a.cols, PAIRS)] = sums[j];
  }
}
RLV_KERNEL("embed_bwd_f32_f32", embed_bwd, float, false)
RLV_KERNEL("embed_bwd_f32_bf16", embed_bwd, float, true)
RLV_KERNEL("embed_bwd_bf16_f32", embed_bwd, bf16, false)
RLV_KERNEL("embed_bwd_bf16_bf16", embed_bwd, bf16, true)

// dx[t] = sum of dy[r] over r with index[r] = t, r ascending; zero where there is none. A threadgroup has 16 rows of
// 256 columns, a thread one column, and goes over the index once. Grid (cols/256, src_rows/16), 256 threads, 16 KiB.
template <typename S>
kernel void gather_rows_bwd(constant rlv_op_gather_rows_bwd& a [[buffer(0)]], device S* dx [[buffer(1)]],
                            device const S* dy [[buffer(2)]], device const uint* index [[buffer(3)]],
                            device atomic_uint* error [[buffer(RLV_ERROR)]],
                            uint2 group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint masks[SIMDGROUPS];
  threadgroup float sums[GATHERED_ROWS][THREADS];
  const uint row0 = group.y * GATHERED_ROWS, col = group.x * THREADS + t;
  for (uint i = 0; i < GATHERED_ROWS; i++) sums[i][t] = 0.0f;
  for (uint chunk = 0; chunk < a.rows; chunk += THREADS) {
    const uint row = chunk + t < a.rows ? index[chunk + t] : RLV_NONE;
    if (row >= a.src_rows && chunk + t < a.rows && group.x == 0 && group.y == 0)
      report(error, RLV_BAD_GATHER_BWD_INDEX, row);
    const uint bits = simd_sum(row >= row0 && row - row0 < GATHERED_ROWS ? 1u << lane : 0u);
    if (lane == 0) masks[simdgroup] = bits;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint word = 0; word < SIMDGROUPS; word++)
      for (uint left = masks[word]; left != 0; left &= left - 1) {
        const uint from = chunk + RLV_SIMD * word + ctz(left);
        if (col < a.cols) sums[index[from] - row0][t] += widen(dy[ulong(from) * a.cols + col]);
      }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint i = 0; i < min(a.src_rows - row0, GATHERED_ROWS); i++)
    if (col < a.cols) dx[ulong(row0 + i) * a.cols + col] = narrow<S>(sums[i][t]);
}
RLV_KERNEL("gather_rows_bwd_f32", gather_rows_bwd, float)
RLV_KERNEL("gather_rows_bwd_bf16", gather_rows_bwd, bf16)
