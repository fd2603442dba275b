#include "launch.h"

namespace rlv {
namespace metal {

namespace {
constexpr uint32_t kThreads = 256, kTilesPerGroup = 8;
}

void launch_sample(Encoder& e, const rlv_op_sample& a) {
  if (a.vocab == 0) return e.fail("sample: empty vocabulary", 0);
  e.run("sample", "sample_tiles", {groups_of(groups_of(a.vocab, RLV_VOCAB_TILE), kTilesPerGroup), a.batch},
        {kThreads});
  e.barrier();
  e.run("sample", "sample", {a.batch}, {kThreads});
}

}  // namespace metal
}  // namespace rlv
