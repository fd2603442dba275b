// A layer's fused operations while decoding, each as the operations it stands for: what lies between them is
// rounded to the storage type.
#pragma once
#include "attention.h"
#include "gemm.h"
#include "mlp.h"
#include "norm.h"

namespace rlv {
namespace ref {

// Runs a forward operation in float64 and stores its outputs.
template <class Op, class Args>
void run_forward(const Args& a, Errors& e) {
  const Fields fields = Op::fields(a);
  Values<double> v(fields);
  Op::run(a, v, e);
  for (size_t f = 0; f < fields.size(); f++)
    if (fields[f].role == Role::kOutput)
      for (size_t i = 0; i < fields[f].elements(); i++)
        write(fields[f].data, fields[f].dt, fields[f].stored(i), v[f][i]);
}

inline void norm_rows(void* y, const void* h, const void* weight, uint32_t rows, uint32_t cols, float eps,
                      uint32_t dt, Errors& e) {
  run_forward<RmsNormFwd>(args::RmsNormFwd{y, nullptr, h, nullptr, weight, rows, cols, eps, dt}, e);
}
inline void product(void* y, const void* x, const void* w, const void* bias, uint32_t m, uint32_t n,
                    uint32_t k, uint32_t dt, Errors& e) {
  run_forward<GemmNt>(args::GemmNt{y, x, w, bias, m, n, k, dt, dt, 0}, e);
}

inline void norm_qkv(const args::NormQkv& a, Errors& e) {
  norm_rows(a.work, a.h, a.weight, a.m, a.cols, a.eps, a.dt, e);
  product(a.q, a.work, a.wq, a.bq, a.m, a.nq, a.cols, a.dt, e);
  product(a.k, a.work, a.wk, a.bk, a.m, a.nkv, a.cols, a.dt, e);
  product(a.v, a.work, a.wv, a.bv, a.m, a.nkv, a.cols, a.dt, e);
}

inline void rope_append(const args::RopeAppend& a, Errors& e) {
  run_forward<QkNormRopeFwd>(args::QkNormRopeFwd{a.y, a.q, a.qweight, a.positions, a.rope, a.rows, a.heads,
                                                 a.head_dim, a.max_pos, a.eps, a.dt},
                             e);
  run_forward<QkNormRopeFwd>(args::QkNormRopeFwd{a.work, a.k, a.kweight, a.positions, a.rope, a.rows,
                                                 a.kv_heads, a.head_dim, a.max_pos, a.eps, a.dt},
                             e);
  if (e.first.empty())
    kv_append(args::KvAppend{a.kv, a.work, a.v, a.slots, a.rows, a.kv_heads, a.head_dim, a.kv_pages, a.dt},
              e);
}

inline void linear_residual(const args::LinearResidual& a, Errors& e) {
  product(a.work, a.x, a.w, nullptr, a.m, a.n, a.k, a.dt, e);
  for (size_t i = 0; i < size_t(a.m) * a.n; i++)
    write(a.y, a.dt, i, read(a.residual, a.dt, i) + read(a.work, a.dt, i));
}

inline void norm_swiglu(const args::NormSwiglu& a, Errors& e) {
  char* x = static_cast<char*>(a.work);
  char* gate = x + size_t(a.m) * a.cols * size(a.dt);
  char* up = gate + size_t(a.m) * a.n * size(a.dt);
  norm_rows(x, a.h, a.weight, a.m, a.cols, a.eps, a.dt, e);
  product(gate, x, a.wgate, nullptr, a.m, a.n, a.cols, a.dt, e);
  product(up, x, a.wup, nullptr, a.m, a.n, a.cols, a.dt, e);
  run_forward<SwigluFwd>(args::SwigluFwd{a.y, gate, up, uint32_t(size_t(a.m) * a.n), a.dt}, e);
}

}  // namespace ref
}  // namespace rlv
