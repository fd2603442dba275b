// Weights as codes and scales: their layouts, the way there and back, and the product. Formats:
// src/ops/quant.ts.
#pragma once
#include <algorithm>
#include "value.h"

namespace rlv {
namespace ref {

// An [n, k] matrix of codes.
struct Codes {
  const void* codes;
  const void* scales;
  size_t k;
  uint32_t qt;

  static size_t int8_index(size_t row, size_t col, size_t k) { return packed_index(row, col, k, RLV_BF16); }
  static size_t nf4_word(size_t row, size_t col, size_t k) {
    return ((row / RLV_PANEL * (k / 8) + col / 8) * RLV_PANEL + row % RLV_PANEL) * 2 + col % 2;
  }
  static uint32_t nf4_shift(size_t col) { return uint32_t(col % 8 / 2 * 4); }
  static size_t scale_index(size_t row, size_t col, size_t k, uint32_t qt) {
    if (qt == RLV_INT8) return row;
    return (row / RLV_PANEL * (k / RLV_QUANT_BLOCK) + col / RLV_QUANT_BLOCK) * RLV_PANEL + row % RLV_PANEL;
  }

  double scale(size_t row, size_t col) const {
    return static_cast<const float*>(scales)[scale_index(row, col, k, qt)];
  }
  // The code as a number of type dt.
  double code(size_t row, size_t col, uint32_t dt) const {
    static const float table[16] = {RLV_NF4_CODES};
    if (qt == RLV_INT8) return static_cast<const int8_t*>(codes)[int8_index(row, col, k)];
    const uint32_t word = static_cast<const uint16_t*>(codes)[nf4_word(row, col, k)];
    return round_to(dt, table[word >> nf4_shift(col) & 15u]);
  }
};

inline bool whole_blocks(Errors& e, uint32_t qt, uint32_t k, const char* message) {
  if (qt != RLV_NF4 || k % RLV_QUANT_BLOCK == 0) return true;
  e.fail(message, k);
  return false;
}

// y[m,n] = x[m,k] * w[n,k]^T + bias[n].
struct QuantLinear {
  static Fields fields(const args::QuantLinear& a) {
    return {output(a.y, a.ydt, size_t(a.m) * a.n), input(a.x, a.dt, size_t(a.m) * a.k), other(), other(),
            input(a.bias, RLV_F32, a.n)};
  }
  template <class T>
  static void run(const args::QuantLinear& a, Values<T>& v, Errors& e) {
    if (!whole_blocks(e, a.qt, a.k, "quant_linear: nf4 needs k in blocks of 64")) return;
    const Codes w{a.codes, a.scales, a.k, a.qt};
    std::vector<double> row(a.k);
    for (size_t j = 0; j < a.n; j++) {
      for (size_t p = 0; p < a.k; p++) row[p] = w.code(j, p, a.dt) * w.scale(j, p);
      for (size_t i = 0; i < a.m; i++) {
        T sum = 0;
        for (size_t p = 0; p < a.k; p++) sum += v[1][i * a.k + p] * row[p];
        if (v[4]) sum += v[4][j];
        v[0][i * a.n + j] = sum;
      }
    }
  }
};

inline void quant_embed(const args::QuantEmbed& a, Errors& e) {
  if (!whole_blocks(e, a.qt, a.cols, "quant_embed: nf4 needs columns in blocks of 64")) return;
  const uint32_t* ids = static_cast<const uint32_t*>(a.ids);
  const Codes w{a.codes, a.scales, a.cols, a.qt};
  for (size_t t = 0; t < a.rows; t++) {
    if (ids[t] >= a.vocab) {
      e.fail("quant_embed: id outside the vocabulary", ids[t]);
      continue;
    }
    for (size_t i = 0; i < a.cols; i++)
      write(a.y, a.dt, t * a.cols + i, w.code(ids[t], i, a.dt) * w.scale(ids[t], i));
  }
}

// x as the nearest float16, ties to even.
inline float rounded_to_f16(float x) {
  const int exponent = x == 0 ? 0 : std::max(std::ilogb(x), -14);
  const double step = std::ldexp(1.0, exponent - 10), rounded = std::nearbyint(x / step) * step;
  return std::fabs(rounded) >= 65520.0 ? std::copysign(INFINITY, x) : float(rounded);
}

// Codes depend on roundings of float32 arithmetic, in the words of bitsandbytes: multiply by a reciprocal.
inline void quantize_weight(const args::QuantizeWeight& a, Errors& e) {
  if (!whole_blocks(e, a.qt, a.k, "quantize_weight: nf4 needs k in blocks of 64")) return;
  static const float limits[15] = {RLV_NF4_LIMITS};
  std::memset(a.codes, 0, quant_bytes(a.n, a.k, a.qt));
  std::memset(a.scales, 0, quant_scales(a.n, a.k, a.qt) * sizeof(float));
  const bool bytes = a.qt == RLV_INT8;
  const size_t block = bytes ? a.k : RLV_QUANT_BLOCK;
  auto value = [&](size_t i) {
    const float x = float(read(a.src, a.sdt, i));
    return bytes ? rounded_to_f16(x) : x;
  };
  for (size_t row = 0; row < a.n; row++)
    for (size_t k0 = 0; k0 < a.k; k0 += block) {
      float most = 0;
      // Not std::max, which may lose a NaN.
      for (size_t i = k0; i < k0 + block; i++)
        if (const float x = std::fabs(value(row * a.k + i)); !(x <= most) && most == most) most = x;
      if (!bytes && most < RLV_NF4_SMALLEST) most = 0;
      const float inverse = most > 0 ? (bytes ? 127.0f : 1.0f) * (1.0f / most) : 0;
      static_cast<float*>(a.scales)[Codes::scale_index(row, k0, a.k, a.qt)] = bytes ? most / 127.0f : most;
      for (size_t i = k0; i < k0 + block; i++) {
        const float x = value(row * a.k + i) * inverse;
        if (bytes) {
          static_cast<int8_t*>(a.codes)[Codes::int8_index(row, i, a.k)] = int8_t(std::nearbyintf(x));
        } else {
          uint32_t code = 0;
          while (code < 15 && x > limits[code]) code++;
          static_cast<uint16_t*>(a.codes)[Codes::nf4_word(row, i, a.k)] |=
              uint16_t(code << Codes::nf4_shift(i));
        }
      }
    }
}

inline void dequantize_weight(const args::DequantizeWeight& a, Errors& e) {
  if (!whole_blocks(e, a.qt, a.k, "dequantize_weight: nf4 needs k in blocks of 64")) return;
  const Codes w{a.codes, a.scales, a.k, a.qt};
  for (size_t row = 0; row < a.n; row++)
    for (size_t i = 0; i < a.k; i++)
      write(a.dst, RLV_F32, row * a.k + i, w.code(row, i, RLV_F32) * w.scale(row, i));
}

}  // namespace ref
}  // namespace rlv
