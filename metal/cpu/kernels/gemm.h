// Register tiles of the matrix products. One accumulation chain per output element, over the depth in
// ascending order (pairs for bfloat16), whatever the tile, its position, the batch or the number of threads.
//
//   panel_product     C[rows][32] (+)= A[rows][depth] * B, B a packed panel [depth][32]
//   weight_gradient   C[rows][32] += sum_t A[t][rows] * B[t][32]
//
// Tiles: 12 x 32 (AVX-512), 6 x 16 (AVX2), 6 x 16 (128 bits).
#pragma once
#include <algorithm>
#include <cstring>
#include "../ctx.h"
#include "../transpose.h"
#include "../vec.h"
#include "args.gen.hpp"
#include "row_split.h"

namespace rlv {
namespace RLV_ISA {

constexpr int kTileRows = W == 16 ? 12 : 6;
constexpr int kTileVecs = W == 16 ? 2 : W == 8 ? 2 : 4;
constexpr int kTileCols = kTileVecs * W;  // 32 or 16: a panel is one or two column blocks
constexpr uint32_t kPanel = RLV_PANEL;

// Elements of one row of depth in a packed panel of type T, and steps of the chain.
template <class T>
struct Depth {
  static constexpr uint32_t kWide = Link<T>::kWide;
  static uint32_t steps(uint32_t depth) { return (depth + kWide - 1) / kWide; }
};
template <class T>
inline size_t panel_elements(uint32_t depth) {
  return size_t(Depth<T>::steps(depth)) * Depth<T>::kWide * kPanel;
}

// Asks for the weights of later steps: far ahead into the second-level cache, whose queue is long enough for
// memory, and from there into the first.
constexpr size_t kNear = 2 << 10, kFar = 32 << 10;
template <int LEVEL>
inline void fetch(const void* at, size_t ahead, int vectors) {
  for (int v = 0; v < vectors; v++)
    __builtin_prefetch(static_cast<const char*>(at) + ahead + size_t(v) * W * 4, 0, LEVEL == 1 ? 3 : 2);
}
template <int NV>
inline void fetch_ahead(const void* step) {
  fetch<1>(step, kNear, NV);
  fetch<2>(step, kFar, NV);
}

// What a chain of MR rows and NV vectors asks for at each step. A row or two leave the hardware's own
// prefetching enough time.
struct NearAndFar {
  template <int MR, int NV>
  static RLV_INLINE void at(const void* step) {
    if (MR >= 6) fetch_ahead<NV>(step);
  }
};
// The two halves of it, for two passes over the same weights.
struct Far {
  template <int MR, int NV>
  static RLV_INLINE void at(const void* step) {
    fetch<2>(step, kFar, NV);
  }
};
template <size_t BYTES>
struct Near {
  template <int MR, int NV>
  static RLV_INLINE void at(const void* step) {
    fetch<1>(step, BYTES, NV);
  }
};

// acc[r][v] for rows r < MR and NV vectors of the panel's columns.
template <class Fetch = NearAndFar, int MR, int NV>
RLV_INLINE void chain(V (&acc)[MR][NV], const float* a, size_t lda, const float* panel, uint32_t depth) {
  for (uint32_t p = 0; p < depth; p++) {
    Fetch::template at<MR, NV>(panel + size_t(p) * kPanel);
    V b[NV];
    for (int v = 0; v < NV; v++) b[v] = load(panel + size_t(p) * kPanel + v * W);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++) {
      const V x = set1(a[size_t(r) * lda + p]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[r][v] = fma(x, b[v], acc[r][v]);
    }
  }
}

template <class Fetch = NearAndFar, int MR, int NV>
RLV_INLINE void chain(V (&acc)[MR][NV], const uint16_t* a, size_t lda, const uint16_t* panel,
                      uint32_t depth) {
  const uint32_t pairs = depth / 2;
  for (uint32_t p = 0; p < pairs; p++) {
    Fetch::template at<MR, NV>(panel + size_t(p) * kPanel * 2);
    P b[NV];
    for (int v = 0; v < NV; v++) b[v] = load_pairs(panel + (size_t(p) * kPanel + size_t(v) * W) * 2);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++) {
      const P x = set1_pair(pair_at(a + size_t(r) * lda + size_t(p) * 2));
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[r][v] = dot_pairs(acc[r][v], x, b[v]);
    }
  }
  if (depth % 2 == 0) return;
  // An odd depth ends with a pair whose high half is zero.
  for (int v = 0; v < NV; v++) {
    const P b = load_pairs(panel + (size_t(pairs) * kPanel + size_t(v) * W) * 2);
    for (int r = 0; r < MR; r++)
      acc[r][v] = dot_pairs(acc[r][v], set1_pair(a[size_t(r) * lda + depth - 1]), b);
  }
}

// One tile: start(r, column) gives the initial vector, finish(r, column, value) takes the result; `column`
// counts from the panel's first output.
template <int MR, class T, class Start, class Finish>
inline void tile(const T* a, size_t lda, const T* panel, uint32_t depth, Start&& start, Finish&& finish) {
  for (uint32_t column = 0; column < kPanel; column += kTileCols) {
    V acc[MR][kTileVecs];
    for (int r = 0; r < MR; r++)
      for (int v = 0; v < kTileVecs; v++) acc[r][v] = start(r, column + uint32_t(v * W));
    chain(acc, a, lda, panel + size_t(column) * Depth<T>::kWide, depth);
    for (int r = 0; r < MR; r++)
      for (int v = 0; v < kTileVecs; v++) finish(r, column + uint32_t(v * W), acc[r][v]);
  }
}

// The same for 1 <= rows <= kTileRows.
template <class T, class Start, class Finish>
inline void panel_product(int rows, const T* a, size_t lda, const T* panel, uint32_t depth, Start&& start,
                          Finish&& finish) {
  // clang-format off
  switch (rows) {
#define CASE(n) case n: return tile<n>(a, lda, panel, depth, start, finish);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
  }
  // clang-format on
}

// Only the first `columns` of a panel, from zero: whole vectors, as few as hold them. `columns` <= 32.
template <int MR, int NV, class T, class Finish>
inline void few_vectors(const T* a, size_t lda, const T* panel, uint32_t depth, uint32_t column,
                        Finish&& finish) {
  V acc[MR][NV];
  for (int r = 0; r < MR; r++)
    for (int v = 0; v < NV; v++) acc[r][v] = zero();
  chain(acc, a, lda, panel + size_t(column) * Depth<T>::kWide, depth);
  for (int r = 0; r < MR; r++)
    for (int v = 0; v < NV; v++) finish(r, column + uint32_t(v * W), acc[r][v]);
}
template <class T, class Finish>
inline void few_columns(int rows, const T* a, size_t lda, const T* panel, uint32_t depth, uint32_t columns,
                        Finish&& finish) {
  for (uint32_t column = 0; column < columns;) {
    const bool two = columns - column > uint32_t(W);
    // clang-format off
    switch (rows) {
#define CASE(n) case n: two ? few_vectors<n, 2>(a, lda, panel, depth, column, finish) \
                            : few_vectors<n, 1>(a, lda, panel, depth, column, finish); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
      CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
    }
    // clang-format on
    column += two ? 2 * W : W;
  }
}

inline V start_zero(int, uint32_t) { return zero(); }

// Two tiles of MR rows that share weights as these come from memory: a piece of the panel serves both while
// the next one is on its way.
template <int MR, class T, class Finish>
inline void twin_tile(const T* x, size_t lda, const T* panel, uint32_t depth, Finish&& finish) {
  constexpr uint32_t kPiece = 128;  // of depth: 8 KiB of bfloat16, 16 of float32
  constexpr size_t kBytes = size_t(kPiece) * kPanel * sizeof(T);
  for (uint32_t column = 0; column < kPanel; column += kTileCols) {
    V upper[MR][kTileVecs], lower[MR][kTileVecs];
    for (int r = 0; r < MR; r++)
      for (int v = 0; v < kTileVecs; v++) upper[r][v] = lower[r][v] = zero();
    for (uint32_t k = 0; k < depth; k += kPiece) {
      const uint32_t length = std::min(kPiece, depth - k);
      const T* from = panel + size_t(k) * kPanel + size_t(column) * Depth<T>::kWide;
      chain<Far>(upper, x + k, lda, from, length);
      chain<Near<kBytes>>(lower, x + size_t(MR) * lda + k, lda, from, length);
    }
    for (int r = 0; r < MR; r++)
      for (int v = 0; v < kTileVecs; v++) {
        finish(r, column + uint32_t(v * W), upper[r][v]);
        finish(r + MR, column + uint32_t(v * W), lower[r][v]);
      }
  }
}
// Whether m rows are two equal tiles, and the most rows that `rows_product` takes at once.
constexpr uint32_t kMostRows = W == 16 ? 2 * kTileRows : kTileRows;
inline bool twins(uint32_t m) { return m > uint32_t(kTileRows) && m <= kMostRows && m % 2 == 0; }

// Rows as Schedule gives them, from zero.
template <class T, class Finish>
inline void rows_product(uint32_t rows, const T* x, size_t lda, const T* panel, uint32_t depth,
                         Finish&& finish) {
#if defined(__AVX512F__)
  // clang-format off
  if (twins(rows)) switch (rows / 2) {
#define CASE(n) case n: return twin_tile<n>(x, lda, panel, depth, finish);
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
  }
    // clang-format on
#endif
  panel_product(int(rows), x, lda, panel, depth, start_zero, finish);
}

// Rows of a matrix of m in tiles of nearly equal height: no tile is left with a single row when it can be
// helped.
struct RowTiles {
  uint32_t m, count;
  explicit RowTiles(uint32_t rows) : m(rows), count((rows + kTileRows - 1) / kTileRows) {}
  uint32_t begin(uint32_t i) const { return uint32_t(uint64_t(m) * i / count); }
  uint32_t size(uint32_t i) const { return begin(i + 1) - begin(i); }
};

// How the (panel, row tile) pairs of a product of m rows are divided. Weights that stay in the second-level
// cache are read by every thread, which then works on rows of its own: what one operation writes, the next
// reads from there, without a barrier between the two (row_split.h).
struct Schedule {
  static constexpr uint32_t kBlock = 8;  // tiles whose rows stay close while the panels pass
  uint32_t m, panels;
  bool by_rows;
  bool takes_twins;  // the body hands its rows to rows_product
  Schedule(const Ctx& c, uint32_t rows, uint32_t panel_count, size_t panel_bytes, bool twin_rows = false)
      : m(rows),
        panels(panel_count),
        by_rows(product_by_rows(c.threads, rows, panel_count * panel_bytes)),
        takes_twins(twin_rows) {}

