#include "launch.h"

namespace rlv {
namespace metal {

namespace {
constexpr uint32_t kRowsPerGroup = 8, kRowThreads = 256, kRopeRows = 4, kBlockThreads = 256,
                   kColumnThreads = 128, kLargestHead = 512;
}

void launch_rms_norm_fwd(Encoder& e, const rlv_op_rms_norm_fwd& a) {
  if (a.delta.buffer != 0 && a.h.buffer == 0) return e.fail("rms_norm_fwd: delta without h", 0);
  e.run("norm", std::string("rms_norm_fwd") + suffix(a.dt), {groups_of(a.rows, kRowsPerGroup)},
        {kRowThreads});
}

void launch_rms_norm_bwd(Encoder& e, const rlv_op_rms_norm_bwd& a) {
  if (a.dweight.buffer == 0)
    return e.run("norm", std::string("rms_norm_bwd") + suffix(a.dt), {groups_of(a.rows, kRowsPerGroup)},
                 {kRowThreads});
  if (a.partial.buffer == 0) return e.fail("rms_norm_bwd: dweight without partial", 0);
  e.run("norm", std::string("rms_norm_bwd_block") + suffix(a.dt), {groups_of(a.rows, RLV_ROW_BLOCK)},
        {kBlockThreads});
  e.barrier();
  e.run("norm", "rms_norm_dweight", {groups_of(a.cols, kColumnThreads)}, {kColumnThreads});
}

void launch_qk_norm_rope_fwd(Encoder& e, const rlv_op_qk_norm_rope_fwd& a) {
  if (a.head_dim % 2) return e.fail("qk_norm_rope_fwd: head_dim is odd", a.head_dim);
  e.run("norm", std::string("qk_norm_rope_fwd") + suffix(a.dt),
        {groups_of(a.heads, kRowsPerGroup), groups_of(a.rows, kRopeRows)}, {kRowThreads});
}

void launch_qk_norm_rope_bwd(Encoder& e, const rlv_op_qk_norm_rope_bwd& a) {
  if (a.head_dim % 2) return e.fail("qk_norm_rope_bwd: head_dim is odd", a.head_dim);
  if (a.head_dim > kLargestHead) return e.fail("qk_norm_rope_bwd: head_dim beyond 512", a.head_dim);
  if (a.weight.buffer == 0 || a.dweight.buffer == 0)
    return e.run("norm", std::string("qk_norm_rope_bwd") + suffix(a.dt),
                 {groups_of(a.heads, kRowsPerGroup), groups_of(a.rows, kRopeRows)}, {kRowThreads});
  if (a.partial.buffer == 0) return e.fail("qk_norm_rope_bwd: dweight without partial", 0);
  e.run("norm", std::string("qk_norm_rope_bwd_block") + suffix(a.dt), {groups_of(a.rows, RLV_ROW_BLOCK)},
        {kBlockThreads});
  e.barrier();
  e.run("norm", "qk_norm_rope_dweight", {groups_of(a.head_dim, kColumnThreads)}, {kColumnThreads});
}

}  // namespace metal
}  // namespace rlv
