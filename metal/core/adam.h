// Constants of one step of AdamW, computed in float64 and rounded once: the same on every device.
#pragma once
#include <cmath>

namespace rlv {

struct Adam {
  float decay, beta1, rest1, beta2, rest2, rate, root_c2, eps;
};

// Internal linkage: files that include this are compiled for different instruction sets.

// The decimal a float32 setting was written as: the shortest that rounds to it. 1 - beta would otherwise
// magnify the rounding of the parameter (1 - 0.999f is 1.3e-5 off).
static inline double decimal_of(float x) {
  for (double scale = 1; scale <= 1e9; scale *= 10) {
    const double decimal = std::nearbyint(double(x) * scale) / scale;
    if (float(decimal) == x) return decimal;
  }
  return x;
}

// Of the arguments of adamw, as the record or resolved.
template <class Args>
static inline Adam adam_constants(const Args& a) {
  const double beta1 = decimal_of(a.beta1), beta2 = decimal_of(a.beta2);
  return {float(1.0 - double(a.lr) * a.weight_decay),
          float(beta1),
          float(1.0 - beta1),
          float(beta2),
          float(1.0 - beta2),
          float(double(a.lr) / a.c1),
          float(std::sqrt(double(a.c2))),
          a.eps};
}

}  // namespace rlv