  // Calls body(panel, first row, rows) for this thread's share; a tile has at most kTileRows, twins
  // kMostRows.
  template <class F>
  void run(const Ctx& c, F&& body) const {
    if (by_rows) {
      const Range mine = split(m, c);
      const RowTiles tiles(mine.end - mine.begin);
      for (uint32_t t0 = 0; t0 < tiles.count; t0 += kBlock)
        for (uint32_t p = 0; p < panels; p++)
          for (uint32_t t = t0; t < std::min(tiles.count, t0 + kBlock); t++)
            body(p, mine.begin + tiles.begin(t), tiles.size(t));
      return;
    }
    if (takes_twins && twins(m) && panels >= c.threads) {
      const Range mine = split(panels, c);
      for (uint32_t p = mine.begin; p < mine.end; p++) body(p, 0u, m);
      return;
    }
    const RowTiles tiles(m);
    auto tile = [&](uint32_t p, uint32_t t) { body(p, tiles.begin(t), tiles.size(t)); };
    // Few rows: whole panels, so that every weight is read by one thread.
    if (tiles.count <= 2 && panels >= c.threads) {
      const Range mine = split(panels, c);
      for (uint32_t p = mine.begin; p < mine.end; p++)
        for (uint32_t t = 0; t < tiles.count; t++) tile(p, t);
      return;
    }
    const uint64_t all = uint64_t(panels) * tiles.count;
    const uint64_t begin = all * c.tid / c.threads, end = all * (c.tid + 1) / c.threads;
    for (uint64_t i = begin; i < end; i++) tile(uint32_t(i / tiles.count), uint32_t(i % tiles.count));
  }
};

// Rows as register tiles read them. Rows that lie a multiple of 1 KiB apart fall into the same few sets of
// the first-level cache and drive each other out, so such a matrix is copied with gaps, by every thread.
template <class T>
struct SpacedRows {
  static constexpr int kSlot = 7;
  const T* data;
  size_t ld;
  SpacedRows(Ctx& c, const T* x, uint32_t m, uint32_t k) : data(x), ld(k) {
    if (m < 3 || k * sizeof(T) % 1024 != 0) return;
    ld = k + 64 / sizeof(T);
    T* to = static_cast<T*>(c.local(kSlot, m * ld * sizeof(T)));
    for (uint32_t r = 0; r < m; r++) std::memcpy(to + r * ld, x + size_t(r) * k, k * sizeof(T));
    data = to;
  }
  const T* at(uint32_t row) const { return data + row * ld; }
};

// x*w^T of m rows: finish(row, column, value, count) takes each vector of outputs, count <= W of them real.
template <class T, class Finish>
inline void product(Ctx& c, const T* x, const T* w, uint32_t m, uint32_t n, uint32_t k, Finish&& finish) {
  const SpacedRows<T> rows_of_x(c, x, m, k);
  const Schedule schedule(c, m, (n + kPanel - 1) / kPanel, panel_elements<T>(k) * sizeof(T), true);
  schedule.run(c, [&](uint32_t panel, uint32_t r0, uint32_t rows) {
    rows_product(rows, rows_of_x.at(r0), rows_of_x.ld, w + panel * panel_elements<T>(k), k,
                 [&](int r, uint32_t column, V value) {
                   const uint32_t at = panel * kPanel + column;
                   if (at < n) finish(r0 + uint32_t(r), at, value, int(std::min<uint32_t>(W, n - at)));
                 });
  });
}

// Transposes columns [k0, k0+32) of a packed [n][k] matrix to a panel whose depth is n.
inline void transpose_panel(const float* w, uint32_t n, uint32_t k, uint32_t k0, float* out) {
  const uint32_t cols = std::min(kPanel, k - k0);
  for (uint32_t n0 = 0; n0 < n; n0 += kPanel) {
    const float* from = w + size_t(n0) * k + size_t(k0) * kPanel;
    float* to = out + size_t(n0) * kPanel;
    const uint32_t rows = std::min(kPanel, n - n0);
    if (rows == kPanel && cols == kPanel) {
      for (uint32_t p = 0; p < kPanel; p += W)
        for (uint32_t j = 0; j < kPanel; j += W)
          transpose_block(from + size_t(p) * kPanel + j, kPanel, to + size_t(j) * kPanel + p, kPanel);
      continue;
    }
    for (uint32_t j = 0; j < rows; j++)
      for (uint32_t p = 0; p < kPanel; p++)
        to[size_t(j) * kPanel + p] = p < cols ? from[size_t(p) * kPanel + j] : 0.0f;
  }
}
// In words of two pairs: {w[n][k], w[n][k+1], w[n+1][k], w[n+1][k+1]} becomes the two pairs along n.
inline void transpose_panel(const uint16_t* w, uint32_t n, uint32_t k, uint32_t k0, uint16_t* out) {
  constexpr uint32_t kWords = kPanel / 2;
  const uint32_t depth = (k + 1) / 2 * 2;
  const uint32_t pairs = (std::min(kPanel, k - k0) + 1) / 2;
  uint64_t block[kWords][kWords];
  for (uint32_t n0 = 0; n0 < n; n0 += kPanel) {
    const uint16_t* from = w + size_t(n0) * depth + size_t(k0) * kPanel;
    const uint32_t rows = (std::min(kPanel, n - n0) + 1) / 2;
    // Rows beyond the last pair apart: GCC 12 loses all but the first word of a row where it masks the loads.
    for (uint32_t p = 0; p < pairs; p++)
      for (uint32_t j = 0; j < kWords; j++) {
        uint64_t q;
        std::memcpy(&q, from + (size_t(p) * kWords + j) * 4, 8);
        block[p][j] =
            (q & 0xffff00000000ffffu) | ((q >> 16) & 0x00000000ffff0000u) | ((q << 16) & 0x0000ffff00000000u);
      }
    for (uint32_t p = pairs; p < kWords; p++) std::memset(block[p], 0, sizeof block[p]);
    for (uint32_t j = 0; j < rows; j++) {
      uint16_t* to = out + (size_t(n0 / 2) + j) * 2 * kPanel;
      for (uint32_t p = 0; p < kWords; p++) std::memcpy(to + size_t(p) * 4, &block[p][j], 8);
    }
  }
}

// The panels of w^T that a thread needs one after the other, made when first asked for: all of them are kept
// if threads work on rows of their own, else the last one.
template <class T>
class TransposedPanels {
 public:
  TransposedPanels(Ctx& c, int slot, const Schedule& schedule, const T* w, uint32_t n, uint32_t k)
      : w_(w), n_(n), k_(k), size_(panel_elements<T>(n)), keep_(schedule.by_rows) {
    out_ = static_cast<T*>(c.local(slot, (keep_ ? schedule.panels : 1) * size_ * sizeof(T)));
  }
  const T* at(uint32_t panel) {
    T* out = out_ + (keep_ ? panel * size_ : 0);
    const bool made = keep_ ? panel < made_ : panel + 1 == made_;
    if (!made) transpose_panel(w_, n_, k_, panel * kPanel, out);
    made_ = keep_ ? std::max(made_, panel + 1) : panel + 1;
    return out;
  }

