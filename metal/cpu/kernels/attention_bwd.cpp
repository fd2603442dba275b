// Attention backward over packed rows without cached prefix. With P from lse:
//   dP = dout*v^T, D = sum_d dout*o, dS = scale*P*(dP - D);  dq = dS*k,  dk = dS^T*q,  dv = P^T*dout
// Units (tree, kv head): a tree's dk and dv are summed in float32 in segment order, then query order, by one
// thread, so a shared prefix gets the fixed-order sum over what continues it. dq, dk, dv are "=". Scratch: 0
// key panels, 1 value panels, 2 key rows, 3 P and dS, 4 query tile, 5 a segment's dk and dv, 6 the tree's.
#include "attention.h"

namespace rlv {
namespace RLV_ISA {

namespace {

// Query rows of a tile: pairs of rows halve the work on what they share.
template <class T>
constexpr int kRows = W == 16 && sizeof(T) == 2 ? 16 : kQueryRows;

// to[j][d] += sum_r w_r[j]*x_r[d] for j < count: one chain over the tile's rows per element. w is
// [links][ld] and x [links][padded], both with kWide neighbouring rows of the tile side by side.
template <class T>
inline void add_outer(const T* w, size_t ld, uint32_t count, const T* x, uint32_t padded, float* to) {
  using L = Link<T>;
  constexpr int kLinks = kRows<T> / int(L::kWide);
  auto block = [&](uint32_t d, auto vecs) {
    constexpr int kVecs = decltype(vecs)::value;
    typename L::Vec xs[kLinks][kVecs];
    for (int i = 0; i < kLinks; i++)
      for (int v = 0; v < kVecs; v++)
        xs[i][v] = L::load(x + (size_t(i) * padded + d + size_t(v) * W) * L::kWide);
    for (uint32_t j = 0; j < count; j++) {
      float* at = to + size_t(j) * padded + d;
      V acc[kVecs];
      for (int v = 0; v < kVecs; v++) acc[v] = load(at + v * W);
#pragma GCC unroll 8
      for (int i = 0; i < kLinks; i++) {
        const typename L::Vec p = L::broadcast(w + (size_t(i) * ld + j) * L::kWide);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; v++) acc[v] = L::mac(acc[v], p, xs[i][v]);
      }
      for (int v = 0; v < kVecs; v++) store(at + v * W, acc[v]);
    }
  };
  uint32_t d = 0;
  for (; d + kDimVecs * W <= padded; d += kDimVecs * W) block(d, std::integral_constant<int, kDimVecs>());
  for (; d < padded; d += W) block(d, std::integral_constant<int, 1>());
}

// A tile of query rows: q and dout by row, and once more with neighbouring rows side by side for add_outer;
// P and dS the same way, dS also by row for dq. In float32 both ways are one.
template <class T>
struct Tile {
  static constexpr bool kPairs = sizeof(T) == 2;
  size_t ld;
  float *p32, *ds32, *dq;
  T *q, *dout, *q_sided, *dout_sided, *p, *ds, *ds_rows;
  Tile(Ctx& c, uint32_t panels, uint32_t padded) : ld(size_t(panels) * kPage) {
    const size_t n = kRows<T>, keys = n * ld, row = n * padded;
    p32 = static_cast<float*>(c.local(3, (2 * keys + row) * sizeof(float)));
    ds32 = p32 + keys;
    dq = ds32 + keys;
    q = static_cast<T*>(c.local(4, (4 * row + (kPairs ? 3 * keys : 0)) * sizeof(T)));
    dout = q + row;
    q_sided = kPairs ? dout + row : q;
    dout_sided = kPairs ? q_sided + row : dout;
    if constexpr (kPairs) {
      p = dout_sided + row;
      ds = p + keys;
      ds_rows = ds + keys;
    } else {
      p = p32;
      ds = ds_rows = ds32;
    }
  }
};

inline void side_by_side(const float*, float*, uint32_t) {}
inline void side_by_side(const uint16_t* rows, uint16_t* to, uint32_t padded) {
  for (int r = 0; r < kRows<uint16_t>; r += 2)
    for (uint32_t d = 0; d < padded; d += W)
      store_pairs(to + size_t(r) * padded + 2 * size_t(d),
                  join_pairs(rows + size_t(r) * padded + d, rows + size_t(r + 1) * padded + d, W));
}

// P = exp(s - lse) and dS = scale*P*(dP - D) of `keys` keys, from s in p32 and dP in ds32.
inline void weigh(Tile<float>& t, uint32_t keys, const float* lse, const float* delta, float scale) {
  for (int r = 0; r < kRows<float>; r++) {
    float *p = t.p32 + size_t(r) * t.ld, *d = t.ds32 + size_t(r) * t.ld;
    const V origin = set1(lse[r]), shift = set1(delta[r]), factor = set1(scale);
    for (uint32_t i = 0; i < keys; i += W) {
      const V e = vexp(sub(load(p + i), origin));
      store(p + i, e);
      store(d + i, mul(mul(e, sub(load(d + i), shift)), factor));
    }
  }
}
inline void weigh(Tile<uint16_t>& t, uint32_t keys, const float* lse, const float* delta, float scale) {
  const V factor = set1(scale);
  for (int r = 0; r < kRows<uint16_t>; r += 2) {
    const size_t at = size_t(r) * t.ld;
    for (uint32_t i = 0; i < keys; i += W) {
      V e[2], d[2];
      for (int h = 0; h < 2; h++) {
        const size_t from = at + size_t(h) * t.ld + i;
        e[h] = vexp(sub(load(t.p32 + from), set1(lse[r + h])));
        d[h] = mul(mul(e[h], sub(load(t.ds32 + from), set1(delta[r + h]))), factor);
        store_bf16(t.ds_rows + from, d[h]);
      }
      store_pairs(t.p + at + 2 * size_t(i), rounded_pairs(e[0], e[1]));
      store_pairs(t.ds + at + 2 * size_t(i), rounded_pairs(d[0], d[1]));
    }
  }
}

template <class T>
struct Backward {
  Ctx& c;
  const args::AttnBwd& a;
  const Segment* segs;
  const uint32_t D, K, H, rep, padded;

