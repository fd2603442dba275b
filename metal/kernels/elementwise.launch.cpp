#include <algorithm>
#include "launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kThreads = 256, kMaxGroups = 1u << 16;

// Groups for n elements, `each` of them a thread before it strides on.
Grid strided(uint64_t n, uint32_t each = 4) {
  const uint64_t groups = (n + uint64_t(kThreads) * each - 1) / (uint64_t(kThreads) * each);
  return {uint32_t(std::min<uint64_t>(groups, kMaxGroups))};
}

uint64_t packed_elements(uint64_t n, uint64_t k, uint32_t dt) {
  return (n + RLV_PANEL - 1) / RLV_PANEL * RLV_PANEL * (dt == RLV_BF16 ? (k + 1) / 2 * 2 : k);
}

std::string pair_name(const char* name, uint32_t from, uint32_t to) {
  return std::string(name) + suffix(from) + suffix(to);
}

}  // namespace

void launch_add(Encoder& e, const rlv_op_add& a) {
  e.run("elementwise", std::string("add") + suffix(a.dt), strided(a.n), {kThreads});
}

void launch_fill(Encoder& e, const rlv_op_fill& a) { e.run("elementwise", "fill", strided(a.n), {kThreads}); }

void launch_copy(Encoder& e, const rlv_op_copy& a) {
  e.run("elementwise", "copy", strided((uint64_t(a.n) + 15) / 16), {kThreads});
}

void launch_cast(Encoder& e, const rlv_op_cast& a) {
  e.run("elementwise", pair_name("cast", a.dt, a.ydt), strided(a.n), {kThreads});
}

void launch_pack_weight(Encoder& e, const rlv_op_pack_weight& a) {
  if (a.lo.buffer != 0 && a.dt != RLV_BF16) return e.fail("pack_weight: remainder of a float32 weight", 0);
  e.run("elementwise", pair_name("pack", a.dt, a.sdt), strided(packed_elements(a.n, a.k, a.dt)), {kThreads});
}

void launch_unpack_weight(Encoder& e, const rlv_op_unpack_weight& a) {
  if (a.lo.buffer != 0 && a.edt != RLV_BF16) return e.fail("unpack_weight: remainder of float32 elements", 0);
  e.run("elementwise", pair_name("unpack", a.edt, a.ddt), strided(packed_elements(a.n, a.k, a.dt)),
        {kThreads});
}

}  // namespace metal
}  // namespace rlv
