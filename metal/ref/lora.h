// u[m,r] = scale * (x[m,k] * a[r,k]^T), rounded; y[m,n] = base[m,n] + u * b[n,r]^T.
#pragma once
#include "value.h"

namespace rlv {
namespace ref {

struct LoraFwd {
  static Fields fields(const args::LoraFwd& a) {
    return {output(a.y, a.dt, size_t(a.m) * a.n),
            output(a.u, a.dt, size_t(a.m) * a.r),
            input(a.base, a.dt, size_t(a.m) * a.n),
            input(a.x, a.dt, size_t(a.m) * a.k),
            weight(a.a, a.dt, a.r, a.k),
            weight(a.b, a.dt, a.n, a.r)};
  }
  template <class T>
  static void run(const args::LoraFwd& a, Values<T>& v, Errors&) {
    T *y = v[0], *u = v[1];
    const T *base = v[2], *x = v[3], *down = v[4], *up = v[5];
    const T scale = double(a.scale);
    for (size_t i = 0; i < a.m; i++) {
      for (size_t j = 0; j < a.r; j++)
        u[i * a.r + j] = round_to(a.dt, scale * dot(x + i * a.k, down + j * a.k, a.k));
      for (size_t j = 0; j < a.n; j++)
        y[i * a.n + j] = base[i * a.n + j] + dot<T>(u + i * a.r, up + j * a.r, a.r);
    }
  }
};

}  // namespace ref
}  // namespace rlv
