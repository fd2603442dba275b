#include "launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kThreads = 128, kColumns = 16, kTile = 64, kGradientRows = 16;

// Fragments of 8 rows of a simdgroup.
uint32_t fragments(uint32_t m) {
  uint32_t rows = 1;
  while (rows < 8 && rows * 8 < m) rows *= 2;
  return rows;
}

}  // namespace

void launch_lora_fwd(Encoder& e, const rlv_op_lora_fwd& a) {
  const uint32_t rows = fragments(a.m);
  const std::string types = std::to_string(rows) + suffix(a.dt);
  // As in gemm_tile.h: spans_of(k).
  if (a.k >= 512)
    e.run("lora", "lora_u_spans" + types, {groups_of(a.r, kColumns), groups_of(a.m, rows * 8)}, {kThreads});
  else
    e.run("lora", "lora_u" + types, {groups_of(a.r, kColumns), groups_of(a.m, rows * 32)}, {kThreads});
  e.barrier();
  e.run("lora", "lora_y" + types, {groups_of(a.n, kTile), groups_of(a.m, rows * 8)}, {kThreads});
}

void launch_lora_bwd(Encoder& e, const rlv_op_lora_bwd& a) {
  const std::string type = suffix(a.dt);
  const uint32_t columns = groups_of(a.r, kColumns);
  const bool dx = a.dx.buffer != 0, da = a.da.buffer != 0;
  if (dx || da) e.run("lora", "lora_du" + type, {columns, groups_of(a.m, kTile)}, {kThreads});
  if (a.db.buffer != 0) e.run("lora", "lora_db" + type, {columns, groups_of(a.n, kTile)}, {kThreads});
  if (dx || da) e.barrier();
  if (dx) e.run("lora", "lora_dx" + type, {groups_of(a.k, kTile), groups_of(a.m, kGradientRows)}, {kThreads});
  if (da) e.run("lora", "lora_da" + type, {columns, groups_of(a.k, kTile)}, {kThreads});
}

}  // namespace metal
}  // namespace rlv
