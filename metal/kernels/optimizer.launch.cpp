#include <algorithm>
#include <cmath>
#include "launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kThreads = 256, kMaxGroups = 1u << 16, kPerThread = 4;

// As in optimizer.metal.
struct Adam {
  float decay, beta1, rest1, beta2, rest2, rate, root_c2, eps;
};

// The decimal a float32 setting was written as: the shortest that rounds to it. 1 - beta would otherwise
// magnify the rounding of the parameter (1 - 0.999f is 1.3e-5 off).
double decimal_of(float x) {
  for (double scale = 1; scale <= 1e9; scale *= 10) {
    const double decimal = std::nearbyint(double(x) * scale) / scale;
    if (float(decimal) == x) return decimal;
  }
  return x;
}

}  // namespace

void launch_sq_norm(Encoder& e, const rlv_op_sq_norm& a) {
  if (a.slot >= a.slots) return e.fail("sq_norm: slot beyond the slots", a.slot);
  e.run("optimizer", "square_blocks", {groups_of(a.n, RLV_NORM_BLOCK)}, {kThreads});
  e.barrier();
  e.run("optimizer", "square_sum", {1}, {32});
}

void launch_clip_coef(Encoder& e, const rlv_op_clip_coef&) { e.run("optimizer", "clip_coef", {1}, {32}); }

void launch_adamw(Encoder& e, const rlv_op_adamw& a) {
  if (a.wdt == RLV_BF16 && a.lo.buffer == 0)
    return e.fail("adamw: a bfloat16 parameter needs its remainder", 0);
  const double beta1 = decimal_of(a.beta1), beta2 = decimal_of(a.beta2);
  const Adam k{float(1.0 - double(a.lr) * a.weight_decay),
               float(beta1),
               float(1.0 - beta1),
               float(beta2),
               float(1.0 - beta2),
               float(double(a.lr) / a.c1),
               float(std::sqrt(double(a.c2))),
               a.eps};
  const uint32_t groups = std::min(groups_of(a.n, kThreads * kPerThread), kMaxGroups);
  e.run("optimizer", std::string("adamw") + suffix(a.wdt) + suffix(a.mdt), {groups}, {kThreads}, &k,
        sizeof k);
}

}  // namespace metal
}  // namespace rlv
