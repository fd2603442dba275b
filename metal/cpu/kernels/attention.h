// What the attention kernels share. For every (query, head):
//   s_j = scale*(q.k_j)   one chain over d; 16 keys of a panel are lanes, panels counted from absolute
//   position 0 m = max s, p_j = exp(s_j - m), l = sum p_j   lanes add up panel by panel, then fold as a fixed
//   tree o = (sum p_j v_j)/l   one chain over j per element
// so the bits depend on the sequence alone, not on where its keys lie: in pages, in ancestors or in the
// batch.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include "../ctx.h"
#include "../vec.h"
#include "args.gen.hpp"

namespace rlv {
namespace RLV_ISA {

constexpr uint32_t kPage = RLV_PAGE;
constexpr int kPanelVecs = int(kPage) / W;  // vectors of a panel of 16 keys
constexpr int kQueryRows = W == 4 ? 4 : 8;  // query rows of a tile
constexpr int kDimVecs = 2;                 // vectors of a block of head_dim
constexpr float kMasked = -std::numeric_limits<float>::infinity();

inline uint32_t pages_of(uint32_t positions) { return (positions + kPage - 1) / kPage; }
inline uint32_t padded_dim(uint32_t head_dim) { return (head_dim + W - 1) / W * W; }

// Keys of a sequence as panels: keys(p) is [D][16], values(j) a row of D.
template <class T>
struct PagedKeys {
  const T* store;
  const uint32_t* pages;
  size_t page_size;  // elements of a page of all kv heads
  size_t head;       // first element of this kv head within a page
  uint32_t dim;
  const T* keys(uint32_t p) const { return store + pages[p] * page_size + head; }
  const T* values(uint32_t j) const {
    return store + pages[j / kPage] * page_size + head + size_t(dim) * kPage + size_t(j % kPage) * dim;
  }
};

// Keys packed by this thread: panels one after another, value rows padded with zeros to a multiple of W.
struct PackedKeys {
  const float* panels;
  const float* rows;
  uint32_t dim, padded;
  const float* keys(uint32_t p) const { return panels + size_t(p) * dim * kPage; }
  const float* values(uint32_t j) const { return rows + size_t(j) * padded; }
};

// s[r][j] = scale*(a_r . b_j) for R rows of a and N neighbouring panels of b.
template <int R, int N, class Keys>
inline void score_panels(const float* a, size_t lda, uint32_t dim, const Keys& keys, uint32_t p0, float scale,
                         float* s, size_t lds) {
  V acc[R][N][kPanelVecs];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++)
      for (int v = 0; v < kPanelVecs; v++) acc[r][n][v] = zero();
  decltype(keys.keys(0)) panel[N];
  for (int n = 0; n < N; n++) panel[n] = keys.keys(p0 + uint32_t(n));
  for (uint32_t d = 0; d < dim; d++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVecs; v++) {
        const V k = load_as(panel[n] + size_t(d) * kPage + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[r][n][v] = fma(set1(a[size_t(r) * lda + d]), k, acc[r][n][v]);
      }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++)
      for (int v = 0; v < kPanelVecs; v++)
        store(s + size_t(r) * lds + (p0 + uint32_t(n)) * kPage + v * W, mul(acc[r][n][v], set1(scale)));
}

// The same over `panels` panels; few rows take several panels at once to hide the latency of the chain.
template <int R, class Keys>
inline void scores(const float* a, size_t lda, uint32_t dim, const Keys& keys, uint32_t panels, float scale,
                   float* s, size_t lds) {
  constexpr int kAtOnce = R * kPanelVecs >= 8 ? 1 : R * kPanelVecs >= 4 ? 2 : 4;
  uint32_t p = 0;
  for (; p + kAtOnce <= panels; p += kAtOnce) score_panels<R, kAtOnce>(a, lda, dim, keys, p, scale, s, lds);
  for (; p < panels; p++) score_panels<R, 1>(a, lda, dim, keys, p, scale, s, lds);
}

// out[r][d] = factor_r * sum_j w[r][j]*value_j[d], one chain over j. `part` loads N vectors at column d.
template <int R, class Keys>
inline void weighted_rows(const float* w, size_t ldw, uint32_t count, const Keys& keys, uint32_t dim,
                          const float* factor, float* out, size_t ldo) {
  for (uint32_t d = 0; d < dim; d += kDimVecs * W) {
    V acc[R][kDimVecs];
    for (int r = 0; r < R; r++)
      for (int v = 0; v < kDimVecs; v++) acc[r][v] = zero();
    int parts[kDimVecs];
    for (int v = 0; v < kDimVecs; v++) {
      const uint32_t at = d + uint32_t(v * W);
      parts[v] = at >= dim ? 0 : int(std::min<uint32_t>(W, dim - at));
    }
    if (parts[kDimVecs - 1] == W) {
      for (uint32_t j = 0; j < count; j++) {
        const auto* row = keys.values(j) + d;
        V x[kDimVecs];
        for (int v = 0; v < kDimVecs; v++) x[v] = load_as(row + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const V p = set1(w[size_t(r) * ldw + j]);
#pragma GCC unroll 2
          for (int v = 0; v < kDimVecs; v++) acc[r][v] = fma(p, x[v], acc[r][v]);
        }
      }
    } else {
      for (uint32_t j = 0; j < count; j++) {
        const auto* row = keys.values(j) + d;
        for (int v = 0; v < kDimVecs; v++) {
          if (parts[v] == 0) continue;
          const V x = load_part(row + v * W, parts[v]);
          for (int r = 0; r < R; r++) acc[r][v] = fma(set1(w[size_t(r) * ldw + j]), x, acc[r][v]);
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < kDimVecs; v++)
        if (parts[v] > 0)
          store_part(out + size_t(r) * ldo + d + v * W, mul(acc[r][v], set1(factor[r])), parts[v]);
  }
}

// Scores of one row to weights exp(s - m) in place; keys from `valid` on weigh nothing. Returns l, sets m.
inline float softmax_row(float* s, uint32_t valid, uint32_t panels, float& m) {
  for (uint32_t j = valid; j < panels * kPage; j++) s[j] = kMasked;
  V top = set1(kMasked);
  for (uint32_t j = 0; j < panels * kPage; j += W) top = vmax(top, load(s + j));
  m = hmax(top);
  const V origin = set1(m);
  V sum[kPanelVecs];
  for (V& v : sum) v = zero();
  for (uint32_t p = 0; p < panels; p++)
    for (int v = 0; v < kPanelVecs; v++) {
      float* at = s + p * kPage + v * W;
      const V e = vexp(sub(load(at), origin));
      store(at, e);
      sum[v] = add(sum[v], e);
    }
  for (int h = kPanelVecs / 2; h > 0; h /= 2)
    for (int v = 0; v < h; v++) sum[v] = add(sum[v], sum[v + h]);
  return hsum(sum[0]);
}

// ---- packed rows
// ---------------------------------------------------------------------------------------------

struct Segment {
  uint32_t start, len, parent, pos0, page_start, cached_len, root, reserved;
};
static_assert(sizeof(Segment) == RLV_SEGMENT_WORDS * 4, "segment record");

constexpr uint32_t kMaxDepth = 64;

// The segments that a segment continues, outermost first, itself last.
struct Lineage {
  uint32_t count = 0;
  uint32_t index[kMaxDepth];
  // False if the chain is too deep or does not go down.
  bool walk(const Segment* segs, uint32_t s) {
    uint32_t reversed[kMaxDepth];
    count = 0;
    for (uint32_t at = s;;) {
      if (count == kMaxDepth) return false;
      reversed[count++] = at;
      const uint32_t parent = segs[at].parent;
      if (parent == RLV_NONE) break;
      if (parent >= at) return false;
      at = parent;
    }
    for (uint32_t i = 0; i < count; i++) index[i] = reversed[count - 1 - i];
    return true;
  }
};

// Checks a segment table; every thread gets the same answer. `message` is set on failure.
inline bool segments_valid(const Segment* segs, uint32_t n, uint32_t rows, const uint32_t* pages,
                           uint32_t n_pages, uint32_t kv_pages, const char*& message, uint32_t& which) {
  Lineage line;
  for (uint32_t s = 0; s < n; s++) {
    const Segment& g = segs[s];
    which = s;
    message = "attention: segment beyond the rows";
    if (uint64_t(g.start) + g.len > rows) return false;
    message = "attention: segment does not continue an earlier one";
    if (!line.walk(segs, s)) return false;
    message = "attention: segment names another root than its own";
    if (g.root != line.index[0]) return false;
    message = "attention: segments of a tree are not contiguous";
    if (s > 0 && g.root != segs[s - 1].root && g.root != s) return false;
    const Segment& root = segs[g.root];
    message = "attention: cached prefix on a segment that is not a root";
    if (g.parent != RLV_NONE && g.cached_len != 0) return false;
    uint64_t before = root.cached_len;
    for (uint32_t i = 0; i + 1 < line.count; i++) before += segs[line.index[i]].len;
    message = "attention: segment does not begin where its prefix ends";
    if (before != g.pos0) return false;
    message = "attention: pages of a cached prefix are missing";
    if (g.cached_len > 0) {
      if (!pages || g.page_start == RLV_NONE || uint64_t(g.page_start) + pages_of(g.cached_len) > n_pages)
        return false;
      for (uint32_t p = 0; p < pages_of(g.cached_len); p++)
        if (pages[g.page_start + p] >= kv_pages) return false;
    }
  }
  return true;
}

inline uint64_t pairs_of(const Segment& g) {
  return uint64_t(g.len) * g.pos0 + uint64_t(g.len) * (g.len + 1) / 2;
}

// Puts row `row` (D values of a kv head) at key position j of transposed panels.
template <class T>
inline void pack_key(const T* row, uint32_t dim, uint32_t j, float* panels) {
  float* to = panels + size_t(j / kPage) * dim * kPage + j % kPage;
  for (uint32_t d = 0; d < dim; d++) to[size_t(d) * kPage] = get(row + d);
}
template <class T>
inline void pack_row(const T* row, uint32_t dim, uint32_t padded, float* to) {
  for (uint32_t d = 0; d < dim; d++) to[d] = get(row + d);
  for (uint32_t d = dim; d < padded; d++) to[d] = 0;
}
// Zeroes the lanes of the last panel that no key fills.
inline void clear_tail(float* panels, uint32_t dim, uint32_t count) {
  if (count % kPage == 0) return;
  float* last = panels + size_t(count / kPage) * dim * kPage;
  for (uint32_t d = 0; d < dim; d++)
    for (uint32_t lane = count % kPage; lane < kPage; lane++) last[size_t(d) * kPage + lane] = 0;
}

}  // namespace RLV_ISA
}  // namespace rlv
