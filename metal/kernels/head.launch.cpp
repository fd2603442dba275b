#include <algorithm>
#include "product.launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kRowsPerDispatch = 512;

// As in head.metal.
struct HeadChunk {
  uint32_t row0, rows, col0, cols, stride, accumulate;
};

std::string forward_variant(const Encoder& e, const char* name, uint32_t dt) {
  return std::string(name) + (e.direct() ? "_direct" : "") + suffix(dt);
}

}  // namespace

void launch_logprob_fwd(Encoder& e, const rlv_op_logprob_fwd& a) {
  for (uint32_t row0 = 0; row0 < a.rows; row0 += kRowsPerDispatch) {
    const uint32_t rows = std::min(kRowsPerDispatch, a.rows - row0);
    e.run("head", forward_variant(e, "logprob_tiles", a.dt),
          {groups_of(rows, kTile), groups_of(a.vocab, RLV_VOCAB_TILE)}, {kThreads}, &row0, sizeof row0);
    e.worked(2.0 * rows * a.vocab * a.cols);
  }
  e.barrier();
  e.run("head", "logprob_fwd", {groups_of(a.rows, 32)}, {32});
}

void launch_logprob_bwd(Encoder& e, const rlv_op_logprob_bwd& a) {
  for (uint32_t row0 = 0; row0 < a.rows; row0 += RLV_HEAD_ROW_CHUNK) {
    for (uint32_t col0 = 0; col0 < a.vocab; col0 += RLV_HEAD_VOCAB_CHUNK) {
      HeadChunk chunk;
      chunk.row0 = row0;
      chunk.rows = std::min(RLV_HEAD_ROW_CHUNK, a.rows - row0);
      chunk.col0 = col0;
      chunk.cols = std::min(RLV_HEAD_VOCAB_CHUNK, a.vocab - col0);
      chunk.stride = groups_of(chunk.cols, RLV_PANEL) * RLV_PANEL;
      chunk.accumulate = col0 > 0;
      e.run("head", forward_variant(e, "logprob_dz", a.dt),
            {groups_of(chunk.rows, kTile), groups_of(chunk.cols, kTile)}, {kThreads}, &chunk, sizeof chunk);
      e.barrier();
      if (a.dw.buffer != 0)
        e.run("head", std::string("logprob_dw") + suffix(a.dt),
              {groups_of(chunk.cols, kTile), groups_of(a.cols, kTile)}, {kThreads}, &chunk, sizeof chunk);
      e.run("head", std::string("logprob_dx") + suffix(a.dt),
            {groups_of(chunk.rows, kTile), groups_of(a.cols, kTile)}, {kThreads}, &chunk, sizeof chunk);
      e.barrier();
      e.worked(6.0 * chunk.rows * chunk.cols * a.cols);
    }
  }
  e.run("head", std::string("logprob_round") + suffix(a.dt), {groups_of(a.cols, kThreads), a.rows},
        {kThreads});
}

}  // namespace metal
}  // namespace rlv
