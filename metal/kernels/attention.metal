// Softmax attention over packed rows with shared prefixes and cached pages (src/ops/attention.ts), forward, backward
// and decoding. Needs MSL 3.0 (simdgroup_matrix).
//
// Bits. Keys count in blocks of 16 by absolute position. Block b belongs to chain b % 4; a chain runs an online softmax
// over its blocks in order, and the four chains are merged in order. attn_fwd runs the chains one after the other,
// attn_decode gives each a simdgroup: the same operations for every (token, head), wherever its keys lie and whatever
// shares its tile. Masked keys have weight exactly 0 and zero values, so blocks behind a token change nothing.
//
// Work. A simdgroup has 8 rows, a row being a (token, head of the group that shares a kv head): keys and values are
// read once for the whole group. DPAD is head_dim rounded up to 32, 64, 128 or 256; missing elements are zero.
#include "common.h"

#define KEYS RLV_PAGE
#define CHAINS 4
#define TILE_ROWS 32
#define KEY_STRIDE 18  // floats of a staged line of keys: 16, and 2 against bank conflicts
#define ATTN_THREADS 128

// The four lanes of a fragment's row differ in bits 0 and 3.
METAL_FUNC float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, 1));
  return max(x, simd_shuffle_xor(x, 8));
}
METAL_FUNC float row_sum(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 8);
}

// ---- segments -------------------------------------------------------------------------------------------------

struct Segment {
  uint start, len, parent, pos0, page_start, cached_len, root;
};
METAL_FUNC Segment segment_at(device const uint* segs, uint i) {
  device const uint* s = segs + i * RLV_SEGMENT_WORDS;
  Segment r;
  r.start = s[0];
  r.len = s[1];
  r.parent = s[2];
  r.pos0 = s[3];
  r.page_start = s[4];
  r.cached_len = s[5];
  r.root = s[6];
  return r;
}

// A tile of rows [first, first + TILE_ROWS) of a segment's len*group rows; found is false for a superfluous group.
struct Tile {
  bool found;
  uint index, first;
  Segment segment;
};
METAL_FUNC Tile find_tile(device const uint* segs, uint n_segs, uint group, uint tile_rows, uint wanted) {
  Tile t;
  t.found = false;
  uint before = 0;
  for (uint s = 0; s < n_segs; s++) {
    const uint tiles = ceil_div(segs[s * RLV_SEGMENT_WORDS + 1] * group, tile_rows);
    if (wanted < before + tiles) {
      t.found = true;
      t.index = s;
      t.first = (wanted - before) * tile_rows;
      t.segment = segment_at(segs, s);
      return t;
    }
    before += tiles;
  }
  return t;
}

// Whether a segment and those it continues lie within the rows and come in order; reports the first that does not.
METAL_FUNC bool valid_chain(device const uint* segs, uint index, uint rows, device atomic_uint* error, bool speaker,
                        uint code_rows) {
  for (uint s = index;;) {
    const Segment g = segment_at(segs, s);
    uint code = 0;
    if (ulong(g.start) + g.len > rows) code = code_rows;
    else if (g.parent != RLV_NONE && g.parent >= s) code = RLV_BAD_SEGMENT_PARENT;
    else if (g.root > s) code = RLV_BAD_SEGMENT_ROOT;
    if (code != 0) {
      if (speaker) report(error, code, s);
      return false;
    }
    if (g.parent == RLV_NONE) return true;
    s = g.parent;
  }
}

// ---- staging keys and values of 16 positions --------------------------------------------------------------------

// Where the key of a position is: an element index into k (or into the store), and how far its elements are apart.
struct KeyPlace {
  bool there, cached;
  ulong key, value;  // first elements
};

template <typename S>
struct Source {
  device const S* k;
  device const S* v;
  device const S* kv;
  device const uint* segs;
  device const uint* pages;  // of the root's cached prefix
  uint cached_len, segment, kv_heads, kv_head, dim;
};

