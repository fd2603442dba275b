// u[m,r] = scale * (x[m,k] * a[r,k]^T), rounded; y[m,n] = base[m,n] + u * b[n,r]^T. Where a row skips a
// column of u, the weights there are constants: their derivative is left out, what flows to x is whole.
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
            weight(a.b, a.dt, a.n, a.r),
            other()};
  }
  template <class T>
  static void run(const args::LoraFwd& a, Values<T>& v, Errors&) {
    T *y = v[0], *u = v[1];
    const T *base = v[2], *x = v[3], *down = v[4], *up = v[5];
    for (size_t i = 0; i < a.m; i++) {
      const uint32_t route = a.routes ? static_cast<const uint32_t*>(a.routes)[i] : 0;
      const auto skipped = [&](size_t j) { return (route >> (j < a.split ? 0 : 1) & 1) != 0; };
      const auto weight_of = [](bool constant, const T& w) { return constant ? T(real_part(w)) : w; };
      for (size_t j = 0; j < a.r; j++) {
        const T scale = double(j < a.split ? a.scale : a.scale2);
        T sum = 0;
        for (size_t c = 0; c < a.k; c++) sum += x[i * a.k + c] * weight_of(skipped(j), down[j * a.k + c]);
        u[i * a.r + j] = round_to(a.dt, scale * sum);
      }
      for (size_t j = 0; j < a.n; j++) {
        T sum = 0;
        for (size_t c = 0; c < a.r; c++) sum += u[i * a.r + c] * weight_of(skipped(c), up[j * a.r + c]);
        y[i * a.n + j] = base[i * a.n + j] + sum;
      }
    }
  }
};

}  // namespace ref
}  // namespace rlv
