// Attention forward. q, o [rows][H][D], k, v [rows][K][D], H/K query heads share a kv head.
//
//   attn_fwd     units (segment, kv head), balanced over threads by query-key pairs. Keys of the cached
//   prefix, the
//                ancestors and the segment are packed once per unit (slots 0, 1); tiles of 8 query rows
//                (tokens times shared heads) take scores, softmax and weighted sum with a full row of weights
//                in scratch (slot 2).
//   attn_decode  threads take sequences or (sequence, kv head); pages are read in place, those that
//   neighbours
//                share once for a tile of them.
// o and lse are "=". Rows outside every segment are not written.
#include "attention.h"
#include "row_split.h"

namespace rlv {
namespace RLV_ISA {

namespace {

// What a tile of query rows needs: scores (float32) and weights (of type T) of every key, queries, results.
template <class T>
struct TileMemory {
  size_t ld;  // keys of a row
  float* scores;
  float* out;
  T* weights;
  T* q;
  TileMemory(Ctx& c, int slot, uint32_t keys, uint32_t padded) : ld(size_t(pages_of(keys)) * kPage) {
    const size_t rows = size_t(kQueryRows), row = ld + padded;
    scores = static_cast<float*>(c.local(slot, rows * row * (sizeof(float) + sizeof(T))));
    out = scores + rows * ld;
    weights = reinterpret_cast<T*>(out + rows * padded);
    q = weights + rows * ld;
  }
};

// One tile of R query rows, valid[r] keys each.
template <int R, class T, class Keys>
inline void attend(const TileMemory<T>& m, uint32_t padded, const uint32_t* valid, const Keys& keys,
                   uint32_t dim, float scale, float* lse) {
  uint32_t most = 0;
  for (int r = 0; r < R; r++) most = std::max(most, valid[r]);
  const uint32_t panels = pages_of(most);
  scores<R>(m.q, padded, dim, keys, 0, panels, scale, m.scores, m.ld);
  float factor[R];
  for (int r = 0; r < R; r++) {
    float top;
    const float l =
        softmax_row(m.scores + size_t(r) * m.ld, valid[r], panels, top, m.weights + size_t(r) * m.ld);
    factor[r] = 1.0f / l;
    lse[r] = float(double(top) + std::log(double(l)));
  }
  weighted_rows<R>(m.weights, m.ld, 0, most, keys, padded, factor, m.out, padded);
}

// body(std::integral_constant<int, rows>()) for 1 <= rows <= kQueryRows.
template <class F>
inline void with_rows(int rows, F&& body) {
  // clang-format off
  switch (rows) {
#define CASE(n) case n: return body(std::integral_constant<int, n>());
    CASE(1) CASE(2) CASE(3) CASE(4)
#if defined(__AVX2__)
    CASE(5) CASE(6) CASE(7) CASE(8)
#endif
#undef CASE
  }
  // clang-format on
}

template <class T, class Keys>
inline void attend_rows(int rows, const TileMemory<T>& m, uint32_t padded, const uint32_t* valid,
                        const Keys& keys, uint32_t dim, float scale, float* lse) {
  with_rows(rows, [&](auto r) { attend<decltype(r)::value>(m, padded, valid, keys, dim, scale, lse); });
}

struct Tile {
  uint32_t valid[8];
  uint32_t token[8], head[8];
  float lse[8];
  int rows = 0;
};

template <class T>
void forward(Ctx& c, const args::AttnFwd& a) {
  const auto* segs = static_cast<const Segment*>(a.segs);
  const auto* pages = static_cast<const uint32_t*>(a.pages);
  const char* message;
  uint32_t which;
  if (!segments_valid(segs, a.n_segs, a.rows, pages, a.n_pages, a.kv ? a.kv_pages : 0, message, which)) {
    if (c.tid == 0) c.fail(message, which);
    return;
  }
  const T* q = static_cast<const T*>(a.q);
  const T* k = static_cast<const T*>(a.k);
  const T* v = static_cast<const T*>(a.v);
  const T* kv = static_cast<const T*>(a.kv);
  T* o = static_cast<T*>(a.o);
  float* lse = static_cast<float*>(a.lse);
  const uint32_t D = a.head_dim, K = a.kv_heads, H = a.heads, rep = H / K, padded = padded_dim(D);
  uint64_t total = 0;
  for (uint32_t s = 0; s < a.n_segs; s++) total += pairs_of(segs[s]) * K;
  const uint64_t first = total * c.tid / c.threads, last = total * (c.tid + 1) / c.threads;

  uint64_t before = 0;
  for (uint32_t s = 0; s < a.n_segs; s++) {
    const Segment& g = segs[s];
    const uint64_t cost = pairs_of(g);
    for (uint32_t h = 0; h < K; h++, before += cost) {
      // A unit belongs to the thread in whose share it begins.
      if (g.len == 0 || before < first || before >= last) continue;
      const uint32_t n = g.pos0 + g.len;
      const Segment& root = segs[g.root];
      T* panels = static_cast<T*>(c.local(0, panel_bytes<T>(n, D)));
      T* rows = static_cast<T*>(c.local(1, row_bytes<T>(n, padded)));
      // Rows of K and V by position; those of the cached prefix are copied out of its pages.
      const T** k_rows =
          static_cast<const T**>(c.local(3, 2 * n * sizeof(T*) + size_t(root.cached_len) * D * sizeof(T)));
      const T** v_rows = k_rows + n;
      T* copies = reinterpret_cast<T*>(v_rows + n);
      const size_t page_size = size_t(K) * D * 2 * kPage;
      const PagedKeys<T> cached{kv, pages + root.page_start, page_size, size_t(h) * D * 2 * kPage,
                                D,  root.cached_len};
      uint32_t j = 0;
      for (; j < root.cached_len; j++, copies += D) {
        const T* lane = cached.page(j / kPage) + j % kPage;
        for (uint32_t d = 0; d < D; d++) copies[d] = lane[size_t(d) * kPage];
        k_rows[j] = copies;
        v_rows[j] = cached.values(j / kPage).from + size_t(j % kPage) * D;
      }
      Lineage line;
      line.walk(segs, s);
      for (uint32_t i = 0; i < line.count; i++) {
        const Segment& part = segs[line.index[i]];
        for (uint32_t t = part.start; t < part.start + part.len; t++, j++) {
          k_rows[j] = k + (size_t(t) * K + h) * D;
          v_rows[j] = v + (size_t(t) * K + h) * D;
        }
      }
      pack_panels(k_rows, n, D, panels);
      pack_rows(v_rows, n, D, padded, rows);
      const PackedKeys<T> keys{panels, rows, D, padded};
      const TileMemory<T> memory(c, 2, n, padded);
      Tile tile;
      auto flush = [&] {
        if (tile.rows == 0) return;
        attend_rows(tile.rows, memory, padded, tile.valid, keys, D, a.scale, tile.lse);
        for (int r = 0; r < tile.rows; r++) {
          const size_t row = size_t(tile.token[r]) * H + tile.head[r];
          for (uint32_t d = 0; d < D; d += W)
            store_part(o + row * D + d, load(memory.out + size_t(r) * padded + d),
                       int(std::min<uint32_t>(W, D - d)));
          if (lse) lse[row] = tile.lse[r];
        }
        tile.rows = 0;
      };
      for (uint32_t i = 0; i < g.len; i++)
        for (uint32_t r = 0; r < rep; r++) {
          const int at = tile.rows++;
          tile.token[at] = g.start + i;
          tile.head[at] = h * rep + r;
          tile.valid[at] = g.pos0 + i + 1;
          pack_row(q + (size_t(tile.token[at]) * H + tile.head[at]) * D, D, padded,
                   memory.q + size_t(at) * padded);
          if (tile.rows == kQueryRows) flush();
        }
      flush();
    }
  }
}

// The operands of attn_decode, checked.
template <class T>
struct Decoding {
  const args::AttnDecode& a;
  const T* q = static_cast<const T*>(a.q);
  T* o = static_cast<T*>(a.o);
  const uint32_t* table = static_cast<const uint32_t*>(a.table);
  const uint32_t* lens = static_cast<const uint32_t*>(a.lens);
  const uint32_t dim = a.head_dim, rep = a.heads / a.kv_heads, padded = padded_dim(dim);

