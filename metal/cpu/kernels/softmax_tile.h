// Softmax over the vocabulary in tiles of 512 columns: what logprob_fwd and sample share, so that a
// log-probability recorded while sampling equals, bit for bit, the one that training computes.
#pragma once
#include <cmath>
#include <limits>
#include "../vec.h"

namespace rlv {
namespace RLV_ISA {

// Of z = logits*inv_temp over a tile: maximum, sum of exp(z - max), sum of exp(z - max)*(z - max).
struct TileSum {
  float max, sum, zsum;
};

// n <= 512. Lanes accumulate in column order and fold as a fixed tree. NaN anywhere gives sum NaN.
inline TileSum tile_sum(const float* logits, uint32_t n, float inv_temp) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const V inv = set1(inv_temp);
  auto z_at = [&](uint32_t i) {
    const int count = n - i < uint32_t(W) ? int(n - i) : W;
    if (count == W) return mul(load(logits + i), inv);
    float z[W];
    for (int j = 0; j < W; j++) z[j] = j < count ? logits[i + uint32_t(j)] * inv_temp : kNone;
    return load(z);
  };
  V m = set1(kNone);
  for (uint32_t i = 0; i < n; i += W) m = vmax(m, z_at(i));
  const float max = hmax(m);  // -inf: all columns are, or NaN hides it; then the sum tells
  const V origin = set1(max == kNone ? 0.0f : max);
  // A column of -inf has weight exactly 0; its z must not turn the product into NaN.
  const V lowest = set1(-std::numeric_limits<float>::max());
  V sum = zero(), zsum = zero();
  for (uint32_t i = 0; i < n; i += W) {
    const V z = sub(z_at(i), origin);
    const V p = vexp(z);
    sum = add(sum, p);
    zsum = fma(p, vmax(lowest, z), zsum);
  }
  return {max, hsum(sum), hsum(zsum)};
}

inline TileSum merge(const TileSum& a, const TileSum& b) {
  const float max = a.max > b.max ? a.max : b.max;
  double sum = 0, zsum = 0;
  for (const TileSum& t : {a, b}) {
    const double shift = double(t.max) - double(max);
    const double scale = t.max == max ? 1.0 : std::exp(shift);
    sum += double(t.sum) * scale;
    zsum += t.max == max ? double(t.zsum)
            : scale == 0 ? 0.0
                         : (double(t.zsum) + shift * double(t.sum)) * scale;
  }
  return {max, float(sum), float(zsum)};
}

inline float lse_of(const TileSum& t) { return float(double(t.max) + std::log(double(t.sum))); }

// H = lse - sum p*z = log(sum) - zsum/sum, nats.
inline float entropy_of(const TileSum& t) {
  return float(std::log(double(t.sum)) - double(t.zsum) / double(t.sum));
}

}  // namespace RLV_ISA
}  // namespace rlv
