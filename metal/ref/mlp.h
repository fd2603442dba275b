// y = silu(gate) * up.
#pragma once
#include "value.h"

namespace rlv {
namespace ref {

template <class T>
T sigmoid(const T& x) {
  if (real_part(x) >= 0) return 1.0 / (1.0 + std::exp(-x));
  const T e = std::exp(x);  // without overflow on this side
  return e / (1.0 + e);
}

struct SwigluFwd {
  static Fields fields(const args::SwigluFwd& a) {
    return {output(a.y, a.dt, a.n), input(a.gate, a.dt, a.n), input(a.up, a.dt, a.n)};
  }
  template <class T>
  static void run(const args::SwigluFwd& a, Values<T>& v, Errors&) {
    for (size_t i = 0; i < a.n; i++) v[0][i] = v[1][i] * sigmoid(v[1][i]) * v[2][i];
  }
};

}  // namespace ref
}  // namespace rlv
