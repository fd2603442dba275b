#include <algorithm>
#include "core/adam.h"
#include "launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kThreads = 256, kMaxGroups = 1u << 16, kPerThread = 4;

}  // namespace

void launch_sq_norm(Encoder& e, const rlv_op_sq_norm& a) {
  if (a.slot >= a.slots) return e.fail("sq_norm: slot beyond the slots", a.slot);
  e.run("optimizer", std::string("square_blocks") + suffix(a.gdt), {groups_of(a.n, RLV_NORM_BLOCK)},
        {kThreads});
  e.barrier();
  e.run("optimizer", "square_sum", {1}, {32});
}

void launch_clip_coef(Encoder& e, const rlv_op_clip_coef&) { e.run("optimizer", "clip_coef", {1}, {32}); }

void launch_adamw(Encoder& e, const rlv_op_adamw& a) {
  if (a.wdt == RLV_BF16 && a.lo.buffer == 0)
    return e.fail("adamw: a bfloat16 parameter needs its remainder", 0);
  if (a.mdt == RLV_F8 && (a.m_scale.buffer == 0 || a.v_scale.buffer == 0))
    return e.fail("adamw: 8-bit moments need their scales", 0);
  const Adam k = adam_constants(a);
  const uint32_t groups = std::min(groups_of(a.n, kThreads * kPerThread), kMaxGroups);
  const std::string stored = std::string(suffix(a.wdt)) + suffix(a.gdt);
  if (a.mdt == RLV_F8)
    e.run("optimizer", "adamw_blocks" + stored, {groups}, {kThreads}, &k, sizeof k);
  else
    e.run("optimizer", "adamw" + stored + suffix(a.mdt), {groups}, {kThreads}, &k, sizeof k);
}

}  // namespace metal
}  // namespace rlv