  Backward(Ctx& ctx, const args::AttnBwd& args)
      : c(ctx),
        a(args),
        segs(static_cast<const Segment*>(args.segs)),
        D(args.head_dim),
        K(args.kv_heads),
        H(args.heads),
        rep(args.heads / args.kv_heads),
        padded(padded_dim(args.head_dim)) {}

  const T* query(const void* base, uint32_t t, uint32_t head) const {
    return static_cast<const T*>(base) + (size_t(t) * H + head) * D;
  }
  const T* key(const void* base, uint32_t t, uint32_t h) const {
    return static_cast<const T*>(base) + (size_t(t) * K + h) * D;
  }

  // Segments [s0, s1) are one tree.
  void tree(uint32_t s0, uint32_t s1, uint32_t h) {
    size_t rows = 0;
    for (uint32_t s = s0; s < s1; s++) rows += segs[s].len;
    float* sum = static_cast<float*>(c.local(6, 2 * rows * padded * sizeof(float) + 64));
    std::memset(sum, 0, 2 * rows * padded * sizeof(float));
    float *dk = sum, *dv = sum + rows * padded;
    for (uint32_t s = s0; s < s1; s++)
      if (segs[s].len > 0) segment(s0, s, h, dk, dv);
    size_t at = 0;
    for (uint32_t s = s0; s < s1; s++)
      for (uint32_t i = 0; i < segs[s].len; i++, at++) {
        const size_t to = (size_t(segs[s].start + i) * K + h) * D;
        for (uint32_t d = 0; d < D; d += W) {
          const int n = int(std::min<uint32_t>(W, D - d));
          store_part(static_cast<T*>(a.dk) + to + d, load(dk + at * padded + d), n);
          store_part(static_cast<T*>(a.dv) + to + d, load(dv + at * padded + d), n);
        }
      }
  }