 private:
  const T* w_;
  uint32_t n_, k_;
  size_t size_;
  bool keep_;
  T* out_;
  uint32_t made_ = 0;
};

// ---- gradients of weights ---------------------------------------------------------------------------------

// Tokens whose packed panel stays in the second-level cache.
constexpr uint32_t kTokenBlock = 1024;

// Packs A[t][column0 + r] for t < tokens as [token step][kTileRows] (pairs of tokens for bfloat16).
inline void pack_rows(const float* a, size_t lda, uint32_t tokens, int rows, float* out) {
  for (uint32_t t = 0; t < tokens; t++)
    for (int r = 0; r < kTileRows; r += W) {
      const V x = r < rows ? load_part(a + size_t(t) * lda + r, std::min(W, rows - r)) : zero();
      store_part(out + size_t(t) * kTileRows + r, x, std::min(W, kTileRows - r));
    }
}
inline void pack_rows(const uint16_t* a, size_t lda, uint32_t tokens, int rows, uint16_t* out) {
  if (rows < kTileRows) std::memset(out, 0, size_t(tokens + tokens % 2) * kTileRows * sizeof(uint16_t));
  for (uint32_t t = 0; t < tokens; t += 2) {
    const uint16_t* even = a + size_t(t) * lda;
    interleave_bf16(even, t + 1 < tokens ? even + lda : nullptr, rows, out + size_t(t) * kTileRows);
  }
}
// Packs B[t][n0 + j] for j < 32 as a panel whose depth is tokens.
inline void pack_panel(const float* b, size_t ldb, uint32_t tokens, uint32_t cols, float* out) {
  for (uint32_t t = 0; t < tokens; t++) {
    std::memcpy(out + size_t(t) * kPanel, b + size_t(t) * ldb, cols * sizeof(float));
    std::memset(out + size_t(t) * kPanel + cols, 0, (kPanel - cols) * sizeof(float));
  }
}
inline void pack_panel(const uint16_t* b, size_t ldb, uint32_t tokens, uint32_t cols, uint16_t* out) {
  if (cols < kPanel) std::memset(out, 0, size_t(tokens + tokens % 2) * kPanel * sizeof(uint16_t));
  for (uint32_t t = 0; t < tokens; t += 2)
    for (uint32_t j = 0; j < cols; j += 16) {
      const uint16_t* even = b + size_t(t) * ldb + j;
      interleave_bf16(even, t + 1 < tokens ? even + ldb : nullptr, int(std::min(16u, cols - j)),
                      out + size_t(t) * kPanel + size_t(j) * 2);
    }
}

RLV_INLINE void token_chain(V (&acc)[kTileRows][kTileVecs], const float* a, const float* b, uint32_t tokens) {
  for (uint32_t t = 0; t < tokens; t++) {
    V bv[kTileVecs];
    for (int v = 0; v < kTileVecs; v++) bv[v] = load(b + size_t(t) * kPanel + v * W);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; r++) {
      const V x = set1(a[size_t(t) * kTileRows + r]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVecs; v++) acc[r][v] = fma(x, bv[v], acc[r][v]);
    }
  }
}
RLV_INLINE void token_chain(V (&acc)[kTileRows][kTileVecs], const uint16_t* a, const uint16_t* b,
                            uint32_t tokens) {
  for (uint32_t t = 0; t < (tokens + 1) / 2; t++) {
    P bv[kTileVecs];
    for (int v = 0; v < kTileVecs; v++) bv[v] = load_pairs(b + (size_t(t) * kPanel + size_t(v) * W) * 2);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; r++) {
      const P x = set1_pair(pair_at(a + (size_t(t) * kTileRows + r) * 2));
#pragma GCC unroll 4
      for (int v = 0; v < kTileVecs; v++) acc[r][v] = dot_pairs(acc[r][v], x, bv[v]);
    }
  }
}

