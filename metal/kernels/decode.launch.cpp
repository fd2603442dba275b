#include "product.launch.h"

namespace rlv {
namespace metal {

void launch_norm_qkv(Encoder& e, const rlv_op_norm_qkv& a) {
  const Skinny s(a.m, a.cols);
  const uint32_t tiles = groups_of(a.nq, s.columns) + 2 * groups_of(a.nkv, s.columns);
  e.run("decode", s.name("norm_qkv", suffix(a.dt)), {tiles, s.chunks}, {kThreads});
}

void launch_rope_append(Encoder& e, const rlv_op_rope_append& a) {
  if (a.head_dim % 2) return e.fail("qk_norm_rope_fwd: head_dim is odd", a.head_dim);
  e.run("decode", std::string("rope_append") + suffix(a.dt), {groups_of(a.heads + a.kv_heads, 4), a.rows},
        {kThreads});
}

void launch_linear_residual(Encoder& e, const rlv_op_linear_residual& a) {
  const Skinny s(a.m, a.k);
  e.run("decode", s.name("linear_residual", suffix(a.dt)), {groups_of(a.n, s.columns), s.chunks}, {kThreads});
}

void launch_norm_swiglu(Encoder& e, const rlv_op_norm_swiglu& a) {
  const Skinny s(a.m, a.cols);
  e.run("decode", s.name("norm_swiglu", suffix(a.dt)), {groups_of(a.n, s.columns), s.chunks}, {kThreads});
}

}  // namespace metal
}  // namespace rlv
