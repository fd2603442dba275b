#include "product.launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kColumns = 256, kRowsAGroup = 4;

std::string typed(const char* name, uint32_t qt) {
  return std::string(name) + (qt == RLV_NF4 ? "_nf4" : "_int8");
}

bool whole_blocks(Encoder& e, uint32_t qt, uint32_t k, const char* message) {
  if (qt != RLV_NF4 || k % RLV_QUANT_BLOCK == 0) return true;
  e.fail(message, k);
  return false;
}

}  // namespace

void launch_quant_linear(Encoder& e, const rlv_op_quant_linear& a) {
  if (!whole_blocks(e, a.qt, a.k, "quant_linear: nf4 needs k in blocks of 64")) return;
  const std::string types = std::string(suffix(a.dt)) + suffix(a.ydt);
  if (a.m > kSkinnyRows)
    return e.run("quant", typed("quant_linear", a.qt) + types, tiles(a.m, a.n), {kThreads});
  const Skinny s(a.m, a.k);
  e.run("quant", s.name(typed("quant_skinny", a.qt), types), {groups_of(a.n, s.columns), s.chunks},
        {kThreads});
}

void launch_quant_linear_bwd(Encoder& e, const rlv_op_quant_linear_bwd& a) {
  if (!whole_blocks(e, a.qt, a.k, "quant_linear_bwd: nf4 needs k in blocks of 64")) return;
  e.run("quant", typed("quant_linear_bwd", a.qt) + suffix(a.dt), tiles(a.m, a.k), {kThreads});
}

void launch_quant_embed(Encoder& e, const rlv_op_quant_embed& a) {
  if (!whole_blocks(e, a.qt, a.cols, "quant_embed: nf4 needs columns in blocks of 64")) return;
  e.run("quant", typed("quant_embed", a.qt) + suffix(a.dt), {groups_of(a.cols, kColumns), a.rows},
        {kColumns});
}

void launch_quantize_weight(Encoder& e, const rlv_op_quantize_weight& a) {
  if (!whole_blocks(e, a.qt, a.k, "quantize_weight: nf4 needs k in blocks of 64")) return;
  const uint32_t rows = groups_of(a.n, RLV_PANEL) * (RLV_PANEL / kRowsAGroup);
  const std::string name = typed("quantize", a.qt) + suffix(a.sdt);
  if (a.qt == RLV_INT8) return e.run("quant", name, {rows}, {kThreads});
  e.run("quant", name, {a.k / RLV_QUANT_BLOCK, rows}, {kThreads});
}

void launch_dequantize_weight(Encoder& e, const rlv_op_dequantize_weight& a) {
  if (!whole_blocks(e, a.qt, a.k, "dequantize_weight: nf4 needs k in blocks of 64")) return;
  e.run("quant", typed("dequantize", a.qt), {groups_of(a.k, kColumns), a.n}, {kColumns});
}

}  // namespace metal
}  // namespace rlv
