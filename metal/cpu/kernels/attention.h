// What the attention kernels share. For every (query, head):
//   s_j = scale*(q.k_j)    one chain over d; 16 keys of a panel are lanes, panels counted from position 0
//   m = max s, p_j = exp(s_j - m), l = sum p_j   lanes add up panel by panel, then fold as a fixed tree
//   o = (sum p_j v_j)/l    one chain over j per element
// so the bits depend on the sequence alone, not on where its keys lie: in pages, in ancestors or in the
// batch. In bfloat16 chains run over pairs (of d, of j) and p is rounded for the product with v, not for l.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include "../ctx.h"
#include "../transpose.h"
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
inline uint32_t even(uint32_t n) { return (n + 1) / 2 * 2; }

// Where keys lie. Of panel p, 16 keys: keys(p).at(i, v) is vector v of link i of the chain over d, and
// values(p).at(i, d) the columns [d, d + W) of link i of the chain over the panel's keys.

// Pages of the cache: per kv head K [D][16], then V [16][D].
template <class T>
struct PagedKeys {
  const T* store;
  const uint32_t* pages;
  size_t page_size;  // elements of a page of all kv heads
  size_t head;       // first element of this kv head within a page
  uint32_t dim, count;

  const T* page(uint32_t p) const { return store + pages[p] * page_size + head; }
  // What follows a head's keys and values within a page is the next head's: it is asked for in passing.
  static RLV_INLINE void fetch_next_head(const T* at, uint32_t dim) {
    __builtin_prefetch(at + size_t(dim) * 2 * kPage, 0, 2);
  }

  struct Panel {
    const T* from;
    uint32_t dim;
    RLV_INLINE typename Link<T>::Vec at(uint32_t i, int v) const {
      const uint32_t d = i * Link<T>::kWide;
      const T* line = from + size_t(d) * kPage + v * W;
      if (v == 0) fetch_next_head(line, dim);
      return pair(line, d + 1 < dim);
    }

   private:
    static RLV_INLINE V pair(const float* p, bool) { return load(p); }
    static RLV_INLINE P pair(const uint16_t* p, bool two) {
      return join_pairs(p, two ? p + kPage : nullptr, W);
    }
  };
  Panel keys(uint32_t p) const { return {page(p), dim}; }

  struct Rows {
    const T* from;
    uint32_t dim, count;
    RLV_INLINE typename Link<T>::Vec at(uint32_t i, uint32_t d) const {
      const uint32_t j = i * Link<T>::kWide;
      const T* row = from + size_t(j) * dim + d;
      if (d % (64 / sizeof(T)) == 0) fetch_next_head(row, dim);
      return pair(row, j + 1 < count ? row + dim : nullptr, int(std::min<uint32_t>(W, dim - d)));
    }

   private:
    static RLV_INLINE V pair(const float* p, const float*, int n) { return load_part(p, n); }
    static RLV_INLINE P pair(const uint16_t* p, const uint16_t* next, int n) {
      return join_pairs(p, next, n);
    }
  };
  Rows values(uint32_t p) const {
    return {page(p) + size_t(dim) * kPage, dim, std::min(kPage, count - p * kPage)};
  }
};

// Keys packed by this thread: panels [D][16] (bfloat16 [D/2][16][2]) one after another; value rows padded to
// a multiple of W (bfloat16 [rows/2][padded][2]). Everything beyond the last key is zero.
template <class T>
struct PackedKeys {
  const T* panels;
  const T* rows;
  uint32_t dim, padded;

  struct Panel {
    const T* from;
    RLV_INLINE typename Link<T>::Vec at(uint32_t i, int v) const {
      return Link<T>::load(from + (size_t(i) * kPage + size_t(v) * W) * Link<T>::kWide);
    }
  };
  Panel keys(uint32_t p) const { return {panels + size_t(p) * even(dim) * kPage}; }

