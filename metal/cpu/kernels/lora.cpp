// Low-rank adapters. A thread has rows of its own and goes through both products of a row tile at once, so
// the forward pass waits for nobody; gradients of the adapters are divided by columns.
//
//   lora_fwd   u = scale*(x*a^T), rounded; y = base + u*b^T
//   lora_bwd   du = scale*(dy*b), rounded; dx (+)= du*a; da += du^T*x; db += dy^T*u, both without skipped
//   rows
//
// Columns of u from `split` on have a scale, and rows to skip, of their own.
//
// r is small beside a panel of 32: products with r outputs compute the vectors that hold some (few_columns),
// and gradients have the long dimension in vectors and r in registers (narrow_gradient).
#include "gemm.h"

namespace rlv {
namespace RLV_ISA {

namespace {

// Row tiles of which every thread gets equally many as long as there are rows.
RowTiles tiles_for(const Ctx& c, uint32_t m) {
  RowTiles rows(m);
  rows.count = std::min(m, (rows.count + c.threads - 1) / c.threads * c.threads);
  return rows;
}

// The scale of every column of u, in whole vectors.
template <class A>
const float* scales_of(Ctx& c, const A& p) {
  const uint32_t padded = (p.r + kPanel - 1) / kPanel * kPanel;
  float* scales = static_cast<float*>(c.local(5, padded * sizeof(float)));
  for (uint32_t j = 0; j < padded; j++) scales[j] = j < p.split ? p.scale : p.scale2;
  return scales;
}

// to[rows][r] = scales[r]*(from[rows][depth] * panels): one panel for every 32 of r.
template <class T>
inline void project(int rows, const T* from, const T* panels, uint32_t depth, uint32_t r, const float* scales,
                    T* to) {
  for (uint32_t j0 = 0; j0 < r; j0 += kPanel) {
    const uint32_t columns = std::min(kPanel, r - j0);
    few_columns(rows, from, depth, panels + j0 / kPanel * panel_elements<T>(depth), depth, columns,
                [&](int i, uint32_t column, V value) {
                  const int count = int(std::min<uint32_t>(W, columns - column));
                  store_part(to + size_t(i) * r + j0 + column, mul(load(scales + j0 + column), value), count);
                });
  }
}

// to[rows][width] = (base +) from[rows][r] * panels.
template <class T>
inline void expand(int rows, const T* from, uint32_t r, const T* panels, const T* base, uint32_t width,
                   T* to) {
  for (uint32_t n0 = 0; n0 < width; n0 += kPanel)
    panel_product(rows, from, r, panels + n0 / kPanel * panel_elements<T>(r), r, start_zero,
                  [&](int i, uint32_t column, V value) {
                    const uint32_t n = n0 + column;
                    if (n >= width) return;
                    const int count = int(std::min<uint32_t>(W, width - n));
                    const size_t at = size_t(i) * width + n;
                    if (base) value = add(load_part(base + at, count), value);
                    store_part(to + at, value, count);
                  });
}

template <class T>
void forward(Ctx& c, const args::LoraFwd& p) {
  const T *x = static_cast<const T*>(p.x), *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
  const T* base = static_cast<const T*>(p.base);
  T *y = static_cast<T*>(p.y), *u = static_cast<T*>(p.u);
  const float* scales = scales_of(c, p);
  const Range mine = split(p.m, c);
  const RowTiles rows(mine.end - mine.begin);
  for (uint32_t t = 0; t < rows.count; t++) {
    const size_t row = mine.begin + rows.begin(t);
    const int count = int(rows.size(t));
    project(count, x + row * p.k, a, p.k, p.r, scales, u + row * p.r);
    expand(count, u + row * p.r, p.r, b, base + row * p.n, p.n, y + row * p.n);
  }
}

// ---- gradients
// ----------------------------------------------------------------------------------------------

constexpr int kNarrow = W == 16 ? 8 : 4;  // rows of r in registers, and vectors of the long dimension
constexpr int kStrip = 3;

// Element (i, j) of a float32 gradient in the packed layout of T, for i < r and j in the long dimension: `of`
// gives the address of a j that is a multiple of W, the following j lie (kOne, kTwo, kTwo + kOne, 2*kTwo ...)
// beyond.
template <class T>
struct DownGradient {  // [r][k]
  static constexpr size_t kOne = Depth<T>::kWide == 2 ? 1 : kPanel, kTwo = 2 * kPanel;
  float* data;
  size_t depth;  // k, even for bfloat16
  float* of(uint32_t i, uint32_t j) const {
    const size_t panel = size_t(i / kPanel) * kPanel * depth;
    return data + panel + size_t(j) * kPanel + i % kPanel * Depth<T>::kWide;
  }
};
template <class T>
struct UpGradient {  // [n][r]
  static constexpr size_t kOne = Depth<T>::kWide, kTwo = 2 * kOne;
  float* data;
  size_t depth;  // r, even for bfloat16
  float* of(uint32_t i, uint32_t j) const {
    const size_t at = size_t(j / kPanel) * kPanel * depth + j % kPanel * Depth<T>::kWide;
    return data + at + i / Depth<T>::kWide * Depth<T>::kWide * kPanel + i % Depth<T>::kWide;
  }
};
template <class G>
inline V gather(const float* from, int count) {
  if (G::kOne == 1 && G::kTwo == 2) return load_part(from, count);
  float f[W] = {};
  for (int l = 0; l < count; l++) f[l] = from[l / 2 * G::kTwo + l % 2 * G::kOne];
  return load(f);
}
template <class G>
inline void scatter(float* to, V value, int count) {
  if (G::kOne == 1 && G::kTwo == 2) return store_part(to, value, count);
  float f[W];
  store(f, value);
  for (int l = 0; l < count; l++) to[l / 2 * G::kTwo + l % 2 * G::kOne] = f[l];
}

// Rows of a strip lie far apart: no prefetcher sees the next one coming.
constexpr uint32_t kAhead = 16;

// acc[i][v] += sum over tokens of narrow[t][i] * wide[t][v]. bfloat16: pairs of tokens, the narrow side as
// words.
template <int R, int NV>
inline void tokens(V (&acc)[R][NV], const float* narrow, size_t r, const float* wide, size_t ld, uint32_t m) {
  for (uint32_t t = 0; t < m; t++) {
    V b[NV];
    for (int v = 0; v < NV; v++) {
      b[v] = load(wide + t * ld + v * W);
      __builtin_prefetch(wide + (t + kAhead) * ld + v * W);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const V x = set1(narrow[t * r + i]);
#pragma GCC unroll 3
      for (int v = 0; v < NV; v++) acc[i][v] = fma(x, b[v], acc[i][v]);
    }
  }
}
template <int R, int NV>
inline void tokens(V (&acc)[R][NV], const uint32_t* narrow, size_t r, const uint16_t* wide, size_t ld,
                   uint32_t m) {
  static const uint16_t kNothing[kStrip * W] = {};
  for (uint32_t t = 0; t < m; t += 2) {
    const uint16_t* low = wide + t * ld;
    const uint16_t* high = t + 1 < m ? low + ld : kNothing;
    P b[NV];
    for (int v = 0; v < NV; v++) {
      b[v] = join_pairs(low + v * W, high + v * W);
      __builtin_prefetch(low + kAhead * ld + v * W);
      __builtin_prefetch(low + (kAhead + 1) * ld + v * W);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const P x = set1_pair(narrow[t / 2 * r + i]);
#pragma GCC unroll 3
      for (int v = 0; v < NV; v++) acc[i][v] = dot_pairs(acc[i][v], x, b[v]);
    }
  }
}

// What `tokens` broadcasts.
inline const float* broadcasts(Ctx&, const float* narrow, uint32_t, uint32_t) { return narrow; }
inline const uint32_t* broadcasts(Ctx& c, const uint16_t* narrow, uint32_t m, uint32_t r) {
  uint32_t* words = static_cast<uint32_t*>(c.local(2, size_t(m + 1) / 2 * r * sizeof(uint32_t)));
  for (uint32_t t = 0; t < m; t += 2) {
    const uint16_t *low = narrow + size_t(t) * r, *high = low + r;
    uint32_t* to = words + size_t(t / 2) * r;
    for (uint32_t i = 0; i < r; i++) to[i] = low[i] | (t + 1 < m ? uint32_t(high[i]) << 16 : 0u);
  }
  return words;
}

// Tokens of one pass: all rows of r go over them while they are in the second-level cache.
constexpr uint32_t kPass = 128;

// Where a strip of columns begins, how many its last vector has, and its sums between passes.
template <class G, class T>
struct Strip {
  G g;
  uint32_t j0;
  int last;
  const T* wide;
  size_t ld;
  float* sums;
};

template <int R, int NV, class G, class N, class T>
inline void pass(const Strip<G, T>& s, uint32_t i0, const N* narrow, uint32_t r, uint32_t t0, uint32_t count,
                 bool ends) {
  V acc[R][NV];
  float* sums = s.sums + size_t(i0) * NV * W;
  for (int i = 0; i < R; i++)
    for (int v = 0; v < NV; v++)
      acc[i][v] = t0 == 0
                      ? gather<G>(s.g.of(i0 + uint32_t(i), s.j0 + uint32_t(v * W)), v + 1 < NV ? W : s.last)
                      : load(sums + (i * NV + v) * W);
  tokens(acc, narrow + size_t(t0) / Depth<T>::kWide * r + i0, r, s.wide + t0 * s.ld, s.ld, count);
  for (int i = 0; i < R; i++)
    for (int v = 0; v < NV; v++)
      if (ends)
        scatter<G>(s.g.of(i0 + uint32_t(i), s.j0 + uint32_t(v * W)), acc[i][v], v + 1 < NV ? W : s.last);
      else
        store(sums + (i * NV + v) * W, acc[i][v]);
}

// A strip of NV vectors.
template <int NV, class G, class N, class T>
inline void strip(const Strip<G, T>& s, const N* narrow, uint32_t r, uint32_t m) {
  const uint32_t block = r <= uint32_t(kNarrow) ? m : kPass;
  for (uint32_t t0 = 0; t0 < m; t0 += block) {
    const uint32_t count = std::min(block, m - t0);
    for (uint32_t i0 = 0; i0 < r; i0 += kNarrow) {
      // clang-format off
      switch (std::min<uint32_t>(kNarrow, r - i0)) {
#define CASE(n) case n: pass<n, NV>(s, i0, narrow, r, t0, count, t0 + count == m); break;
        CASE(1) CASE(2) CASE(3) CASE(4)
#if defined(__AVX512F__)
        CASE(5) CASE(6) CASE(7) CASE(8)
#endif
#undef CASE
      }
      // clang-format on
    }
  }
}

// g(i, j) += sum over t of narrow[t][i] * wide[t][j]: one chain over t. Threads take columns j.
template <class G, class T>
void narrow_gradient(Ctx& c, const G& g, const T* narrow, uint32_t r, const T* wide, uint32_t width,
                     uint32_t m) {
  const Range mine = split_units(width, W, c);
  if (mine.begin == mine.end || m == 0) return;
  const auto* left = broadcasts(c, narrow, m, r);
  float* sums = static_cast<float*>(c.local(4, size_t(r) * kStrip * W * sizeof(float)));
  uint32_t j = mine.begin;
  while (mine.end - j >= uint32_t(W)) {
    const uint32_t vectors = (mine.end - j) / W;
    const uint32_t take = vectors == 4 ? 2 : std::min<uint32_t>(vectors, kStrip);
    const Strip<G, T> s{g, j, W, wide + j, width, sums};
    if (take == 3) strip<3>(s, left, r, m);
    if (take == 2) strip<2>(s, left, r, m);
    if (take == 1) strip<1>(s, left, r, m);
    j += take * W;
  }
  if (j == mine.end) return;
  // What is left of a vector, with zeros around it.
  const uint32_t count = mine.end - j;
  T* padded = static_cast<T*>(c.local(3, size_t(m) * W * sizeof(T)));
  std::memset(padded, 0, size_t(m) * W * sizeof(T));
  for (uint32_t t = 0; t < m; t++)
    std::memcpy(padded + size_t(t) * W, wide + size_t(t) * width + j, count * sizeof(T));
  strip<1>(Strip<G, T>{g, j, int(count), padded, W, sums}, left, r, m);
}

// to = from[rows][r], zero in the columns that a row skips.
template <class T>
inline void mask_rows(const args::LoraBwd& p, size_t row, int rows, const T* from, T* to) {
  const uint32_t* routes = static_cast<const uint32_t*>(p.routes);
  for (size_t i = row; i < row + size_t(rows); i++) {
    const bool first = (routes[i] & 1) != 0, second = (routes[i] & 2) != 0;
    const T* values = from + i * p.r;
    T* kept = to + i * p.r;
    for (uint32_t j = 0; j < p.r; j++) kept[j] = (j < p.split ? first : second) ? T(0) : values[j];
  }
}

template <class T>
void backward(Ctx& c, const args::LoraBwd& p) {
  const T *x = static_cast<const T*>(p.x), *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
  const T *dy = static_cast<const T*>(p.dy), *u = static_cast<const T*>(p.u);
  T *dx = static_cast<T*>(p.dx), *du = static_cast<T*>(p.du);
  // With routes, what the weights' gradients are made of.
  T* masked_u = p.routes ? static_cast<T*>(p.masked) : nullptr;
  T* masked_du = p.routes ? masked_u + size_t(p.m) * p.r : nullptr;
  const size_t wide = Depth<T>::kWide;
  const RowTiles rows = tiles_for(c, p.m);
  const Range mine = split(rows.count, c);
  if ((dx || p.da) && mine.begin < mine.end) {
    const float* scales = scales_of(c, p);
    T* bt = static_cast<T*>(c.local(0, panel_elements<T>(p.n) * ((p.r + kPanel - 1) / kPanel) * sizeof(T)));
    for (uint32_t j = 0; j < p.r; j += kPanel)
      transpose_panel(b, p.n, p.r, j, bt + j / kPanel * panel_elements<T>(p.n));
    T* at = nullptr;
    if (dx) {
      at = static_cast<T*>(c.local(1, panel_elements<T>(p.r) * ((p.k + kPanel - 1) / kPanel) * sizeof(T)));
      for (uint32_t j = 0; j < p.k; j += kPanel)
        transpose_panel(a, p.r, p.k, j, at + j / kPanel * panel_elements<T>(p.r));
    }
    for (uint32_t t = mine.begin; t < mine.end; t++) {
      const size_t row = rows.begin(t);
      const int count = int(rows.size(t));
      project(count, dy + row * p.n, bt, p.n, p.r, scales, du + row * p.r);
      if (masked_du && p.da) mask_rows(p, row, count, du, masked_du);
      T* to = dx + row * p.k;
      if (dx) expand(count, du + row * p.r, p.r, at, p.accumulate ? to : nullptr, p.k, to);
    }
  }
  if (masked_u && p.db)
    for (uint32_t t = mine.begin; t < mine.end; t++)
      mask_rows(p, rows.begin(t), int(rows.size(t)), u, masked_u);
  const bool waits = masked_u && p.db;
  if (waits) c.barrier();  // masked rows
  if (p.db) {
    const UpGradient<T> g{static_cast<float*>(p.db), (p.r + wide - 1) / wide * wide};
    narrow_gradient(c, g, masked_u ? static_cast<const T*>(masked_u) : u, p.r, dy, p.n, p.m);
  }
  if (!p.da) return;
  if (!waits) c.barrier();  // du of all rows
  const DownGradient<T> g{static_cast<float*>(p.da), (p.k + wide - 1) / wide * wide};
  narrow_gradient(c, g, static_cast<const T*>(masked_du ? masked_du : du), p.r, x, p.k, p.m);
}

}  // namespace

void lora_fwd(Ctx& c, const args::LoraFwd& a) {
  if (a.m == 0) return;
  a.dt == RLV_F32 ? forward<float>(c, a) : forward<uint16_t>(c, a);
}

void lora_bwd(Ctx& c, const args::LoraBwd& a) {
  if (a.m == 0) return;
  a.dt == RLV_F32 ? backward<float>(c, a) : backward<uint16_t>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
