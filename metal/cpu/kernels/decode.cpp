// A layer's fused operations while decoding: here as the kernels they stand for, one after the other. Fusing
// them saves a GPU dispatches; this device has none.
#include "../ctx.h"
#include "../vec.h"
#include "args.gen.hpp"

namespace rlv {
namespace RLV_ISA {

#define DECLARE(name, Struct) void name(Ctx&, const args::Struct&);
RLV_OPS(DECLARE)
#undef DECLARE

void norm_qkv(Ctx& c, const args::NormQkv& a) {
  rms_norm_fwd(c, {a.work, nullptr, a.h, nullptr, a.weight, a.m, a.cols, a.eps, a.dt});
  c.barrier();
  gemm_nt(c, {a.q, a.work, a.wq, a.bq, a.m, a.nq, a.cols, a.dt, a.dt, 0});
  gemm_nt(c, {a.k, a.work, a.wk, a.bk, a.m, a.nkv, a.cols, a.dt, a.dt, 0});
  gemm_nt(c, {a.v, a.work, a.wv, a.bv, a.m, a.nkv, a.cols, a.dt, a.dt, 0});
}

void rope_append(Ctx& c, const args::RopeAppend& a) {
  qk_norm_rope_fwd(
      c, {a.y, a.q, a.qweight, a.positions, a.rope, a.rows, a.heads, a.head_dim, a.max_pos, a.eps, a.dt});
  qk_norm_rope_fwd(c, {a.work, a.k, a.kweight, a.positions, a.rope, a.rows, a.kv_heads, a.head_dim, a.max_pos,
                       a.eps, a.dt});
  c.barrier();
  kv_append(c, {a.kv, a.work, a.v, a.slots, a.rows, a.kv_heads, a.head_dim, a.kv_pages, a.dt});
}

void linear_residual(Ctx& c, const args::LinearResidual& a) {
  gemm_nt(c, {a.work, a.x, a.w, nullptr, a.m, a.n, a.k, a.dt, a.dt, 0});
  c.barrier();
  add(c, {a.y, a.residual, a.work, a.m * a.n, a.dt});
}

void norm_swiglu(Ctx& c, const args::NormSwiglu& a) {
  char* x = static_cast<char*>(a.work);
  char* gate = x + size_t(a.m) * a.cols * size(a.dt);
  char* up = gate + size_t(a.m) * a.n * size(a.dt);
  rms_norm_fwd(c, {x, nullptr, a.h, nullptr, a.weight, a.m, a.cols, a.eps, a.dt});
  c.barrier();
  gemm_nt(c, {gate, x, a.wgate, nullptr, a.m, a.n, a.cols, a.dt, a.dt, 0});
  gemm_nt(c, {up, x, a.wup, nullptr, a.m, a.n, a.cols, a.dt, a.dt, 0});
  c.barrier();
  swiglu_fwd(c, {a.y, gate, up, a.m * a.n, a.dt});
}

}  // namespace RLV_ISA
}  // namespace rlv
