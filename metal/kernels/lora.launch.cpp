#include "product.launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kColumns = 16, kGradientRows = 16, kMaskThreads = 256;

}  // namespace

void launch_lora_fwd(Encoder& e, const rlv_op_lora_fwd& a) {
  const Skinny s(a.m, a.k);
  const uint32_t rows = s.fragments;
  const std::string types = std::to_string(rows) + suffix(a.dt);
  if (s.spans > 1)
    e.run("lora", "lora_u_spans" + types, {groups_of(a.r, kColumns), groups_of(a.m, rows * 8)}, {kThreads});
  else
    e.run("lora", "lora_u" + types, {groups_of(a.r, kColumns), groups_of(a.m, rows * 32)}, {kThreads});
  e.barrier();
  e.run("lora", "lora_y" + types, {groups_of(a.n, kTile), groups_of(a.m, rows * 8)}, {kThreads});
}

void launch_lora_bwd(Encoder& e, const rlv_op_lora_bwd& a) {
  const std::string type = suffix(a.dt);
  const uint32_t columns = groups_of(a.r, kColumns);
  const bool dx = a.dx.buffer != 0, da = a.da.buffer != 0, db = a.db.buffer != 0;
  const bool masks = db && a.routes.buffer != 0;
  const auto gradient_of_b = [&] {
    if (db) e.run("lora", "lora_db" + type, {columns, groups_of(a.n, kTile)}, {kThreads});
  };
  if (dx || da) e.run("lora", "lora_du" + type, {columns, groups_of(a.m, kTile)}, {kThreads});
  if (masks)
    e.run("lora", "lora_mask" + type, {groups_of(uint64_t(a.m) * a.r, kMaskThreads)}, {kMaskThreads});
  if (!masks) gradient_of_b();
  if (dx || da || masks) e.barrier();
  if (masks) gradient_of_b();
  if (dx) e.run("lora", "lora_dx" + type, {groups_of(a.k, kTile), groups_of(a.m, kGradientRows)}, {kThreads});
  if (da) e.run("lora", "lora_da" + type, {columns, groups_of(a.k, kTile)}, {kThreads});
}

}  // namespace metal
}  // namespace rlv