// Accumulators of `rows` rows from p0 (even) on, columns [column, column + kTileCols), of a gradient panel:
// float32 elements in the layout of T. A padded odd row of bfloat16 holds zeros and gets them back.
RLV_INLINE void load_gradient(V (&acc)[kTileRows][kTileVecs], const float* panel, uint32_t p0, int rows,
                              uint32_t column, float) {
  for (int r = 0; r < kTileRows; r++)
    for (int v = 0; v < kTileVecs; v++)
      acc[r][v] =
          r < rows ? load(panel + size_t(p0 + uint32_t(r)) * kPanel + column + uint32_t(v * W)) : zero();
}
RLV_INLINE void store_gradient(const V (&acc)[kTileRows][kTileVecs], float* panel, uint32_t p0, int rows,
                               uint32_t column, float) {
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < kTileVecs; v++)
      store(panel + size_t(p0 + uint32_t(r)) * kPanel + column + uint32_t(v * W), acc[r][v]);
}
RLV_INLINE void load_gradient(V (&acc)[kTileRows][kTileVecs], const float* panel, uint32_t p0, int rows,
                              uint32_t column, uint16_t) {
  for (int r = 0; r < kTileRows; r += 2)
    for (int v = 0; v < kTileVecs; v++) {
      const float* at = panel + size_t(p0 + uint32_t(r)) * kPanel + (column + uint32_t(v * W)) * 2;
      if (r < rows)
        load_interleaved(at, acc[r][v], acc[r + 1][v]);
      else
        acc[r][v] = acc[r + 1][v] = zero();
    }
}
RLV_INLINE void store_gradient(const V (&acc)[kTileRows][kTileVecs], float* panel, uint32_t p0, int rows,
                               uint32_t column, uint16_t) {
  for (int r = 0; r < rows; r += 2)
    for (int v = 0; v < kTileVecs; v++)
      store_interleaved(panel + size_t(p0 + uint32_t(r)) * kPanel + (column + uint32_t(v * W)) * 2, acc[r][v],
                        acc[r + 1][v]);
}

