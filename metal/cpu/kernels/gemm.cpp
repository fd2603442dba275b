// Matrix products with packed weights. x, dy, dx row-major [m][.]; w packed panels of 32 outputs;
// accumulation in float32. Work split: (panel of 32 outputs, tile of rows) over threads by Schedule; results
// do not depend on it.
//
//   gemm_nt    y = x*w^T (+ bias) (+ y)     each output: chain over k, then + bias, then + y, rounded once
//   gemm_nn    dx = dy*w (+ dx)             chain over n; panels of w^T are made per thread (scratch 0)
//   gemm_tn    dw += dy^T*x                 chain over tokens from the value in dw, see gemm.h
//   bias_bwd   dbias += column sums of dy   blocks of 64 rows, then blocks in order
#include "gemm.h"

namespace rlv {
namespace RLV_ISA {

namespace {

// Rounds and stores count <= W values, adding to what is there if asked.
template <class T>
inline void put_vector(T* to, V value, int count, bool accumulate) {
  if (accumulate) value = add(value, load_part(to, count));
  store_part(to, value, count);
}

template <class T, class Y>
void product_nt(Ctx& c, const args::GemmNt& a) {
  const float* bias = static_cast<const float*>(a.bias);
  Y* y = static_cast<Y*>(a.y);
  product(c, static_cast<const T*>(a.x), static_cast<const T*>(a.w), a.m, a.n, a.k,
          [&](uint32_t row, uint32_t column, V value, int count) {
            if (bias) value = add(value, load_part(bias + column, count));
            put_vector(y + size_t(row) * a.n + column, value, count, a.accumulate != 0);
          });
}

template <class T>
void product_nn(Ctx& c, const args::GemmNn& a) {
  const T* dy = static_cast<const T*>(a.dy);
  const T* w = static_cast<const T*>(a.w);
  T* dx = static_cast<T*>(a.dx);
  const Schedule schedule(c, a.m, (a.k + kPanel - 1) / kPanel, panel_elements<T>(a.n) * sizeof(T));
  TransposedPanels<T> panels(c, 0, schedule, w, a.n, a.k);
  const SpacedRows<T> rows_of_dy(c, dy, a.m, a.n);
  schedule.run(c, [&](uint32_t panel, uint32_t r0, uint32_t rows) {
    const uint32_t k0 = panel * kPanel;
    panel_product(int(rows), rows_of_dy.at(r0), rows_of_dy.ld, panels.at(panel), a.n, start_zero,
                  [&](int r, uint32_t column, V value) {
                    const uint32_t k = k0 + column;
                    if (k >= a.k) return;
                    const int count = int(std::min<uint32_t>(W, a.k - k));
                    put_vector(dx + size_t(r0 + uint32_t(r)) * a.k + k, value, count, a.accumulate != 0);
                  });
  });
}

template <class T>
void sum_columns(Ctx& c, const args::BiasBwd& a) {
  const T* dy = static_cast<const T*>(a.dy);
  float* partial = static_cast<float*>(a.partial);
  float* dbias = static_cast<float*>(a.dbias);
  const uint32_t blocks = (a.m + RLV_ROW_BLOCK - 1) / RLV_ROW_BLOCK;
  const Range mine = split(blocks, c);
  for (uint32_t block = mine.begin; block < mine.end; block++) {
    const uint32_t begin = block * RLV_ROW_BLOCK, end = std::min(a.m, begin + RLV_ROW_BLOCK);
    for (uint32_t n = 0; n < a.n; n += W) {
      const int count = int(std::min<uint32_t>(W, a.n - n));
      V sum = zero();
      for (uint32_t t = begin; t < end; t++) sum = add(sum, load_part(dy + size_t(t) * a.n + n, count));
      store_part(partial + size_t(block) * a.n + n, sum, count);
    }
  }
  c.barrier();
  const Range columns = split_units(a.n, W, c);
  for (uint32_t n = columns.begin; n < columns.end; n += W) {
    const int count = int(std::min<uint32_t>(W, a.n - n));
    V sum = load_part(dbias + n, count);
    for (uint32_t block = 0; block < blocks; block++)
      sum = add(sum, load_part(partial + size_t(block) * a.n + n, count));
    store_part(dbias + n, sum, count);
  }
}

}  // namespace

void gemm_nt(Ctx& c, const args::GemmNt& a) {
  if (a.m == 0 || a.n == 0) return;
  if (a.dt == RLV_F32)
    a.ydt == RLV_F32 ? product_nt<float, float>(c, a) : product_nt<float, uint16_t>(c, a);
  else
    a.ydt == RLV_F32 ? product_nt<uint16_t, float>(c, a) : product_nt<uint16_t, uint16_t>(c, a);
}

void gemm_nn(Ctx& c, const args::GemmNn& a) {
  if (a.m == 0 || a.k == 0) return;
  a.dt == RLV_F32 ? product_nn<float>(c, a) : product_nn<uint16_t>(c, a);
}

void gemm_tn(Ctx& c, const args::GemmTn& a) {
  const uint16_t *dy = static_cast<const uint16_t*>(a.dy), *x = static_cast<const uint16_t*>(a.x);
  if (a.gdt == RLV_BF16) {
    if (a.dt != RLV_BF16) return c.fail("gemm_tn: bfloat16 gradient of float32 weights");
    return weight_gradient(c, static_cast<uint16_t*>(a.dw), dy, a.n, x, a.k, a.m, a.n, a.k);
  }
  float* dw = static_cast<float*>(a.dw);
  if (a.dt == RLV_F32)
    weight_gradient(c, dw, static_cast<const float*>(a.dy), a.n, static_cast<const float*>(a.x), a.k, a.m,
                    a.n, a.k);
  else
    weight_gradient(c, dw, dy, a.n, x, a.k, a.m, a.n, a.k);
}

void bias_bwd(Ctx& c, const args::BiasBwd& a) {
  a.dt == RLV_F32 ? sum_columns<float>(c, a) : sum_columns<uint16_t>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