template <typename S>
METAL_FUNC KeyPlace locate(thread const Source<S>& s, uint position) {
  KeyPlace p;
  p.there = true;
  p.cached = position < s.cached_len;
  if (p.cached) {
    const ulong page = page_offset(s.pages[position / RLV_PAGE], s.kv_heads, s.kv_head, s.dim);
    p.key = page + position % RLV_PAGE;
    p.value = page + ulong(RLV_PAGE + position % RLV_PAGE) * s.dim;
    return p;
  }
  uint segment = s.segment;
  while (s.segs[segment * RLV_SEGMENT_WORDS + 3] > position) {
    segment = s.segs[segment * RLV_SEGMENT_WORDS + 2];
    if (segment == RLV_NONE) {
      p.there = false;
      return p;
    }
  }
  const uint offset = position - s.segs[segment * RLV_SEGMENT_WORDS + 3];
  p.there = offset < s.segs[segment * RLV_SEGMENT_WORDS + 1];
  p.key = p.value = ((ulong(s.segs[segment * RLV_SEGMENT_WORDS]) + offset) * s.kv_heads + s.kv_head) * s.dim;
  return p;
}

// keys[d][16] of the block, zero beyond `last` and head_dim: 16 positions x 8 lanes, each lane every eighth element.
template <typename S, uint DPAD>
METAL_FUNC void stage_keys(threadgroup float* keys, thread const Source<S>& s, uint first, uint last, uint t) {
  // Neighbouring threads take neighbouring elements in memory: positions in a page, elements of a row elsewhere.
  const bool paged = first + KEYS <= s.cached_len;
  const uint slot = paged ? t % KEYS : t / 8, position = first + slot;
  const KeyPlace p = locate(s, min(position, last));
  for (uint d = paged ? t / KEYS : t % 8; d < DPAD; d += 8) {
    float x = 0.0f;
    if (position <= last && p.there && d < s.dim)
      x = p.cached ? widen(s.kv[p.key + ulong(d) * RLV_PAGE]) : widen(s.k[p.key + d]);
    keys[d * KEY_STRIDE + slot] = x;
  }
}
// values[16][DPAD].
template <typename S, uint DPAD>
METAL_FUNC void stage_values(threadgroup float* values, thread const Source<S>& s, uint first, uint last, uint t) {
  const uint slot = t / 8, position = first + slot;
  const KeyPlace p = locate(s, min(position, last));
  for (uint d = t % 8; d < DPAD; d += 8) {
    float x = 0.0f;
    if (position <= last && p.there && d < s.dim)
      x = p.cached ? widen(s.kv[p.value + d]) : widen(s.v[p.value + d]);
    values[slot * DPAD + d] = x;
  }
}

// ---- one simdgroup's 8 rows ---------------------------------------------------------------------------------------

template <uint DPAD>
struct RowTile {
  simdgroup_float8x8 c[DPAD / 8];
};
// Elements of one row per lane from memory, zero where there is none.
template <typename S, uint DPAD>
METAL_FUNC void load_rows(thread RowTile<DPAD>& tile, device const S* row, uint dim, bool there, uint lane) {
  RLV_UNROLL
  for (uint f = 0; f < DPAD / 8; f++)
    RLV_UNROLL
    for (uint e = 0; e < 2; e++) {
      const uint d = 8 * f + fragment_col(lane) + e;
      tile.c[f].thread_elements()[e] = there && d < dim ? widen(row[d]) : 0.0f;
    }
}
template <typename S, uint DPAD>
METAL_FUNC void store_rows(device S* row, thread RowTile<DPAD>& tile, float factor, uint dim, bool there, uint lane) {
  RLV_UNROLL
  for (uint f = 0; f < DPAD / 8; f++)
    RLV_UNROLL
    for (uint e = 0; e < 2; e++) {
      const uint d = 8 * f + fragment_col(lane) + e;
      // + 0 makes -0 what it is whether or not masked blocks followed.
      if (there && d < dim) row[d] = narrow<S>(tile.c[f].thread_elements()[e] * factor + 0.0f);
    }
}
template <uint DPAD>
METAL_FUNC void clear(thread RowTile<DPAD>& tile) {
  RLV_UNROLL
  for (uint f = 0; f < DPAD / 8; f++) tile.c[f] = simdgroup_float8x8(0.0f);
}

