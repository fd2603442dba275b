// Register tiles of the matrix products. One accumulation chain per output element, over the depth in
// ascending order (pairs for bfloat16), whatever the tile, its position, the batch or the number of threads.
//
//   panel_product   C[rows][32] (+)= A[rows][depth] * B, B a packed panel [depth][32]
//   token_product   C[rows][32] += sum_t A[t][rows] * B[t][32]: gradients of weights
//
// Tiles: 12 x 32 (AVX-512), 6 x 16 (AVX2), 6 x 16 (128 bits).
#pragma once
#include <algorithm>
#include <cstring>
#include "../ctx.h"
#include "../vec.h"
#include "args.gen.hpp"

namespace rlv {
namespace RLV_ISA {

constexpr int kTileRows = W == 16 ? 12 : 6;
constexpr int kTileVecs = W == 16 ? 2 : W == 8 ? 2 : 4;
constexpr int kTileCols = kTileVecs * W;  // 32 or 16: a panel is one or two column blocks
constexpr uint32_t kPanel = RLV_PANEL;

// Elements of one row of depth in a packed panel of type T, and steps of the chain.
template <class T>
struct Depth;
template <>
struct Depth<float> {
  static constexpr uint32_t kWide = 1;
  static uint32_t steps(uint32_t depth) { return depth; }
};
template <>
struct Depth<uint16_t> {
  static constexpr uint32_t kWide = 2;
  static uint32_t steps(uint32_t depth) { return (depth + 1) / 2; }
};
template <class T>
inline size_t panel_elements(uint32_t depth) {
  return size_t(Depth<T>::steps(depth)) * Depth<T>::kWide * kPanel;
}

// Always inlined, or the accumulators would live in memory that the operands may alias.
#define RLV_CHAIN inline __attribute__((always_inline))

// acc[r][v] for rows r < MR and columns [column, column + kTileCols) of the panel.
template <int MR>
RLV_CHAIN void chain(V (&acc)[MR][kTileVecs], const float* a, size_t lda, const float* panel,
                     uint32_t depth) {
  for (uint32_t p = 0; p < depth; p++) {
    V b[kTileVecs];
    for (int v = 0; v < kTileVecs; v++) b[v] = load(panel + size_t(p) * kPanel + v * W);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++) {
      const V x = set1(a[size_t(r) * lda + p]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVecs; v++) acc[r][v] = fma(x, b[v], acc[r][v]);
    }
  }
}

inline uint32_t pair_at(const uint16_t* p) {
  uint32_t u;
  std::memcpy(&u, p, 4);
  return u;
}

template <int MR>
RLV_CHAIN void chain(V (&acc)[MR][kTileVecs], const uint16_t* a, size_t lda, const uint16_t* panel,
                     uint32_t depth) {
  const uint32_t pairs = depth / 2;
  for (uint32_t p = 0; p < pairs; p++) {
    P b[kTileVecs];
    for (int v = 0; v < kTileVecs; v++) b[v] = load_pairs(panel + (size_t(p) * kPanel + size_t(v) * W) * 2);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++) {
      const P x = set1_pair(pair_at(a + size_t(r) * lda + size_t(p) * 2));
#pragma GCC unroll 4
      for (int v = 0; v < kTileVecs; v++) acc[r][v] = dot_pairs(acc[r][v], x, b[v]);
    }
  }
  if (depth % 2 == 0) return;
  // An odd depth ends with a pair whose high half is zero.
  for (int v = 0; v < kTileVecs; v++) {
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
    chain<MR>(acc, a, lda, panel + size_t(column) * Depth<T>::kWide, depth);
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

inline V start_zero(int, uint32_t) { return zero(); }

// Rows of a matrix of m in tiles of nearly equal height: no tile is left with a single row when it can be
// helped.
struct RowTiles {
  uint32_t m, count;
  explicit RowTiles(uint32_t rows) : m(rows), count((rows + kTileRows - 1) / kTileRows) {}
  uint32_t begin(uint32_t i) const { return uint32_t(uint64_t(m) * i / count); }
  uint32_t size(uint32_t i) const { return begin(i + 1) - begin(i); }
};

// Calls body(panel, tile) for this thread's share of all (panel, row tile), panels outermost.
template <class F>
inline void for_tiles(const Ctx& c, uint32_t panels, uint32_t tiles, F&& body) {
  // Few rows: whole panels, so that every weight is read by one thread.
  if (tiles <= 2 && panels >= c.threads) {
    const Range r = split(panels, c);
    for (uint32_t p = r.begin; p < r.end; p++)
      for (uint32_t t = 0; t < tiles; t++) body(p, t);
    return;
  }
  const uint64_t all = uint64_t(panels) * tiles;
  const uint64_t begin = all * c.tid / c.threads, end = all * (c.tid + 1) / c.threads;
  for (uint64_t i = begin; i < end; i++) body(uint32_t(i / tiles), uint32_t(i % tiles));
}

// Transposes panel columns [k0, k0+32) of a packed [n][k] matrix to a panel whose depth is n.
inline void transpose_panel(const float* w, uint32_t n, uint32_t k, uint32_t k0, float* out) {
  const uint32_t cols = std::min(kPanel, k - k0);
  for (uint32_t n0 = 0; n0 < n; n0 += kPanel) {
    const float* from = w + size_t(n0) * k + size_t(k0) * kPanel;
    const uint32_t rows = std::min(kPanel, n - n0);
    for (uint32_t p = 0; p < kPanel; p++) {
      float* to = out + size_t(n0) * kPanel + p;
      if (p < cols)
        for (uint32_t j = 0; j < rows; j++) to[size_t(j) * kPanel] = from[size_t(p) * kPanel + j];
      else
        for (uint32_t j = 0; j < rows; j++) to[size_t(j) * kPanel] = 0;
    }
  }
}
inline void transpose_panel(const uint16_t* w, uint32_t n, uint32_t k, uint32_t k0, uint16_t* out) {
  const uint32_t depth = (k + 1) / 2 * 2;
  const uint32_t cols = std::min(kPanel, k - k0);
  if (n % 2) std::memset(out + size_t(n - 1) * kPanel, 0, 2 * kPanel * sizeof(uint16_t));
  for (uint32_t n0 = 0; n0 < n; n0 += kPanel) {
    const uint16_t* from = w + size_t(n0) * depth + size_t(k0) * kPanel;
    const uint32_t rows = std::min(kPanel, n - n0);
    for (uint32_t p = 0; p < kPanel; p++)
      for (uint32_t j = 0; j < rows; j++)
        out[size_t(n0 + j) / 2 * 2 * kPanel + p * 2 + (n0 + j) % 2] =
            p < cols ? from[size_t(p / 2) * 2 * kPanel + j * 2 + p % 2] : uint16_t(0);
  }
}

// ---- gradients of weights ---------------------------------------------------------------------------------

constexpr uint32_t kTokenBlock = 256;

// Packs A[t][column0 + r] for t < tokens as [token step][kTileRows] (pairs of tokens for bfloat16).
inline void pack_rows(const float* a, size_t lda, uint32_t tokens, int rows, float* out) {
  for (uint32_t t = 0; t < tokens; t++)
    for (int r = 0; r < kTileRows; r++)
      out[size_t(t) * kTileRows + r] = r < rows ? a[size_t(t) * lda + r] : 0.0f;
}
inline void pack_rows(const uint16_t* a, size_t lda, uint32_t tokens, int rows, uint16_t* out) {
  for (uint32_t t = 0; t < tokens + tokens % 2; t++)
    for (int r = 0; r < kTileRows; r++)
      out[(size_t(t / 2) * kTileRows + r) * 2 + t % 2] =
          t < tokens && r < rows ? a[size_t(t) * lda + r] : uint16_t(0);
}
// Packs B[t][n0 + j] for j < 32 as a panel whose depth is tokens.
inline void pack_panel(const float* b, size_t ldb, uint32_t tokens, uint32_t cols, float* out) {
  for (uint32_t t = 0; t < tokens; t++) {
    std::memcpy(out + size_t(t) * kPanel, b + size_t(t) * ldb, cols * sizeof(float));
    std::memset(out + size_t(t) * kPanel + cols, 0, (kPanel - cols) * sizeof(float));
  }
}
inline void pack_panel(const uint16_t* b, size_t ldb, uint32_t tokens, uint32_t cols, uint16_t* out) {
  for (uint32_t t = 0; t < tokens + tokens % 2; t++)
    for (uint32_t j = 0; j < kPanel; j++)
      out[(size_t(t / 2) * kPanel + j) * 2 + t % 2] =
          t < tokens && j < cols ? b[size_t(t) * ldb + j] : uint16_t(0);
}

RLV_CHAIN void token_chain(V (&acc)[kTileRows][kTileVecs], const float* a, const float* b, uint32_t tokens) {
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
RLV_CHAIN void token_chain(V (&acc)[kTileRows][kTileVecs], const uint16_t* a, const uint16_t* b,
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

// Float32 elements of row p, columns [column, column+W) of a gradient panel in the layout of T.
inline V load_gradient(const float* panel, uint32_t p, uint32_t column, float) {
  return load(panel + size_t(p) * kPanel + column);
}
inline void store_gradient(float* panel, uint32_t p, uint32_t column, V v, float) {
  store(panel + size_t(p) * kPanel + column, v);
}
inline V load_gradient(const float* panel, uint32_t p, uint32_t column, uint16_t) {
  const float* from = panel + size_t(p / 2) * 2 * kPanel + column * 2 + p % 2;
  float f[W];
  for (int i = 0; i < W; i++) f[i] = from[2 * i];
  return load(f);
}
inline void store_gradient(float* panel, uint32_t p, uint32_t column, V v, uint16_t) {
  float* to = panel + size_t(p / 2) * 2 * kPanel + column * 2 + p % 2;
  float f[W];
  store(f, v);
  for (int i = 0; i < W; i++) to[2 * i] = f[i];
}

// dw[panels][k][32] += dy[m][..]^T * x[m][k]: dy has `n` columns, `dw` the panels of all of them. Threads
// take (panel, tile of k); a tile's chain runs over all tokens before the next begins, in blocks that stay in
// cache.
template <class T>
inline void weight_gradient(Ctx& c, float* dw, const T* dy, size_t ldy, const T* x, size_t ldx, uint32_t m,
                            uint32_t n, uint32_t k) {
  const uint32_t panels = (n + kPanel - 1) / kPanel;
  const uint32_t tiles = (k + kTileRows - 1) / kTileRows;
  const uint32_t depth = Depth<T>::kWide == 2 ? (k + 1) / 2 * 2 : k;
  const uint64_t all = uint64_t(panels) * tiles;
  const uint64_t begin = all * c.tid / c.threads, end = all * (c.tid + 1) / c.threads;
  if (begin == end || m == 0) return;
  const uint32_t block = std::min(m, kTokenBlock);
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
      float* out = dw + size_t(panel) * kPanel * depth;
      const int rows = int(std::min<uint32_t>(kTileRows, k - t * kTileRows));
      for (uint32_t column = 0; column < kPanel; column += kTileCols) {
        V acc[kTileRows][kTileVecs];
        for (int r = 0; r < kTileRows; r++)
          for (int v = 0; v < kTileVecs; v++)
            acc[r][v] = r < rows
                            ? load_gradient(out, t * kTileRows + uint32_t(r), column + uint32_t(v * W), T())
                            : zero();
        token_chain(acc, a + t * tile_size, b + size_t(column) * Depth<T>::kWide, tokens);
        for (int r = 0; r < rows; r++)
          for (int v = 0; v < kTileVecs; v++)
            store_gradient(out, t * kTileRows + uint32_t(r), column + uint32_t(v * W), acc[r][v], T());
      }
    }
  }
}

}  // namespace RLV_ISA
}  // namespace rlv
