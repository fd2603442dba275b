// Attention backward over packed rows without cached prefix. With P from lse:
//   dP = dout*v^T, D = sum_d dout*o, dS = scale*P*(dP - D);  dq = dS*k,  dk = dS^T*q,  dv = P^T*dout
// Units (tree, kv head): a tree's dk and dv are summed in float32 in segment order, then query order, by one
// thread, so a shared prefix gets the fixed-order sum over what continues it. dq, dk, dv are "=". Scratch: 0
// key panels, 1 value panels, 2 key rows, 3 P and dS, 4 query tile, 5 a segment's dk and dv, 6 the tree's.
#include "attention.h"

namespace rlv {
namespace RLV_ISA {

namespace {

// to[j][d] += sum_r w[r][j]*x[r][d] for j < count: one chain over the tile's rows per element.
inline void add_outer(const float* w, size_t ldw, int rows, uint32_t count, const float* x, uint32_t padded,
                      float* to) {
  for (uint32_t d = 0; d < padded; d += kDimVecs * W) {
    const int vecs = d + W < padded ? kDimVecs : 1;
    V xs[kQueryRows][kDimVecs];
    for (int r = 0; r < kQueryRows; r++)
      for (int v = 0; v < kDimVecs; v++)
        xs[r][v] = r < rows && v < vecs ? load(x + size_t(r) * padded + d + v * W) : zero();
    if (vecs == kDimVecs) {
      for (uint32_t j = 0; j < count; j++) {
        float* at = to + size_t(j) * padded + d;
        V acc[kDimVecs];
        for (int v = 0; v < kDimVecs; v++) acc[v] = load(at + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < kQueryRows; r++) {
          const V p = set1(w[size_t(r) * ldw + j]);
          for (int v = 0; v < kDimVecs; v++) acc[v] = fma(p, xs[r][v], acc[v]);
        }
        for (int v = 0; v < kDimVecs; v++) store(at + v * W, acc[v]);
      }
    } else {
      for (uint32_t j = 0; j < count; j++) {
        float* at = to + size_t(j) * padded + d;
        V acc = load(at);
        for (int r = 0; r < kQueryRows; r++) acc = fma(set1(w[size_t(r) * ldw + j]), xs[r][0], acc);
        store(at, acc);
      }
    }
  }
}

struct RowKeys {
  const float* rows;
  uint32_t padded;
  const float* values(uint32_t j) const { return rows + size_t(j) * padded; }
};

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
    const uint32_t n = g.pos0 + g.len, panels = pages_of(n);
    float* kt = static_cast<float*>(c.local(0, size_t(panels) * kPage * D * sizeof(float)));
    float* vt = static_cast<float*>(c.local(1, size_t(panels) * kPage * D * sizeof(float)));
    float* kr = static_cast<float*>(c.local(2, size_t(n) * padded * sizeof(float)));
    float* own = static_cast<float*>(c.local(5, 2 * size_t(n) * padded * sizeof(float)));
    std::memset(own, 0, 2 * size_t(n) * padded * sizeof(float));
    float *dk = own, *dv = own + size_t(n) * padded;
    Lineage line;
    line.walk(segs, s);
    uint32_t j = 0;
    for (uint32_t i = 0; i < line.count; i++) {
      const Segment& part = segs[line.index[i]];
      for (uint32_t t = part.start; t < part.start + part.len; t++, j++) {
        pack_key(key(a.k, t, h), D, j, kt);
        pack_key(key(a.v, t, h), D, j, vt);
        pack_row(key(a.k, t, h), D, padded, kr + size_t(j) * padded);
      }
    }
    clear_tail(kt, D, n);
    clear_tail(vt, D, n);

    const size_t ld = size_t(panels) * kPage;
    float* p = static_cast<float*>(c.local(3, 2 * ld * kQueryRows * sizeof(float)));
    float* ds = p + ld * kQueryRows;
    float* q = static_cast<float*>(c.local(4, 3 * size_t(padded) * kQueryRows * sizeof(float)));
    float *dout = q + size_t(padded) * kQueryRows, *dq = dout + size_t(padded) * kQueryRows;
    const uint32_t total = g.len * rep;
    for (uint32_t first = 0; first < total; first += kQueryRows) {
      const int rows = int(std::min<uint32_t>(kQueryRows, total - first));
      uint32_t valid[kQueryRows] = {};
      float lse[kQueryRows] = {}, delta[kQueryRows] = {}, one[kQueryRows];
      uint32_t most = 0;
      for (int r = 0; r < kQueryRows; r++) {
        one[r] = 1.0f;
        if (r >= rows) {
          std::memset(q + size_t(r) * padded, 0, padded * sizeof(float));
          std::memset(dout + size_t(r) * padded, 0, padded * sizeof(float));
          continue;
        }
        const uint32_t row = first + uint32_t(r), t = g.start + row / rep, head = h * rep + row % rep;
        valid[r] = g.pos0 + row / rep + 1;
        most = std::max(most, valid[r]);
        pack_row(query(a.q, t, head), D, padded, q + size_t(r) * padded);
        pack_row(query(a.dout, t, head), D, padded, dout + size_t(r) * padded);
        lse[r] = static_cast<const float*>(a.lse)[size_t(t) * H + head];
        V dot = zero();
        const T* o = query(a.o, t, head);
        for (uint32_t d = 0; d < D; d += W)
          dot = fma(load(dout + size_t(r) * padded + d), load_part(o + d, int(std::min<uint32_t>(W, D - d))),
                    dot);
        delta[r] = hsum(dot);
      }
      const uint32_t used = pages_of(most);
      const PackedKeys keys{kt, kr, D, padded}, values{vt, kr, D, padded};
      scores<kQueryRows>(q, padded, D, keys, used, a.scale, p, ld);
      scores<kQueryRows>(dout, padded, D, values, used, 1.0f, ds, ld);
      for (int r = 0; r < kQueryRows; r++) {
        float *pr = p + size_t(r) * ld, *dr = ds + size_t(r) * ld;
        for (uint32_t i = valid[r]; i < used * kPage; i++) pr[i] = kMasked;
        const V origin = set1(lse[r]), shift = set1(delta[r]), scale = set1(a.scale);
        for (uint32_t i = 0; i < used * kPage; i += W) {
          const V e = vexp(sub(load(pr + i), origin));
          store(pr + i, e);
          store(dr + i, mul(mul(e, sub(load(dr + i), shift)), scale));
        }
      }
      weighted_rows<kQueryRows>(ds, ld, most, RowKeys{kr, padded}, padded, one, dq, padded);
      add_outer(p, ld, rows, most, dout, padded, dv);
      add_outer(ds, ld, rows, most, q, padded, dk);
      for (int r = 0; r < rows; r++) {
        const uint32_t row = first + uint32_t(r), t = g.start + row / rep, head = h * rep + row % rep;
        T* to = static_cast<T*>(a.dq) + (size_t(t) * H + head) * D;
        for (uint32_t d = 0; d < D; d += W)
          store_part(to + d, load(dq + size_t(r) * padded + d), int(std::min<uint32_t>(W, D - d)));
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
