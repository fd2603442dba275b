#include "product.launch.h"

namespace rlv {
namespace metal {

namespace {

std::string variant(const Encoder& e, const char* name) {
  return std::string(name) + (e.direct() ? "_direct" : "");
}

}  // namespace

void launch_gemm_nt(Encoder& e, const rlv_op_gemm_nt& a) {
  const std::string types = std::string(suffix(a.dt)) + suffix(a.ydt);
  if (a.m <= kSkinnyRows) {
    const Skinny s(a.m, a.k);
    return e.run("gemm", s.name("gemm_nt_skinny", types), {groups_of(a.n, s.columns), s.chunks}, {kThreads});
  }
  e.run("gemm", variant(e, "gemm_nt") + types, tiles(a.m, a.n), {kThreads});
}

void launch_gemm_nn(Encoder& e, const rlv_op_gemm_nn& a) {
  e.run("gemm", variant(e, "gemm_nn") + suffix(a.dt), tiles(a.m, a.k), {kThreads});
}

void launch_gemm_tn(Encoder& e, const rlv_op_gemm_tn& a) {
  if (a.gdt == RLV_BF16 && a.dt != RLV_BF16)
    return e.fail("gemm_tn: bfloat16 gradient of float32 weights", a.dt);
  e.run("gemm", variant(e, "gemm_tn") + suffix(a.dt) + suffix(a.gdt), tiles(a.k, a.n), {kThreads});
}

void launch_bias_bwd(Encoder& e, const rlv_op_bias_bwd& a) {
  e.run("gemm", std::string("bias_partial") + suffix(a.dt),
        {groups_of(a.n, kThreads), groups_of(a.m, RLV_ROW_BLOCK)}, {kThreads});
  e.barrier();
  e.run("gemm", "bias_bwd", {groups_of(a.n, kThreads)}, {kThreads});
}

}  // namespace metal
}  // namespace rlv
