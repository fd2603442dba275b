// How the reference sees the tensors of an operation.
//
// A forward operation is a struct with two functions:
//   fields(a)        its tensors in the order of the record: address, dtype, shape
//   run<T>(a, v, e)  the formula over v[i], the elements of tensor i as T = double or std::complex<double>
//
// Tensors are loaded into T before run and outputs are rounded once, on the way back. Matrices in the packed
// layout appear row-major, so a formula never sees padding. Integer tensors and scratch have no elements; run
// reads integers from `a`.
//
// For complex T, branches and maxima look at the real part: run is then f(x + ih) = f(x) + ih f'(x), which is
// how gradients are found (Squire & Trapp 1998, doi:10.1137/S003614459631241X).
#pragma once
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>
#include "args.gen.hpp"

namespace rlv {
namespace ref {

using Complex = std::complex<double>;

inline double real_part(double x) { return x; }
inline double real_part(const Complex& x) { return x.real(); }

// The first error of an operation, in the words of the device that runs kernels.
struct Errors {
  std::string first;
  void fail(const char* detail, uint32_t value = 0) {
    if (first.empty()) first = std::string("[") + detail + ": " + std::to_string(value) + "]";
  }
};

inline float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t bits_of(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

inline double bf16_value(uint16_t half) { return float_of(uint32_t(half) << 16); }

// Nearest value of dtype dt, ties to even, rounded once from float64.
inline double round_to(uint32_t dt, double x) {
  if (dt != RLV_BF16 || !std::isfinite(x) || x == 0) return double(float(x));
  int exponent;
  std::frexp(x, &exponent);
  const int step = exponent - 8 > -133 ? exponent - 8 : -133;  // 8 significant bits; subnormals from 2^-133
  return double(float(std::ldexp(std::nearbyint(std::ldexp(x, -step)), step)));
}
// A stored intermediate: the value is rounded, the derivative goes through.
inline Complex round_to(uint32_t dt, const Complex& x) { return {round_to(dt, x.real()), x.imag()}; }

inline double read(const void* p, uint32_t dt, size_t i) {
  if (dt == RLV_BF16) return bf16_value(static_cast<const uint16_t*>(p)[i]);
  return static_cast<const float*>(p)[i];
}
inline void write(void* p, uint32_t dt, size_t i, double x) {
  const float rounded = float(round_to(dt, x));
  if (dt == RLV_BF16)
    static_cast<uint16_t*>(p)[i] = uint16_t(bits_of(rounded) >> 16);
  else
    static_cast<float*>(p)[i] = rounded;
}

// Where element (row, col) of an [n, k] matrix lies in the packed layout of dtype dt.
inline size_t packed_index(size_t row, size_t col, size_t k, uint32_t dt) {
  const size_t panel = row / RLV_PANEL, lane = row % RLV_PANEL;
  if (dt == RLV_BF16) return ((panel * ((k + 1) / 2) + col / 2) * RLV_PANEL + lane) * 2 + col % 2;
  return (panel * k + col) * RLV_PANEL + lane;
}

enum class Role { kNone, kInput, kOutput };

struct Field {
  Role role;
  void* data;  // nullptr: absent
  uint32_t dt;
  size_t rows, cols;
  bool packed;

  size_t elements() const { return data ? rows * cols : 0; }
  size_t stored_elements() const { return packed ? size_t(packed_len(rows, cols, dt)) : rows * cols; }
  size_t stored(size_t i) const { return packed ? packed_index(i / cols, i % cols, cols, dt) : i; }
};

inline Field input(const void* data, uint32_t dt, size_t n) {
  return {Role::kInput, const_cast<void*>(data), dt, 1, n, false};
}
inline Field weight(const void* data, uint32_t dt, size_t n, size_t k) {
  return {Role::kInput, const_cast<void*>(data), dt, n, k, true};
}
inline Field output(void* data, uint32_t dt, size_t n) { return {Role::kOutput, data, dt, 1, n, false}; }
// Integers and scratch.
inline Field other() { return {Role::kNone, nullptr, RLV_F32, 0, 0, false}; }

using Fields = std::vector<Field>;

template <class T>
class Values {
 public:
  // Outputs are loaded too: some are added to, and elements that an operation skips keep their value.
  explicit Values(const Fields& fields) : elements_(fields.size()) {
    for (size_t f = 0; f < fields.size(); f++) {
      elements_[f].resize(fields[f].elements());
      for (size_t i = 0; i < elements_[f].size(); i++)
        elements_[f][i] = read(fields[f].data, fields[f].dt, fields[f].stored(i));
    }
  }
  // Elements of a tensor; nullptr if it is absent.
  T* operator[](size_t field) { return elements_[field].empty() ? nullptr : elements_[field].data(); }
  std::vector<T>& all(size_t field) { return elements_[field]; }

 private:
  std::vector<std::vector<T>> elements_;
};

template <class T>
T dot(const T* a, const T* b, size_t n) {
  T sum = 0;
  for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

}  // namespace ref
}  // namespace rlv