  struct Rows {
    const T* from;
    uint32_t padded;
    RLV_INLINE typename Link<T>::Vec at(uint32_t i, uint32_t d) const {
      return Link<T>::load(from + (size_t(i) * padded + d) * Link<T>::kWide);
    }
  };
  Rows values(uint32_t p) const { return {rows + size_t(p) * kPage * padded, padded}; }
};

template <class T>
inline size_t panel_bytes(uint32_t keys, uint32_t dim) {
  return size_t(pages_of(keys)) * kPage * even(dim) * sizeof(T);
}
template <class T>
inline size_t row_bytes(uint32_t keys, uint32_t padded) {
  return size_t(even(keys)) * padded * sizeof(T);
}

// Rows of D elements, one a key (null: zero), as panels.
inline void pack_panels(const float* const* rows, uint32_t keys, uint32_t dim, float* out) {
  for (uint32_t p = 0; p < pages_of(keys); p++) {
    const void* panel[kPage];
    for (uint32_t i = 0; i < kPage; i++) panel[i] = p * kPage + i < keys ? rows[p * kPage + i] : nullptr;
    transpose_rows(panel, dim, out + size_t(p) * even(dim) * kPage);
  }
}
inline void pack_panels(const uint16_t* const* rows, uint32_t keys, uint32_t dim, uint16_t* out) {
  for (uint32_t p = 0; p < pages_of(keys); p++) {
    const void* panel[kPage];
    for (uint32_t i = 0; i < kPage; i++) panel[i] = p * kPage + i < keys ? rows[p * kPage + i] : nullptr;
    uint16_t* to = out + size_t(p) * even(dim) * kPage;
    transpose_rows(panel, dim / 2, to);
    if (dim % 2 == 0) continue;
    for (uint32_t i = 0; i < kPage; i++) {
      to[size_t(dim - 1) * kPage + 2 * i] =
          panel[i] ? static_cast<const uint16_t*>(panel[i])[dim - 1] : uint16_t(0);
      to[size_t(dim - 1) * kPage + 2 * i + 1] = 0;
    }
  }
}
inline void pack_rows(const float* const* rows, uint32_t keys, uint32_t dim, uint32_t padded, float* out) {
  for (uint32_t j = 0; j < keys; j++)
    for (uint32_t d = 0; d < padded; d += W)
      store(out + size_t(j) * padded + d,
            d < dim ? load_part(rows[j] + d, int(std::min<uint32_t>(W, dim - d))) : zero());
}
inline void pack_rows(const uint16_t* const* rows, uint32_t keys, uint32_t dim, uint32_t padded,
                      uint16_t* out) {
  for (uint32_t j = 0; j < keys; j += 2)
    for (uint32_t d = 0; d < padded; d += W)
      store_pairs(out + size_t(j) * padded + 2 * size_t(d),
                  join_pairs(rows[j] + d, j + 1 < keys ? rows[j + 1] + d : nullptr,
                             d < dim ? int(std::min<uint32_t>(W, dim - d)) : 0));
}
// A query row, zeros up to `padded`.
template <class T>
inline void pack_row(const T* row, uint32_t dim, uint32_t padded, T* to) {
  std::memcpy(to, row, dim * sizeof(T));
  for (uint32_t d = dim; d < padded; d++) to[d] = 0;
}

// s[r][j] = scale*(a_r . k_j) for R rows of a and N neighbouring panels.
template <int R, int N, class T, class Keys>
RLV_INLINE void score_panels(const T* a, size_t lda, uint32_t dim, const Keys& keys, uint32_t p0, float scale,
                             float* s, size_t lds) {
  using L = Link<T>;
  decltype(keys.keys(0)) panel[N];
  for (int n = 0; n < N; n++) panel[n] = keys.keys(p0 + uint32_t(n));
  V acc[R][N][kPanelVecs];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVecs; v++) acc[r][n][v] = zero();
  for (uint32_t i = 0; i < (dim + L::kWide - 1) / L::kWide; i++) {
    typename L::Vec k[N][kPanelVecs];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVecs; v++) k[n][v] = panel[n].at(i, v);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const typename L::Vec x = L::broadcast(a + size_t(r) * lda + size_t(i) * L::kWide);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVecs; v++) acc[r][n][v] = L::mac(acc[r][n][v], x, k[n][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVecs; v++)
        store(s + size_t(r) * lds + (p0 + uint32_t(n)) * kPage + v * W, mul(acc[r][n][v], set1(scale)));
}

