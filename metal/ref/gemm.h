// y[m,n] (+)= x[m,k] * w[n,k]^T + bias[n].
#pragma once
#include "value.h"

namespace rlv {
namespace ref {

struct GemmNt {
  static Fields fields(const args::GemmNt& a) {
    return {output(a.y, a.ydt, size_t(a.m) * a.n), input(a.x, a.dt, size_t(a.m) * a.k),
            weight(a.w, a.dt, a.n, a.k), input(a.bias, RLV_F32, a.n)};
  }
  template <class T>
  static void run(const args::GemmNt& a, Values<T>& v, Errors&) {
    T* y = v[0];
    const T *x = v[1], *w = v[2], *bias = v[3];
    for (size_t i = 0; i < a.m; i++)
      for (size_t j = 0; j < a.n; j++) {
        T sum = dot(x + i * a.k, w + j * a.k, a.k);
        if (bias) sum += bias[j];
        if (a.accumulate) sum += y[i * a.n + j];
        y[i * a.n + j] = sum;
      }
  }
};

}  // namespace ref
}  // namespace rlv
