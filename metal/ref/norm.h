// RMSNorm with a fused residual; per-head RMSNorm with rotary embedding.
#pragma once
#include "value.h"

namespace rlv {
namespace ref {

template <class T>
T reciprocal_rms(const T* x, size_t n, double eps) {
  return 1.0 / std::sqrt(dot(x, x, n) / double(n) + eps);
}

// h = x + delta rounded to dt (h = x without delta); y = h / sqrt(mean(h^2) + eps) * weight.
struct RmsNormFwd {
  static Fields fields(const args::RmsNormFwd& a) {
    const size_t n = size_t(a.rows) * a.cols;
    return {output(a.y, a.dt, n), output(a.delta ? a.h : nullptr, a.dt, n), input(a.x, a.dt, n),
            input(a.delta, a.dt, n), input(a.weight, RLV_F32, a.cols)};
  }
  template <class T>
  static void run(const args::RmsNormFwd& a, Values<T>& v, Errors& e) {
    if (a.delta && !a.h) return e.fail("rms_norm_fwd: delta without h");
    T *y = v[0], *h = v[1];
    const T *x = v[2], *delta = v[3], *weight = v[4];
    std::vector<T> row(a.cols);
    for (size_t t = 0; t < a.rows; t++) {
      for (size_t i = 0; i < a.cols; i++) {
        const size_t at = t * a.cols + i;
        row[i] = delta ? T(round_to(a.dt, x[at] + delta[at])) : x[at];
        if (h) h[at] = row[i];
      }
      const T r = reciprocal_rms(row.data(), a.cols, a.eps);
      for (size_t i = 0; i < a.cols; i++) y[t * a.cols + i] = row[i] * r * weight[i];
    }
  }
};

// Per head: n = x / sqrt(mean(x^2) + eps) * weight (x without weight), then with the angles of the position
// y[i] = n[i]*cos_i - n[i+D/2]*sin_i,  y[i+D/2] = n[i+D/2]*cos_i + n[i]*sin_i  (Su et al. 2021).
struct QkNormRopeFwd {
  static Fields fields(const args::QkNormRopeFwd& a) {
    const size_t n = size_t(a.rows) * a.heads * a.head_dim;
    return {output(a.y, a.dt, n), input(a.x, a.dt, n), input(a.weight, RLV_F32, a.head_dim), other(),
            input(a.rope, RLV_F32, size_t(a.max_pos) * a.head_dim)};
  }
  template <class T>
  static void run(const args::QkNormRopeFwd& a, Values<T>& v, Errors& e) {
    if (a.head_dim % 2) return e.fail("qk_norm_rope_fwd: head_dim is odd", a.head_dim);
    const uint32_t* positions = static_cast<const uint32_t*>(a.positions);
    const size_t dim = a.head_dim, half = dim / 2;
    std::vector<T> n(dim);
    for (size_t t = 0; t < a.rows; t++) {
      if (positions[t] >= a.max_pos) {
        e.fail("qk_norm_rope_fwd: position beyond max_pos", positions[t]);
        continue;
      }
      const T* cosine = v[4] + positions[t] * dim;
      const T* sine = cosine + half;
      for (size_t head = 0; head < a.heads; head++) {
        const T* x = v[1] + (t * a.heads + head) * dim;
        T* y = v[0] + (t * a.heads + head) * dim;
        const T r = v[2] ? reciprocal_rms(x, dim, a.eps) : T(1);
        for (size_t i = 0; i < dim; i++) n[i] = v[2] ? x[i] * r * v[2][i] : x[i];
        for (size_t i = 0; i < half; i++) {
          y[i] = n[i] * cosine[i] - n[i + half] * sine[i];
          y[i + half] = n[i + half] * cosine[i] + n[i] * sine[i];
        }
      }
    }
  }
};

}  // namespace ref
}  // namespace rlv