// An online softmax over some keys: maximum, sum of weights, weighted values.
template <uint DPAD>
struct Softmax {
  float m, l;
  RowTile<DPAD> o;
};
template <uint DPAD>
METAL_FUNC void clear(thread Softmax<DPAD>& s) {
  s.m = -INFINITY;
  s.l = 0.0f;
  clear(s.o);
}

// exp(x - m) where nothing may be -inf - -inf.
METAL_FUNC float shifted_exp(float x, float m) { return x == m ? 1.0f : exp(x - m); }

// Scores of 8 rows and 16 keys become weights in place, and s takes in their sum and scale. visible[e]: the lane's
// keys col, col + 1, col + 8, col + 9 of the block.
template <uint DPAD>
METAL_FUNC void weigh(thread simdgroup_float8x8* p, thread Softmax<DPAD>& s, float scale, uint first, uint position, bool row,
                  uint lane) {
  float z[4];
  float top = -INFINITY;
  RLV_UNROLL
  for (uint e = 0; e < 4; e++) {
    const uint key = first + fragment_col(lane) + e % 2 + e / 2 * 8;
    z[e] = row && key <= position ? p[e / 2].thread_elements()[e % 2] * scale : -INFINITY;
    top = max(top, z[e]);
  }
  const float m = max(s.m, row_max(top));
  const float alpha = shifted_exp(s.m, m);
  float sum = 0.0f;
  RLV_UNROLL
  for (uint e = 0; e < 4; e++) {
    z[e] = z[e] == -INFINITY ? 0.0f : exp(z[e] - m);
    sum += z[e];
    p[e / 2].thread_elements()[e % 2] = z[e];
  }
  s.l = fma(s.l, alpha, row_sum(sum));
  s.m = m;
  RLV_UNROLL
  for (uint f = 0; f < DPAD / 8; f++)
    RLV_UNROLL
    for (uint e = 0; e < 2; e++) s.o.c[f].thread_elements()[e] *= alpha;
}

// How the parts of a merge are scaled.
struct Merge {
  float m, a, b;
};
METAL_FUNC Merge merge_of(float ma, float mb) {
  Merge g;
  g.m = max(ma, mb);
  g.a = shifted_exp(ma, g.m);
  g.b = shifted_exp(mb, g.m);
  return g;
}

template <uint DPAD>
METAL_FUNC void merge(thread Softmax<DPAD>& total, thread Softmax<DPAD>& chain) {
  const Merge g = merge_of(total.m, chain.m);
  total.m = g.m;
  total.l = fma(total.l, g.a, chain.l * g.b);
  RLV_UNROLL
  for (uint f = 0; f < DPAD / 8; f++)
    RLV_UNROLL
    for (uint e = 0; e < 2; e++)
      total.o.c[f].thread_elements()[e] =
          fma(total.o.c[f].thread_elements()[e], g.a, chain.o.c[f].thread_elements()[e] * g.b);
}

// ---- attn_fwd -----------------------------------------------------------------------------------------------------

