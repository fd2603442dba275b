#include <algorithm>
#include "launch.h"

namespace rlv {
namespace metal {

namespace {
// A thread has four elements.
constexpr uint32_t kThreads = 256, kElements = 4 * kThreads, kMaxGroups = 1u << 16;
}  // namespace

void launch_dropout(Encoder& e, const rlv_op_dropout& a) {
  e.run("dropout", std::string("dropout") + suffix(a.dt), {std::min(groups_of(a.n, kElements), kMaxGroups)},
        {kThreads});
}

}  // namespace metal
}  // namespace rlv
