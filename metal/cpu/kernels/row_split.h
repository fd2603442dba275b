// Which operations give every thread rows of its own: the kernels and the placing of barriers must agree.
#pragma once
#include <cstddef>
#include <cstdint>
#include "args.gen.hpp"

namespace rlv {

// Weights that every thread reads whole: they stay in the second-level cache beside its rows.
constexpr size_t kCachedWeights = 384 << 10;

// Enough rows that each thread's share fills register tiles.
inline bool divide_rows(uint32_t threads, uint32_t rows) { return rows >= 8 * threads; }

inline bool product_by_rows(uint32_t threads, uint32_t rows, size_t weight_bytes) {
  return weight_bytes <= kCachedWeights && divide_rows(threads, rows);
}

inline bool product_by_rows(uint32_t threads, uint32_t m, uint32_t n, uint32_t k, uint32_t dt) {
  return product_by_rows(threads, m, packed_len(n, k, dt) * size(dt));
}

// Elements that divide evenly lie, whatever their rows are, with the thread that has those rows.
inline bool even_split(uint32_t threads, uint32_t n) { return n > 0 && n % (16 * threads) == 0; }

// Rows of which each thread takes an even share, in order; 0 if the operation is divided otherwise.
inline uint32_t row_split(uint32_t threads, const args::GemmNt& a) {
  return product_by_rows(threads, a.m, a.n, a.k, a.dt) ? a.m : 0;
}
inline uint32_t row_split(uint32_t threads, const args::NormQkv& a) {
  const uint32_t n = a.nq > a.nkv ? a.nq : a.nkv;
  return product_by_rows(threads, a.m, n, a.cols, a.dt) ? a.m : 0;
}
inline uint32_t row_split(uint32_t threads, const args::LinearResidual& a) {
  return product_by_rows(threads, a.m, a.n, a.k, a.dt) ? a.m : 0;
}
inline uint32_t row_split(uint32_t threads, const args::NormSwiglu& a) {
  return product_by_rows(threads, a.m, a.n, a.cols, a.dt) ? a.m : 0;
}
inline uint32_t row_split(uint32_t threads, const args::AttnDecode& a) {
  return divide_rows(threads, a.batch) ? a.batch : 0;
}
inline uint32_t row_split(uint32_t threads, const args::EmbedFwd& a) {
  return divide_rows(threads, a.rows) ? a.rows : 0;
}
inline uint32_t row_split(uint32_t, const args::RmsNormFwd& a) { return a.rows; }
inline uint32_t row_split(uint32_t, const args::LoraFwd& a) { return a.m; }
inline uint32_t row_split(uint32_t, const args::KvAppend& a) { return a.rows; }
inline uint32_t row_split(uint32_t, const args::QkNormRopeFwd& a) { return a.rows; }
inline uint32_t row_split(uint32_t, const args::RopeAppend& a) { return a.rows; }
inline uint32_t row_split(uint32_t, const args::Sample& a) { return a.batch; }

}  // namespace rlv