// o = softmax(scale*q*k^T)*v, lse per token and head. A threadgroup has 32 rows of a segment and one kv head.
// Grid (rows*group/32 + n_segs, kv_heads), 128 threads. (18 + 16)*DPAD floats of threadgroup memory, 18*DPAD from 256.
template <typename S, uint DPAD>
kernel void attn_fwd(constant rlv_op_attn_fwd& a [[buffer(0)]], device S* o [[buffer(1)]],
                     device float* lse [[buffer(2)]], device const S* q [[buffer(3)]],
                     device const S* k [[buffer(4)]], device const S* v [[buffer(5)]],
                     device const uint* segs [[buffer(6)]], device const S* kv [[buffer(7)]],
                     device const uint* pages [[buffer(8)]], device atomic_uint* error [[buffer(RLV_ERROR)]],
                     uint2 at [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float keys[DPAD * KEY_STRIDE];
  threadgroup float separate_values[DPAD <= 128 ? KEYS * DPAD : 1];
  const bool both = DPAD <= 128;
  threadgroup float* values = both ? separate_values : keys;
  const uint group = a.heads / a.kv_heads;
  const Tile tile = find_tile(segs, a.n_segs, group, TILE_ROWS, at.x);
  if (!tile.found) return;
  if (!valid_chain(segs, tile.index, a.rows, error, t == 0, RLV_BAD_SEGMENT_ROWS)) return;
  const Segment root = segment_at(segs, tile.segment.root);
  const uint used = ceil_div(root.cached_len, RLV_PAGE);
  if (used > 0) {
    uint code = 0, value = tile.index;
    if (a.kv.buffer == 0 || a.pages.buffer == 0 || ulong(root.page_start) + used > a.n_pages) code = RLV_BAD_CACHED_PREFIX;
    else
      for (uint p = 0; p < used; p++)
        if (pages[root.page_start + p] >= a.kv_pages) {
          code = RLV_BAD_CACHED_PAGE;
          value = pages[root.page_start + p];
        }
    if (code != 0) {
      if (t == 0) report(error, code, value);
      return;
    }
  }
  Source<S> source;
  source.k = k;
  source.v = v;
  source.kv = kv;
  source.segs = segs;
  source.pages = pages + (used > 0 ? root.page_start : 0);
  source.cached_len = root.cached_len;
  source.segment = tile.index;
  source.kv_heads = a.kv_heads;
  source.kv_head = at.y;
  source.dim = a.head_dim;

  const uint rows = tile.segment.len * group;
  const uint row = tile.first + 8 * simdgroup + fragment_row(lane);
  const bool there = row < rows;
  const uint token = min(row, rows - 1) / group, position = tile.segment.pos0 + token;
  const ulong query = ulong(tile.segment.start + token) * a.heads + at.y * group + min(row, rows - 1) % group;
  const uint last = tile.segment.pos0 + (min(tile.first + TILE_ROWS, rows) - 1) / group;

  RowTile<DPAD> queries;
  load_rows(queries, q + query * a.head_dim, a.head_dim, there, lane);
  Softmax<DPAD> total;
  for (uint chain = 0; chain < CHAINS; chain++) {
    Softmax<DPAD> part;
    clear(part);
    for (uint first = chain * KEYS; first <= last; first += CHAINS * KEYS) {
      stage_keys<S, DPAD>(keys, source, first, last, t);
      if (both) stage_values<S, DPAD>(values, source, first, last, t);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      simdgroup_float8x8 p[2];
      p[0] = p[1] = simdgroup_float8x8(0.0f);
      RLV_UNROLL
      for (uint f = 0; f < DPAD / 8; f++)
        RLV_UNROLL
        for (uint h = 0; h < 2; h++) {
          simdgroup_float8x8 b;
          simdgroup_load(b, keys + 8 * f * KEY_STRIDE + 8 * h, KEY_STRIDE);
          simdgroup_multiply_accumulate(p[h], queries.c[f], b, p[h]);
        }
      weigh(p, part, a.scale, first, position, there, lane);
      if (!both) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        stage_values<S, DPAD>(values, source, first, last, t);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      RLV_UNROLL
      for (uint f = 0; f < DPAD / 8; f++)
        RLV_UNROLL
        for (uint h = 0; h < 2; h++) {
          simdgroup_float8x8 b;
          simdgroup_load(b, values + 8 * h * DPAD + 8 * f, DPAD);
          simdgroup_multiply_accumulate(part.o.c[f], p[h], b, part.o.c[f]);
        }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (chain == 0)
      total = part;
    else
      merge(total, part);
  }
  store_rows(o + query * a.head_dim, total.o, 1.0f / total.l, a.head_dim, there, lane);
  if (a.lse.buffer != 0 && there && fragment_col(lane) == 0) lse[query] = total.m + log(total.l);
}

// ---- attn_decode --------------------------------------------------------------------------------------------------

// One query token per sequence over its pages. A threadgroup has a sequence, a kv head and 8 heads of its group; each
// simdgroup runs one chain with fragments straight from the pages, then simdgroup 0 merges them.
// Grid (batch, kv_heads, group/8), 128 threads, 3*8*(DPAD + 2) floats.
template <typename S, uint DPAD>
kernel void attn_decode(constant rlv_op_attn_decode& a [[buffer(0)]], device S* o [[buffer(1)]],
                        device const S* q [[buffer(2)]], device const S* kv [[buffer(3)]],
                        device const uint* table [[buffer(4)]], device const uint* lens [[buffer(5)]],
                        device atomic_uint* error [[buffer(RLV_ERROR)]], uint3 at [[threadgroup_position_in_grid]],
                        uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[(CHAINS - 1) * 8 * DPAD];
  threadgroup float sums[(CHAINS - 1) * 8 * 2];
  const uint len = lens[at.x], used = ceil_div(len, RLV_PAGE), group = a.heads / a.kv_heads;
  device const uint* pages = table + ulong(at.x) * a.max_pages;
  uint code = len == 0 || used > a.max_pages ? RLV_BAD_DECODE_LENGTH : 0;
  if (code == 0)
    for (uint p = 0; p < used; p++)
      if (pages[p] >= a.kv_pages) code = RLV_BAD_DECODE_PAGE;
  if (code != 0) {
    if (t == 0) report(error, code, at.x);
    return;
  }
  const uint row = at.z * 8 + fragment_row(lane), head = at.y * group + min(row, group - 1);
  const bool there = row < group;
  const ulong query = ulong(at.x) * a.heads + head;
  RowTile<DPAD> queries;
  load_rows(queries, q + query * a.head_dim, a.head_dim, there, lane);

  Softmax<DPAD> part;
  clear(part);
  for (uint block = simdgroup; block < used; block += CHAINS) {
    device const S* key = kv + page_offset(pages[block], a.kv_heads, at.y, a.head_dim);
    device const S* value = key + RLV_PAGE * a.head_dim;
    const uint first = block * KEYS, r = fragment_row(lane), c = fragment_col(lane);
    simdgroup_float8x8 p[2];
    p[0] = p[1] = simdgroup_float8x8(0.0f);
    RLV_UNROLL
    for (uint f = 0; f < DPAD / 8; f++)
      RLV_UNROLL
      for (uint h = 0; h < 2; h++) {
        simdgroup_float8x8 b;
        RLV_UNROLL
        for (uint e = 0; e < 2; e++) {
          const uint d = 8 * f + r, slot = 8 * h + c + e;
          b.thread_elements()[e] = d < a.head_dim && first + slot < len ? widen(key[d * RLV_PAGE + slot]) : 0.0f;
        }
        simdgroup_multiply_accumulate(p[h], queries.c[f], b, p[h]);
      }
    weigh(p, part, a.scale, first, len - 1, there, lane);
    RLV_UNROLL
    for (uint f = 0; f < DPAD / 8; f++)
      RLV_UNROLL
      for (uint h = 0; h < 2; h++) {
        simdgroup_float8x8 b;
        RLV_UNROLL
        for (uint e = 0; e < 2; e++) {
          const uint slot = 8 * h + r, d = 8 * f + c + e;
          b.thread_elements()[e] = d < a.head_dim && first + slot < len ? widen(value[slot * a.head_dim + d]) : 0.0f;
        }
        simdgroup_multiply_accumulate(part.o.c[f], p[h], b, part.o.c[f]);
      }
  }
  if (simdgroup > 0) {
    RLV_UNROLL
    for (uint f = 0; f < DPAD / 8; f++)
      simdgroup_store(part.o.c[f], parts + (simdgroup - 1) * 8 * DPAD + 8 * f, DPAD);
    if (fragment_col(lane) == 0) {
      sums[((simdgroup - 1) * 8 + fragment_row(lane)) * 2] = part.m;
      sums[((simdgroup - 1) * 8 + fragment_row(lane)) * 2 + 1] = part.l;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup != 0) return;
  for (uint chain = 1; chain < CHAINS; chain++) {
    Softmax<DPAD> other;
    other.m = sums[((chain - 1) * 8 + fragment_row(lane)) * 2];
    other.l = sums[((chain - 1) * 8 + fragment_row(lane)) * 2 + 1];
    RLV_UNROLL
    for (uint f = 0; f < DPAD / 8; f++)
      simdgroup_load(other.o.c[f], parts + (chain - 1) * 8 * DPAD + 8 * f, DPAD);
    merge(part, other);
  }
  store_rows(o + query * a.head_dim, part.o, 1.0f / part.l, a.head_dim, there, lane);
}

// ---- attn_bwd -----------------------------------------------------------------------------------------------------

// sum over d of dout*o of the lane's row, the same in the four lanes of the row.
template <typename S, uint DPAD>
METAL_FUNC float row_dot(thread RowTile<DPAD>& dout, device const S* o, uint dim, bool there, uint lane) {
  float sum = 0.0f;
  RLV_UNROLL
  for (uint f = 0; f < DPAD / 8; f++)
    RLV_UNROLL
    for (uint e = 0; e < 2; e++) {
      const uint d = 8 * f + fragment_col(lane) + e;
      if (there && d < dim) sum = fma(dout.c[f].thread_elements()[e], widen(o[d]), sum);
    }
  return row_sum(sum);
}

// dq = sum over keys of p*(dout*v - D)*scale * k with p = exp(scale*q*k - lse), D = sum dout*o. Tiles as attn_fwd.
// Grid (rows*group/32 + n_segs, kv_heads), 128 threads. (18 + 16)*DPAD floats, 18*DPAD from 256.
template <typename S, uint DPAD>
kernel void attn_bwd_dq(constant rlv_op_attn_bwd& a [[buffer(0)]], device S* dq [[buffer(1)]],
                        device const S* dout [[buffer(4)]], device const S* o [[buffer(5)]],
                        device const float* lse [[buffer(6)]], device const S* q [[buffer(7)]],
                        device const S* k [[buffer(8)]], device const S* v [[buffer(9)]],
                        device const uint* segs [[buffer(10)]], device atomic_uint* error [[buffer(RLV_ERROR)]],
                        uint2 at [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float keys[DPAD * KEY_STRIDE];
  threadgroup float separate_values[DPAD <= 128 ? KEYS * DPAD : 1];
  const bool both = DPAD <= 128;
  threadgroup float* values = both ? separate_values : keys;
  const uint group = a.heads / a.kv_heads;
  const Tile tile = find_tile(segs, a.n_segs, group, TILE_ROWS, at.x);
  if (!tile.found) return;
  if (!valid_chain(segs, tile.index, a.rows, error, t == 0, RLV_BAD_SEGMENT_BWD)) return;
  Source<S> source;
  source.k = k;
  source.v = v;
  source.kv = k;
  source.segs = segs;
  source.pages = segs;
  source.cached_len = 0;
  source.segment = tile.index;
  source.kv_heads = a.kv_heads;
  source.kv_head = at.y;
  source.dim = a.head_dim;

  const uint rows = tile.segment.len * group;
  const uint row = tile.first + 8 * simdgroup + fragment_row(lane);
  const bool there = row < rows;
  const uint token = min(row, rows - 1) / group, position = tile.segment.pos0 + token;
  const ulong query = ulong(tile.segment.start + token) * a.heads + at.y * group + min(row, rows - 1) % group;
  const uint last = tile.segment.pos0 + (min(tile.first + TILE_ROWS, rows) - 1) / group;
  RowTile<DPAD> queries, cotangents, sum;
  load_rows(queries, q + query * a.head_dim, a.head_dim, there, lane);
  load_rows(cotangents, dout + query * a.head_dim, a.head_dim, there, lane);
  clear(sum);
  const float dot = row_dot(cotangents, o + query * a.head_dim, a.head_dim, there, lane), log_sum = lse[query];

  for (uint first = 0; first <= last; first += KEYS) {
    simdgroup_float8x8 s[2], d[2];
    s[0] = s[1] = d[0] = d[1] = simdgroup_float8x8(0.0f);
    if (!both) {
      stage_values<S, DPAD>(values, source, first, last, t);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    } else {
      stage_keys<S, DPAD>(keys, source, first, last, t);
      stage_values<S, DPAD>(values, source, first, last, t);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    RLV_UNROLL
    for (uint f = 0; f < DPAD / 8; f++)
      RLV_UNROLL
      for (uint h = 0; h < 2; h++) {
        simdgroup_float8x8 b;
        simdgroup_load(b, values + 8 * h * DPAD + 8 * f, DPAD, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(d[h], cotangents.c[f], b, d[h]);
      }
    if (!both) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      stage_keys<S, DPAD>(keys, source, first, last, t);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    RLV_UNROLL
    for (uint f = 0; f < DPAD / 8; f++)
      RLV_UNROLL
      for (uint h = 0; h < 2; h++) {
        simdgroup_float8x8 b;
        simdgroup_load(b, keys + 8 * f * KEY_STRIDE + 8 * h, KEY_STRIDE);
        simdgroup_multiply_accumulate(s[h], queries.c[f], b, s[h]);
      }
    RLV_UNROLL
    for (uint e = 0; e < 4; e++) {
      const uint key = first + fragment_col(lane) + e % 2 + e / 2 * 8;
      const float p = there && key <= position ? exp(s[e / 2].thread_elements()[e % 2] * a.scale - log_sum) : 0.0f;
      d[e / 2].thread_elements()[e % 2] = p * (d[e / 2].thread_elements()[e % 2] - dot) * a.scale;
    }
    RLV_UNROLL
    for (uint f = 0; f < DPAD / 8; f++)
      RLV_UNROLL
      for (uint h = 0; h < 2; h++) {
        simdgroup_float8x8 b;
        simdgroup_load(b, keys + 8 * f * KEY_STRIDE + 8 * h, KEY_STRIDE, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(sum.c[f], d[h], b, sum.c[f]);
      }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  store_rows(dq + query * a.head_dim, sum, 1.0f, a.head_dim, there, lane);
}

// Whether segment `index` continues segment `ancestor`, directly or not.
METAL_FUNC bool continues(device const uint* segs, uint index, uint ancestor) {
  for (uint s = index; s != RLV_NONE && s > ancestor;) {
    s = segs[s * RLV_SEGMENT_WORDS + 2];
    if (s == ancestor) return true;
  }
  return false;
}

// dv = sum over queries of p*dout, dk = sum of p*(dout*v - D)*scale*q: over the later queries of the key's own segment,
// then over those of the segments that continue it, in their order; all heads of the group. A threadgroup has 32 keys of
// a segment and one kv head, a simdgroup 8 of them; QUERIES rows at a time are staged.
// Grid (rows/32 + n_segs, kv_heads), 128 threads. 2*QUERIES*(DPAD + 1) floats.
template <typename S, uint DPAD>
kernel void attn_bwd_dkv(constant rlv_op_attn_bwd& a [[buffer(0)]], device S* dk [[buffer(2)]],
                         device S* dv [[buffer(3)]], device const S* dout [[buffer(4)]],
                         device const S* o [[buffer(5)]], device const float* lse [[buffer(6)]],
                         device const S* q [[buffer(7)]], device const S* k [[buffer(8)]],
                         device const S* v [[buffer(9)]], device const uint* segs [[buffer(10)]],
                         uint2 at [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint QUERIES = DPAD <= 128 ? 16 : 8;
  constexpr uint HALVES = QUERIES / 8;
  threadgroup float queries[QUERIES * DPAD];
  threadgroup float cotangents[QUERIES * DPAD];
  threadgroup float log_sums[QUERIES];
  threadgroup float dots[QUERIES];
  const uint group = a.heads / a.kv_heads;
  const Tile tile = find_tile(segs, a.n_segs, 1, TILE_ROWS, at.x);
  if (!tile.found || ulong(tile.segment.start) + tile.segment.len > a.rows) return;
  const uint key = tile.first + 8 * simdgroup + fragment_row(lane);
  const bool there = key < tile.segment.len;
  const ulong key_row =
      (ulong(tile.segment.start + min(key, tile.segment.len - 1)) * a.kv_heads + at.y) * a.head_dim;
  RowTile<DPAD> keys, values, sum_k, sum_v;
  load_rows(keys, k + key_row, a.head_dim, there, lane);
  load_rows(values, v + key_row, a.head_dim, there, lane);
  clear(sum_k);
  clear(sum_v);

  for (uint index = tile.index; index < a.n_segs; index++) {
    const bool own = index == tile.index;
    if (!own && !continues(segs, index, tile.index)) continue;
    const Segment segment = segment_at(segs, index);
    if (ulong(segment.start) + segment.len > a.rows) continue;
    // Rows of earlier tokens of the own segment see none of these keys.
    for (uint first = own ? tile.first * group : 0; first < segment.len * group; first += QUERIES) {
      for (uint i = simdgroup; i < QUERIES; i += 4) {
        const uint row = first + i;
        const bool query_there = row < segment.len * group;
        const ulong query = query_there
                                ? ulong(segment.start + row / group) * a.heads + at.y * group + row % group
                                : ulong(segment.start) * a.heads;
        float dot = 0.0f;
        for (uint d = lane; d < DPAD; d += RLV_SIMD) {
          const bool inside = query_there && d < a.head_dim;
          const float x = inside ? widen(dout[query * a.head_dim + d]) : 0.0f;
          queries[i * DPAD + d] = inside ? widen(q[query * a.head_dim + d]) : 0.0f;
          cotangents[i * DPAD + d] = x;
          if (inside) dot = fma(x, widen(o[query * a.head_dim + d]), dot);
        }
        dot = simd_sum(dot);
        if (lane == 0) {
          dots[i] = dot;
          log_sums[i] = query_there ? lse[query] : 0.0f;
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      simdgroup_float8x8 p[HALVES], d[HALVES];
      RLV_UNROLL
      for (uint h = 0; h < HALVES; h++) p[h] = d[h] = simdgroup_float8x8(0.0f);
      RLV_UNROLL
      for (uint f = 0; f < DPAD / 8; f++)
        RLV_UNROLL
        for (uint h = 0; h < HALVES; h++) {
          simdgroup_float8x8 b;
          simdgroup_load(b, queries + 8 * h * DPAD + 8 * f, DPAD, ulong2(0, 0), true);
          simdgroup_multiply_accumulate(p[h], keys.c[f], b, p[h]);
          simdgroup_load(b, cotangents + 8 * h * DPAD + 8 * f, DPAD, ulong2(0, 0), true);
          simdgroup_multiply_accumulate(d[h], values.c[f], b, d[h]);
        }
      RLV_UNROLL
      for (uint h = 0; h < HALVES; h++)
        RLV_UNROLL
        for (uint e = 0; e < 2; e++) {
          const uint i = 8 * h + fragment_col(lane) + e, row = first + i;
          const bool visible = there && row < segment.len * group && (!own || row / group >= key);
          const float weight = visible ? exp(p[h].thread_elements()[e] * a.scale - log_sums[i]) : 0.0f;
          p[h].thread_elements()[e] = weight;
          d[h].thread_elements()[e] = weight * (d[h].thread_elements()[e] - dots[i]) * a.scale;
        }
      RLV_UNROLL
      for (uint f = 0; f < DPAD / 8; f++)
        RLV_UNROLL
        for (uint h = 0; h < HALVES; h++) {
          simdgroup_float8x8 b;
          simdgroup_load(b, cotangents + 8 * h * DPAD + 8 * f, DPAD);
          simdgroup_multiply_accumulate(sum_v.c[f], p[h], b, sum_v.c[f]);
          simdgroup_load(b, queries + 8 * h * DPAD + 8 * f, DPAD);
          simdgroup_multiply_accumulate(sum_k.c[f], d[h], b, sum_k.c[f]);
        }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
  store_rows(dk + key_row, sum_k, 1.0f, a.head_dim, there, lane);
  store_rows(dv + key_row, sum_v, 1.0f, a.head_dim, there, lane);
}

#define ATTENTION(dpad)                                                    \
  RLV_KERNEL("attn_fwd" #dpad "_f32", attn_fwd, float, dpad)               \
  RLV_KERNEL("attn_fwd" #dpad "_bf16", attn_fwd, bf16, dpad)               \
  RLV_KERNEL("attn_decode" #dpad "_f32", attn_decode, float, dpad)         \
  RLV_KERNEL("attn_decode" #dpad "_bf16", attn_decode, bf16, dpad)         \
  RLV_KERNEL("attn_bwd_dq" #dpad "_f32", attn_bwd_dq, float, dpad)         \
  RLV_KERNEL("attn_bwd_dq" #dpad "_bf16", attn_bwd_dq, bf16, dpad)         \
  RLV_KERNEL("attn_bwd_dkv" #dpad "_f32", attn_bwd_dkv, float, dpad)       \
  RLV_KERNEL("attn_bwd_dkv" #dpad "_bf16", attn_bwd_dkv, bf16, dpad)
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
ATTENTION(256)