  void segment(uint32_t s0, uint32_t s, uint32_t h, float* tree_dk, float* tree_dv) {
    const Segment& g = segs[s];
    constexpr int kTile = kRows<T>;
    const uint32_t n = g.pos0 + g.len, panels = pages_of(n);
    T* kt = static_cast<T*>(c.local(0, panel_bytes<T>(n, D)));
    T* vt = static_cast<T*>(c.local(1, panel_bytes<T>(n, D)));
    T* kr = static_cast<T*>(c.local(2, row_bytes<T>(n, padded)));
    float* own =
        static_cast<float*>(c.local(5, 2 * size_t(n) * padded * sizeof(float) + 2 * size_t(n) * sizeof(T*)));
    std::memset(own, 0, 2 * size_t(n) * padded * sizeof(float));
    float *dk = own, *dv = own + size_t(n) * padded;
    const T** k_rows = reinterpret_cast<const T**>(dv + size_t(n) * padded);
    const T** v_rows = k_rows + n;
    Lineage line;
    line.walk(segs, s);
    uint32_t j = 0;
    for (uint32_t i = 0; i < line.count; i++) {
      const Segment& part = segs[line.index[i]];
      for (uint32_t t = part.start; t < part.start + part.len; t++, j++) {
        k_rows[j] = key(a.k, t, h);
        v_rows[j] = key(a.v, t, h);
      }
    }
    pack_panels(k_rows, n, D, kt);
    pack_panels(v_rows, n, D, vt);
    pack_rows(k_rows, n, D, padded, kr);
    const PackedKeys<T> keys{kt, kr, D, padded}, values{vt, kr, D, padded};

    Tile<T> tile(c, panels, padded);
    const uint32_t total = g.len * rep;
    for (uint32_t first = 0; first < total; first += kTile) {
      const int rows = int(std::min<uint32_t>(kTile, total - first));
      uint32_t valid[kTile] = {};
      float lse[kTile] = {}, delta[kTile] = {}, one[kTile];
      uint32_t most = 0;
      for (int r = 0; r < kTile; r++) {
        one[r] = 1.0f;
        T *q = tile.q + size_t(r) * padded, *dout = tile.dout + size_t(r) * padded;
        if (r >= rows) {
          std::memset(q, 0, padded * sizeof(T));
          std::memset(dout, 0, padded * sizeof(T));
          continue;
        }
        const uint32_t row = first + uint32_t(r), t = g.start + row / rep, head = h * rep + row % rep;
        valid[r] = g.pos0 + row / rep + 1;
        most = std::max(most, valid[r]);
        pack_row(query(a.q, t, head), D, padded, q);
        pack_row(query(a.dout, t, head), D, padded, dout);
        lse[r] = static_cast<const float*>(a.lse)[size_t(t) * H + head];
        V dot = zero();
        const T* o = query(a.o, t, head);
        for (uint32_t d = 0; d < D; d += W)
          dot = fma(load_as(dout + d), load_part(o + d, int(std::min<uint32_t>(W, D - d))), dot);
        delta[r] = hsum(dot);
      }
      side_by_side(tile.q, tile.q_sided, padded);
      side_by_side(tile.dout, tile.dout_sided, padded);
      const uint32_t used = pages_of(most);
      scores<kTile>(tile.q, padded, D, keys, 0, used, a.scale, tile.p32, tile.ld);
      scores<kTile>(tile.dout, padded, D, values, 0, used, 1.0f, tile.ds32, tile.ld);
      for (int r = 0; r < kTile; r++)
        for (uint32_t i = valid[r]; i < used * kPage; i++) tile.p32[size_t(r) * tile.ld + i] = kMasked;
      weigh(tile, used * kPage, lse, delta, a.scale);
      weighted_rows<kTile>(tile.ds_rows, tile.ld, 0, most, keys, padded, one, tile.dq, padded);
      add_outer(tile.p, tile.ld, most, tile.dout_sided, padded, dv);
      add_outer(tile.ds, tile.ld, most, tile.q_sided, padded, dk);
      for (int r = 0; r < rows; r++) {
        const uint32_t row = first + uint32_t(r), t = g.start + row / rep, head = h * rep + row % rep;
        T* to = static_cast<T*>(a.dq) + (size_t(t) * H + head) * D;
        for (uint32_t d = 0; d < D; d += W)
          store_part(to + d, load(tile.dq + size_t(r) * padded + d), int(std::min<uint32_t>(W, D - d)));
      }
    }
    // To the tree: the keys of each ancestor and of the segment itself.
    j = 0;
    for (uint32_t i = 0; i < line.count; i++) {
      size_t base = 0;
      for (uint32_t b = s0; b < line.index[i]; b++) base += segs[b].len;
      const uint32_t len = segs[line.index[i]].len;
      for (size_t e = 0; e < size_t(len) * padded; e += W) {
        float *to_k = tree_dk + base * padded + e, *to_v = tree_dv + base * padded + e;
        store(to_k, add(load(to_k), load(dk + size_t(j) * padded + e)));
        store(to_v, add(load(to_v), load(dv + size_t(j) * padded + e)));
      }
      j += len;
    }
  }
};

template <class T>
void clear_rows(Ctx& c, const args::AttnBwd& a) {
  const Range mine = split(a.rows, c);
  const size_t n = mine.end - mine.begin, q = size_t(a.heads) * a.head_dim,
               k = size_t(a.kv_heads) * a.head_dim;
  std::memset(static_cast<T*>(a.dq) + mine.begin * q, 0, n * q * sizeof(T));
  std::memset(static_cast<T*>(a.dk) + mine.begin * k, 0, n * k * sizeof(T));
  std::memset(static_cast<T*>(a.dv) + mine.begin * k, 0, n * k * sizeof(T));
}

template <class T>
void backward(Ctx& c, const args::AttnBwd& a) {
  const auto* segs = static_cast<const Segment*>(a.segs);
  const char* message;
  uint32_t which;
  if (!segments_valid(segs, a.n_segs, a.rows, nullptr, 0, 0, message, which)) {
    if (c.tid == 0) c.fail(message, which);
    return;
  }
  uint64_t covered = 0, total = 0;
  for (uint32_t s = 0; s < a.n_segs; s++) {
    covered += segs[s].len;
    total += pairs_of(segs[s]) * a.kv_heads;
  }
  if (covered != a.rows) {
    clear_rows<T>(c, a);
    c.barrier();
  }
  Backward<T> pass(c, a);
  const uint64_t first = total * c.tid / c.threads, last = total * (c.tid + 1) / c.threads;
  uint64_t before = 0;
  for (uint32_t s = 0; s < a.n_segs;) {
    uint32_t end = s;
    uint64_t cost = 0;
    while (end < a.n_segs && segs[end].root == segs[s].root) cost += pairs_of(segs[end++]);
    for (uint32_t h = 0; h < a.kv_heads; h++, before += cost)
      // The thread in whose share the middle of a unit lies takes it.
      if (before + cost / 2 >= first && before + cost / 2 < last) pass.tree(s, end, h);
    s = end;
  }
}

}  // namespace

void attn_bwd(Ctx& c, const args::AttnBwd& a) {
  if (a.kv_heads == 0 || a.heads % a.kv_heads != 0) {
    if (c.tid == 0) c.fail("attn_bwd: heads must be a multiple of kv heads", a.kv_heads);
    return;
  }
  a.dt == RLV_F32 ? backward<float>(c, a) : backward<uint16_t>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
