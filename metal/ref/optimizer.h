// Gradient norm, clipping and AdamW in float64; only what is stored between steps is rounded.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <vector>
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
    const double square = read(a.g, a.gdt, i) * read(a.g, a.gdt, i), next = sum + square;
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

// Moments of 8 bits (src/ops/optimizer.ts): c(j) has the float32 bits of 1 less j in the place of the third
// bit of the mantissa.
inline double moment_code(uint32_t j) { return float_of(0x3f800000u - (j << 20)); }
inline double moment8(const void* codes, const void* scales, size_t i, bool second) {
  const uint32_t code = static_cast<const uint8_t*>(codes)[i];
  const double scale = static_cast<const float*>(scales)[i / RLV_MOMENT_BLOCK];
  if (second) return code == 0 ? 0 : scale * moment_code(255 - code);
  const uint32_t k = code & 127;
  return k == 0 ? 0 : (code & 128 ? -1 : 1) * scale * moment_code(127 - k);
}

// Codes and scale of the block that begins at element `first`; 16 random bits choose between neighbours.
inline void write_moments8(const args::Adamw& a, std::vector<double> x, size_t first, bool second) {
  const double least_scale = std::ldexp(1, -90), largest_moment = std::ldexp(1, 126);
  const uint32_t top = second ? 255 : 127;
  uint8_t* codes = static_cast<uint8_t*>(second ? a.v : a.m) + first;
  double largest = 0;
  for (double& each : x) largest = std::fmax(largest, std::fabs(each = float(each)));
  float scale = float(std::fmin(largest, largest_moment));
  if (scale < least_scale) scale = second && scale > 0 ? float(least_scale) : 0;
  static_cast<float*>(second ? a.v_scale : a.m_scale)[first / RLV_MOMENT_BLOCK] = scale;
  for (size_t i = 0; i < x.size(); i++) {
    const uint32_t counter = uint32_t(first / 4 + i % 64), word = uint32_t(i / 64);
    const uint32_t random = philox_block(a.seed, a.tensor, counter, a.step, 2, 0).w[word];
    const uint32_t noise = second ? random & 0xffffu : random >> 16;
    const double part = scale > 0 ? std::fmin(std::fabs(x[i]) / scale, 1) : 0, least = moment_code(top - 1);
    uint32_t k;
    if (part < least)
      k = second ? x[i] > 0 : part / least * 65536 > noise + 0.5;
    else
      k = (bits_of(float(part)) + (noise << 4) + 8 - bits_of(float(least)) + (1u << 20)) >> 20;
    codes[i] = uint8_t(k | (k && x[i] < 0 ? 128 : 0));
  }
}

// Loshchilov & Hutter 2019 as torch.optim.AdamW; nothing happens after a gradient that is not finite.
inline void adamw(const args::Adamw& a, Errors& e) {
  ClipResult clip;
  std::memcpy(&clip, a.result, sizeof clip);
  if (clip.nonfinite) return;
  if (a.wdt == RLV_BF16 && !a.lo) return e.fail("adamw: a bfloat16 parameter needs its remainder");
  if (a.mdt == RLV_F8 && !(a.m_scale && a.v_scale)) return e.fail("adamw: 8-bit moments need their scales");
  std::vector<double> first, second;  // of the block
  const double beta1 = decimal(a.beta1), beta2 = decimal(a.beta2);
  for (size_t i = 0; i < a.n; i++) {
    uint16_t* high = static_cast<uint16_t*>(a.p);
    int16_t* lo = static_cast<int16_t*>(a.lo);
    double p = a.wdt == RLV_BF16 ? join(high[i], lo[i]) : read(a.p, RLV_F32, i);
    const double g = read(a.g, a.gdt, i) * clip.coef;
    const bool codes = a.mdt == RLV_F8;
    const double m_before = codes ? moment8(a.m, a.m_scale, i, false) : read(a.m, a.mdt, i);
    const double v_before = codes ? moment8(a.v, a.v_scale, i, true) : read(a.v, a.mdt, i);
    const double m = beta1 * m_before + (1 - beta1) * g;
    const double v = beta2 * v_before + (1 - beta2) * g * g;
    p *= 1 - double(a.lr) * a.weight_decay;
    p -= double(a.lr) / a.c1 * m / (std::sqrt(v) / std::sqrt(double(a.c2)) + a.eps);
    if (a.wdt == RLV_BF16) {
      const Split s = split(float(p));
      high[i] = s.high;
      lo[i] = s.lo;
    } else {
      write(a.p, RLV_F32, i, p);
    }
    if (codes) {
      first.push_back(m);
      second.push_back(v);
      if (first.size() < RLV_MOMENT_BLOCK && i + 1 < a.n) continue;
      write_moments8(a, first, i + 1 - first.size(), false);
      write_moments8(a, second, i + 1 - second.size(), true);
      first.clear();
      second.clear();
      continue;
    }
    write_moment(a.m, a.mdt, i, m, philox_word(a.seed, a.tensor, uint32_t(i), a.step, 0, 0));
    write_moment(a.v, a.mdt, i, v, philox_word(a.seed, a.tensor, uint32_t(i), a.step, 1, 0));
  }
}

}  // namespace ref
}  // namespace rlv
