// Gradient norm, clipping and AdamW in float64; only what is stored between steps is rounded.
#pragma once
#include <cstdio>
#include <cstdlib>
#include "elementwise.h"
#include "random.h"

namespace rlv {
namespace ref {

struct ClipResult {
  float norm, coef;
  uint32_t nonfinite, reserved;
};

inline void sq_norm(const args::SqNorm& a, Errors& e) {
  if (a.slot >= a.slots) return e.fail("sq_norm: slot beyond the slots", a.slot);
  double sum = 0, lost = 0;  // compensated (Neumaier 1974): no block order to agree on
  for (size_t i = 0; i < a.n; i++) {
    const double square = read(a.g, RLV_F32, i) * read(a.g, RLV_F32, i), next = sum + square;
    lost += sum >= square ? (sum - next) + square : (square - next) + sum;
    sum = next;
  }
  static_cast<double*>(a.sums)[a.slot] = std::isfinite(sum) ? sum + lost : sum;
}

inline void clip_coef(const args::ClipCoef& a, Errors&) {
  double sum = 0;
  for (size_t s = 0; s < a.slots; s++) sum += static_cast<const double*>(a.sums)[s];
  const double norm = std::sqrt(sum);
  ClipResult result{float(norm), 1, 0, 0};
  if (a.max_norm > 0) result.coef = float(std::fmin(1, a.max_norm / (norm + 1e-6)));
  result.nonfinite = std::isfinite(result.norm) ? 0 : 1;
  std::memcpy(a.result, &result, sizeof result);
}

// The decimal that a float32 setting stands for, so that 1 - 0.999 is not 1 - 0.99900001287.
inline double decimal(float x) {
  char text[32];
  for (int digits = 1; digits <= 9; digits++) {
    std::snprintf(text, sizeof text, "%.*g", digits, double(x));
    if (std::strtof(text, nullptr) == x) break;
  }
  return std::strtod(text, nullptr);
}

// A bfloat16 moment takes one of its two neighbours with the probability of their nearness: 16 random bits
// are added below the kept half of the float32 value.
inline void write_moment(void* p, uint32_t dt, size_t i, double x, uint32_t word) {
  if (dt == RLV_BF16)
    static_cast<uint16_t*>(p)[i] = uint16_t((bits_of(float(x)) + (word >> 16)) >> 16);
  else
    write(p, dt, i, x);
}

// Loshchilov & Hutter 2019 as torch.optim.AdamW; nothing happens after a gradient that is not finite.
inline void adamw(const args::Adamw& a, Errors& e) {
  ClipResult clip;
  std::memcpy(&clip, a.result, sizeof clip);
  if (clip.nonfinite) return;
  if (a.wdt == RLV_BF16 && !a.lo) return e.fail("adamw: a bfloat16 parameter needs its remainder");
  const double beta1 = decimal(a.beta1), beta2 = decimal(a.beta2);
  for (size_t i = 0; i < a.n; i++) {
    uint16_t* high = static_cast<uint16_t*>(a.p);
    int16_t* lo = static_cast<int16_t*>(a.lo);
    double p = a.wdt == RLV_BF16 ? join(high[i], lo[i]) : read(a.p, RLV_F32, i);
    const double g = read(a.g, RLV_F32, i) * clip.coef;
    const double m = beta1 * read(a.m, a.mdt, i) + (1 - beta1) * g;
    const double v = beta2 * read(a.v, a.mdt, i) + (1 - beta2) * g * g;
    p *= 1 - double(a.lr) * a.weight_decay;
    p -= double(a.lr) / a.c1 * m / (std::sqrt(v) / std::sqrt(double(a.c2)) + a.eps);
    if (a.wdt == RLV_BF16) {
      const Split s = split(float(p));
      high[i] = s.high;
      lo[i] = s.lo;
    } else {
      write(a.p, RLV_F32, i, p);
    }
    write_moment(a.m, a.mdt, i, m, philox_word(a.seed, a.tensor, uint32_t(i), a.step, 0, 0));
    write_moment(a.v, a.mdt, i, v, philox_word(a.seed, a.tensor, uint32_t(i), a.step, 1, 0));
  }
}

}  // namespace ref
}  // namespace rlv
