// A layer's fused operations while decoding, with the bits of the single ones. Threads take rows of their own
// where the weights are small (row_split.h), panels of outputs otherwise.
#include "gemm.h"
#include "lanes.h"

namespace rlv {
namespace RLV_ISA {

#define DECLARE(name, Struct) void name(Ctx&, const args::Struct&);
RLV_OPS(DECLARE)
#undef DECLARE

namespace {

// A value as it would be stored and read again.
inline V rounded(V v, float) { return v; }
inline V rounded(V v, uint16_t) {
  uint16_t stored[W];
  store_bf16(stored, v);
  return load_bf16(stored);
}

template <class T>
void add_product(Ctx& c, const args::LinearResidual& a) {
  const T* residual = static_cast<const T*>(a.residual);
  T* y = static_cast<T*>(a.y);
  product(c, static_cast<const T*>(a.x), static_cast<const T*>(a.w), a.m, a.n, a.k,
          [&](uint32_t row, uint32_t column, V value, int count) {
            const size_t at = size_t(row) * a.n + column;
            store_part(y + at, add(load_part(residual + at, count), rounded(value, T())), count);
          });
}

// Both products of a tile one after the other: the gate waits in `gates` for its neighbour.
template <class T>
void gated_product(Ctx& c, const args::NormSwiglu& a, const T* x) {
  const T* gate = static_cast<const T*>(a.wgate);
  const T* up = static_cast<const T*>(a.wup);
  T* y = static_cast<T*>(a.y);
  const size_t per_panel = panel_elements<T>(a.cols);
  const Schedule schedule(c, a.m, (a.n + kPanel - 1) / kPanel, per_panel * sizeof(T), true);
  const SpacedRows<T> rows_of_x(c, x, a.m, a.cols);
  schedule.run(c, [&](uint32_t panel, uint32_t r0, uint32_t rows) {
    alignas(64) float gates[kMostRows * kPanel];
    const T* from = rows_of_x.at(r0);
    rows_product(rows, from, rows_of_x.ld, gate + panel * per_panel, a.cols,
                 [&](int r, uint32_t column, V value) {
                   const V g = rounded(value, T());
                   store(gates + size_t(r) * kPanel + column, mul(g, sigmoid(g)));
                 });
    rows_product(rows, from, rows_of_x.ld, up + panel * per_panel, a.cols,
                 [&](int r, uint32_t column, V value) {
                   const uint32_t at = panel * kPanel + column;
                   if (at >= a.n) return;
                   const V silu = load(gates + size_t(r) * kPanel + column);
                   store_part(y + size_t(r0 + uint32_t(r)) * a.n + at, mul(silu, rounded(value, T())),
                              int(std::min<uint32_t>(W, a.n - at)));
                 });
  });
}

}  // namespace

void norm_qkv(Ctx& c, const args::NormQkv& a) {
  rms_norm_fwd(c, {a.work, nullptr, a.h, nullptr, a.weight, a.m, a.cols, a.eps, a.dt});
  if (!row_split(c.threads, a)) c.barrier();
  gemm_nt(c, {a.q, a.work, a.wq, a.bq, a.m, a.nq, a.cols, a.dt, a.dt, 0});
  gemm_nt(c, {a.k, a.work, a.wk, a.bk, a.m, a.nkv, a.cols, a.dt, a.dt, 0});
  gemm_nt(c, {a.v, a.work, a.wv, a.bv, a.m, a.nkv, a.cols, a.dt, a.dt, 0});
}

// Each thread rotates and appends the same rows.
void rope_append(Ctx& c, const args::RopeAppend& a) {
  qk_norm_rope_fwd(
      c, {a.y, a.q, a.qweight, a.positions, a.rope, a.rows, a.heads, a.head_dim, a.max_pos, a.eps, a.dt});
  qk_norm_rope_fwd(c, {a.work, a.k, a.kweight, a.positions, a.rope, a.rows, a.kv_heads, a.head_dim, a.max_pos,
                       a.eps, a.dt});
  kv_append(c, {a.kv, a.work, a.v, a.slots, a.rows, a.kv_heads, a.head_dim, a.kv_pages, a.dt});
}

void linear_residual(Ctx& c, const args::LinearResidual& a) {
  a.dt == RLV_F32 ? add_product<float>(c, a) : add_product<uint16_t>(c, a);
}

void norm_swiglu(Ctx& c, const args::NormSwiglu& a) {
  rms_norm_fwd(c, {a.work, nullptr, a.h, nullptr, a.weight, a.m, a.cols, a.eps, a.dt});
  if (!row_split(c.threads, a)) c.barrier();
  a.dt == RLV_F32 ? gated_product(c, a, static_cast<const float*>(a.work))
                  : gated_product(c, a, static_cast<const uint16_t*>(a.work));
}

}  // namespace RLV_ISA
}  // namespace rlv