// The same over panels [p, panels); few rows take several panels at once to hide the latency of the chain.
template <int R, class T, class Keys>
inline void scores(const T* a, size_t lda, uint32_t dim, const Keys& keys, uint32_t p, uint32_t panels,
                   float scale, float* s, size_t lds) {
  constexpr int kMost = W == 16 ? 16 : 8;  // accumulators that leave registers for the operands
  constexpr int kAtOnce = std::max(1, std::min(4, kMost / (R * kPanelVecs)));
  for (; p + kAtOnce <= panels; p += kAtOnce) score_panels<R, kAtOnce>(a, lda, dim, keys, p, scale, s, lds);
  for (; p < panels; p++) score_panels<R, 1>(a, lda, dim, keys, p, scale, s, lds);
}

// out[r][d] = factor_r * sum_j w[r][j]*value_j[d] over keys [first, count), one chain over j that begins with
// what out holds if first > 0; factor null: 1. `first` is a multiple of 16, and w zero up to an even count.
template <int R, class T, class Keys>
inline void weighted_rows(const T* w, size_t ldw, uint32_t first, uint32_t count, const Keys& keys,
                          uint32_t padded, const float* factor, float* out, size_t ldo) {
  using L = Link<T>;
  auto block = [&](uint32_t d, auto vecs) {
    constexpr int kVecs = decltype(vecs)::value;
    V acc[R][kVecs];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v++)
        acc[r][v] = first > 0 ? load(out + size_t(r) * ldo + d + v * W) : zero();
    for (uint32_t j = first; j < count; j += kPage) {
      const auto rows = keys.values(j / kPage);
      const uint32_t links = (std::min(kPage, count - j) + L::kWide - 1) / L::kWide;
      for (uint32_t i = 0; i < links; i++) {
        typename L::Vec x[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; v++) x[v] = rows.at(i, d + uint32_t(v * W));
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const typename L::Vec p = L::broadcast(w + size_t(r) * ldw + j + size_t(i) * L::kWide);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; v++) acc[r][v] = L::mac(acc[r][v], p, x[v]);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v++)
        store(out + size_t(r) * ldo + d + v * W, factor ? mul(acc[r][v], set1(factor[r])) : acc[r][v]);
  };
  uint32_t d = 0;
  for (; d + kDimVecs * W <= padded; d += kDimVecs * W) block(d, std::integral_constant<int, kDimVecs>());
  for (; d < padded; d += W) block(d, std::integral_constant<int, 1>());
}

inline void store_weight(float* w, V e) { store(w, e); }
inline void store_weight(uint16_t* w, V e) { store_bf16(w, e); }

// Scores of one row to weights exp(s - m), rounded to T; keys from `valid` on weigh nothing. w may be s.
// Returns l, sets m.
template <class T>
inline float softmax_row(float* s, uint32_t valid, uint32_t panels, float& m, T* w) {
  for (uint32_t j = valid; j < panels * kPage; j++) s[j] = kMasked;
  V top = set1(kMasked);
  for (uint32_t j = 0; j < panels * kPage; j += W) top = vmax(top, load(s + j));
  m = hmax(top);
  const V origin = set1(m);
  V sum[kPanelVecs];
  for (V& v : sum) v = zero();
  for (uint32_t p = 0; p < panels; p++)
    for (int v = 0; v < kPanelVecs; v++) {
      const uint32_t j = p * kPage + uint32_t(v * W);
      const V e = vexp(sub(load(s + j), origin));
      store_weight(w + j, e);
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

}  // namespace RLV_ISA
}  // namespace rlv
