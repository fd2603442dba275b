#include "launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kTile = 64, kThreads = 128, kSkinnyRows = 64;

std::string variant(const Encoder& e, const char* name) {
  return std::string(name) + (e.direct() ? "_direct" : "");
}

// Fragments of 8 rows, a power of two.
uint32_t row_fragments(uint32_t m) {
  uint32_t fragments = 1;
  while (fragments * 8 < m) fragments *= 2;
  return fragments;
}

// Tiles of a result, along its shorter side first: tile_at of gemm.metal.
Grid tiles(uint32_t rows, uint32_t cols) {
  const uint32_t r = groups_of(rows, kTile), c = groups_of(cols, kTile);
  return rows <= cols ? Grid{r, c} : Grid{c, r};
}

}  // namespace

void launch_gemm_nt(Encoder& e, const rlv_op_gemm_nt& a) {
  const std::string types = std::string(suffix(a.dt)) + suffix(a.ydt);
  if (a.m <= kSkinnyRows) {
    // As in gemm_tile.h: spans_of(k).
    const uint32_t spans = a.k >= 512 ? 4 : 1;
    const std::string name =
        "gemm_nt_skinny" + std::to_string(row_fragments(a.m)) + "_" + std::to_string(spans) + types;
    const uint32_t groups = a.m == 0 ? 0 : groups_of(a.n, kTile / spans);
    return e.run("gemm", name, {groups}, {kThreads});
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
