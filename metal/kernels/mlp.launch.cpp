#include <algorithm>
#include "launch.h"

namespace rlv {
namespace metal {

namespace {
constexpr uint32_t kThreads = 256, kEach = 4, kMaxGroups = 1u << 16;
Grid strided(uint32_t n) { return {std::min(groups_of(n, kThreads * kEach), kMaxGroups)}; }
}  // namespace

void launch_swiglu_fwd(Encoder& e, const rlv_op_swiglu_fwd& a) {
  e.run("mlp", std::string("swiglu_fwd") + suffix(a.dt), strided(a.n), {kThreads});
}

void launch_swiglu_bwd(Encoder& e, const rlv_op_swiglu_bwd& a) {
  e.run("mlp", std::string("swiglu_bwd") + suffix(a.dt), strided(a.n), {kThreads});
}

}  // namespace metal
}  // namespace rlv