  const uint32_t* pages(uint32_t b) const { return table + size_t(b) * a.max_pages; }
  PagedKeys<T> keys(uint32_t b, uint32_t h, uint32_t count) const {
    const size_t per_head = size_t(dim) * 2 * kPage;
    return {static_cast<const T*>(a.kv), pages(b), per_head * a.kv_heads, h * per_head, dim, count};
  }
  size_t row(uint32_t b, uint32_t head) const { return (size_t(b) * a.heads + head) * dim; }

  // Full pages that sequence b has in common with the one before it, `most` at most.
  uint32_t shared_pages(uint32_t b, uint32_t most) const {
    most = std::min({most, lens[b] / kPage, lens[b - 1] / kPage});
    uint32_t n = 0;
    while (n < most && pages(b)[n] == pages(b - 1)[n]) n++;
    return n;
  }

  // Sequences [b, b + n) share `shared` pages; head h and `rows` query heads of each from `r0` on, together
  // at most kQueryRows rows.
  void attend(Ctx& c, uint32_t b, uint32_t n, uint32_t shared, uint32_t h, uint32_t r0, uint32_t rows) const {
    uint32_t longest = 0;
    for (uint32_t i = 0; i < n; i++) longest = std::max(longest, lens[b + i]);
    const TileMemory<T> m(c, 2, longest, padded);
    const uint32_t head = h * rep + r0;
    for (uint32_t i = 0; i < n; i++)
      for (uint32_t r = 0; r < rows; r++)
        pack_row(q + row(b + i, head + r), dim, padded, m.q + size_t(i * rows + r) * padded);
    if (shared > 0)
      with_rows(int(n * rows), [&](auto all) {
        scores<decltype(all)::value>(m.q, padded, dim, keys(b, h, shared * kPage), 0, shared, a.scale,
                                     m.scores, m.ld);
      });
    with_rows(int(rows), [&](auto own) {
      constexpr int R = decltype(own)::value;
      for (uint32_t i = 0; i < n; i++)
        scores<R>(m.q + size_t(i) * R * padded, padded, dim, keys(b + i, h, lens[b + i]), shared,
                  pages_of(lens[b + i]), a.scale, m.scores + size_t(i) * R * m.ld, m.ld);
    });
    float factor[kQueryRows];
    for (uint32_t i = 0; i < n * rows; i++) {
      const uint32_t valid = lens[b + i / rows];
      float top;
      factor[i] = 1.0f / softmax_row(m.scores + i * m.ld, valid, pages_of(valid), top, m.weights + i * m.ld);
    }
    if (shared > 0)
      with_rows(int(n * rows), [&](auto all) {
        weighted_rows<decltype(all)::value>(m.weights, m.ld, 0, shared * kPage, keys(b, h, shared * kPage),
                                            padded, nullptr, m.out, padded);
      });
    with_rows(int(rows), [&](auto own) {
      constexpr int R = decltype(own)::value;
      for (uint32_t i = 0; i < n; i++)
        weighted_rows<R>(m.weights + size_t(i) * R * m.ld, m.ld, shared * kPage, lens[b + i],
                         keys(b + i, h, lens[b + i]), padded, factor + i * R, m.out + size_t(i) * R * padded,
                         padded);
    });
    for (uint32_t i = 0; i < n; i++)
      for (uint32_t r = 0; r < rows; r++)
        for (uint32_t d = 0; d < dim; d += W)
          store_part(o + row(b + i, head + r) + d, load(m.out + size_t(i * rows + r) * padded + d),
                     int(std::min<uint32_t>(W, dim - d)));
  }
};

template <class T>
void decode(Ctx& c, const args::AttnDecode& a) {
  const Decoding<T> x{a};
  for (uint32_t b = 0; b < a.batch; b++) {
    const bool fits = x.lens[b] > 0 && pages_of(x.lens[b]) <= a.max_pages;
    if (!fits) {
      if (c.tid == 0) c.fail("attn_decode: length does not fit the page table", b);
      return;
    }
    for (uint32_t p = 0; p < pages_of(x.lens[b]); p++)
      if (x.pages(b)[p] >= a.kv_pages) {
        if (c.tid == 0) c.fail("attn_decode: page outside the store", x.pages(b)[p]);
        return;
      }
  }
  const uint32_t K = a.kv_heads;
  Range mine = split(a.batch * K, c);
  if (row_split(c.threads, a)) {
    const Range rows = split(a.batch, c);
    mine = {rows.begin * K, rows.end * K};
  }
  // Sequences side by side in a tile, if they share pages.
  const uint32_t most = std::max(1u, uint32_t(kQueryRows) / x.rep);
  for (uint32_t b = mine.begin / K; b * K < mine.end;) {
    uint32_t n = 1, shared = b + 1 < a.batch && most > 1 ? x.shared_pages(b + 1, RLV_NONE) : 0;
    // All heads of a sequence must be this thread's for it to share a tile.
    const bool whole = b * K >= mine.begin;
    while (whole && shared > 0 && n < most && (b + n + 1) * K <= mine.end) {
      const uint32_t with_next = x.shared_pages(b + n, shared);
      if (with_next < shared) break;
      n++;
    }
    if (n == 1) shared = 0;
    for (uint32_t h = 0; h < K; h++) {
      const uint32_t unit = b * K + h;
      if (n == 1 && (unit < mine.begin || unit >= mine.end)) continue;
      for (uint32_t r0 = 0; r0 < x.rep; r0 += kQueryRows)
        x.attend(c, b, n, shared, h, r0, std::min<uint32_t>(kQueryRows, x.rep - r0));
    }
    b += n;
  }
}

}  // namespace

void attn_fwd(Ctx& c, const args::AttnFwd& a) {
  if (a.kv_heads == 0 || a.heads % a.kv_heads != 0) {
    if (c.tid == 0) c.fail("attn_fwd: heads must be a multiple of kv heads", a.kv_heads);
    return;
  }
  a.dt == RLV_F32 ? forward<float>(c, a) : forward<uint16_t>(c, a);
}

void attn_decode(Ctx& c, const args::AttnDecode& a) {
  if (a.kv_heads == 0 || a.heads % a.kv_heads != 0) {
    if (c.tid == 0) c.fail("attn_decode: heads must be a multiple of kv heads", a.kv_heads);
    return;
  }
  a.dt == RLV_F32 ? decode<float>(c, a) : decode<uint16_t>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