// The same where the elements are bfloat16 too: the two rows of a pair lie side by side.
RLV_INLINE void load_gradient(V (&acc)[kTileRows][kTileVecs], const uint16_t* panel, uint32_t p0, int rows,
                              uint32_t column, uint16_t) {
  for (int r = 0; r < kTileRows; r += 2)
    for (int v = 0; v < kTileVecs; v++) {
      const uint16_t* at = panel + size_t(p0 + uint32_t(r)) * kPanel + (column + uint32_t(v * W)) * 2;
      if (r < rows) {
        const P pair = load_pairs(at);
        acc[r][v] = pair_low(pair);
        acc[r + 1][v] = pair_high(pair);
      } else {
        acc[r][v] = acc[r + 1][v] = zero();
      }
    }
}
RLV_INLINE void store_gradient(const V (&acc)[kTileRows][kTileVecs], uint16_t* panel, uint32_t p0, int rows,
                               uint32_t column, uint16_t) {
  for (int r = 0; r < rows; r += 2)
    for (int v = 0; v < kTileVecs; v++)
      store_pairs(panel + size_t(p0 + uint32_t(r)) * kPanel + (column + uint32_t(v * W)) * 2,
                  rounded_pairs(acc[r][v], acc[r + 1][v]));
}

// dw[panels][k][32] += dy[m][..]^T * x[m][k]: dy has `n` columns, `dw` the panels of all of them. Threads
// take (panel, tile of k); a tile's chain runs over all tokens before the next begins, in blocks that stay in
// cache.
template <class T, class G>
inline void weight_gradient(Ctx& c, G* dw, const T* dy, size_t ldy, const T* x, size_t ldx, uint32_t m,
                            uint32_t n, uint32_t k) {
  const uint32_t panels = (n + kPanel - 1) / kPanel;
  const uint32_t tiles = (k + kTileRows - 1) / kTileRows;
  const uint32_t depth = Depth<T>::kWide == 2 ? (k + 1) / 2 * 2 : k;
  const uint64_t all = uint64_t(panels) * tiles;
  const uint64_t begin = all * c.tid / c.threads, end = all * (c.tid + 1) / c.threads;
  if (begin == end || m == 0) return;
  // What is rounded is rounded once.
  const uint32_t block = sizeof(G) == sizeof(float) ? std::min(m, kTokenBlock) : m;
  T* b = static_cast<T*>(c.local(0, size_t(block + 1) * kPanel * sizeof(T)));
  T* a = static_cast<T*>(c.local(1, size_t(block + 1) * kTileRows * tiles * sizeof(T)));
  for (uint32_t t0 = 0; t0 < m; t0 += block) {
    const uint32_t tokens = std::min(block, m - t0);
    const size_t tile_size = size_t(tokens + tokens % 2) * kTileRows;
    // Tiles of x that this thread needs: all of them once its share spans a whole panel.
    const uint32_t first = end - begin >= tiles ? 0 : uint32_t(begin % tiles);
    const uint64_t needed = std::min<uint64_t>(end - begin, tiles);
    for (uint64_t i = 0; i < needed; i++) {
      const uint32_t t = uint32_t((first + i) % tiles);
      const int rows = int(std::min<uint32_t>(kTileRows, k - t * kTileRows));
      pack_rows(x + size_t(t0) * ldx + size_t(t) * kTileRows, ldx, tokens, rows, a + t * tile_size);
    }
    uint32_t packed = RLV_NONE;
    for (uint64_t i = begin; i < end; i++) {
      const uint32_t panel = uint32_t(i / tiles), t = uint32_t(i % tiles);
      if (panel != packed) {
        const uint32_t cols = std::min(kPanel, n - panel * kPanel);
        pack_panel(dy + size_t(t0) * ldy + size_t(panel) * kPanel, ldy, tokens, cols, b);
        packed = panel;
      }
      G* out = dw + size_t(panel) * kPanel * depth;
      const int rows = int(std::min<uint32_t>(kTileRows, k - t * kTileRows));
      for (uint32_t column = 0; column < kPanel; column += kTileCols) {
        V acc[kTileRows][kTileVecs];
        load_gradient(acc, out, t * kTileRows, rows, column, T());
        token_chain(acc, a + t * tile_size, b + size_t(column) * Depth<T>::kWide, tokens);
        store_gradient(acc, out, t * kTileRows, rows, column, T());
      }
    }
  }
}

}  // namespace RLV_ISA
}  // namespace rlv
