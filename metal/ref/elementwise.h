// Element-wise operations and the packed weight layout.
#pragma once
#include "value.h"

namespace rlv {
namespace ref {

// y = a + b.
struct Add {
  static Fields fields(const args::Add& a) {
    return {output(a.y, a.dt, a.n), input(a.a, a.dt, a.n), input(a.b, a.dt, a.n)};
  }
  template <class T>
  static void run(const args::Add& a, Values<T>& v, Errors&) {
    for (size_t i = 0; i < a.n; i++) v[0][i] = v[1][i] + v[2][i];
  }
};

inline void fill(const args::Fill& a, Errors&) {
  for (size_t i = 0; i < a.n; i++) static_cast<float*>(a.y)[i] = a.value;
}

inline void copy(const args::Copy& a, Errors&) {
  if (a.n > 0) std::memmove(a.y, a.x, a.n);
}

inline void cast(const args::Cast& a, Errors&) {
  for (size_t i = 0; i < a.n; i++) write(a.y, a.ydt, i, read(a.x, a.dt, i));
}

// A float32 value as bfloat16 plus signed remainder: bits = (high << 16) + lo. The high half is the nearest
// one; a tie goes up, since the remainder 32768 does not exist.
struct Split {
  uint16_t high;
  int16_t lo;
};
inline Split split(float x) {
  const uint32_t bits = bits_of(x);
  return {uint16_t((bits + 0x8000u) >> 16), int16_t(uint16_t(bits))};
}
inline float join(uint16_t high, int16_t lo) {
  return float_of((uint32_t(high) << 16) + uint32_t(int32_t(lo)));
}

// Row-major [n,k] -> packed; padding is zero.
inline void pack_weight(const args::PackWeight& a, Errors& e) {
  if (a.lo && a.dt != RLV_BF16) return e.fail("pack_weight: remainder of a float32 weight");
  const size_t stored = packed_len(a.n, a.k, a.dt);
  std::memset(a.w, 0, stored * size(a.dt));
  if (a.lo) std::memset(a.lo, 0, stored * 2);
  for (size_t i = 0; i < a.n; i++)
    for (size_t j = 0; j < a.k; j++) {
      const double x = read(a.src, a.sdt, i * a.k + j);
      const size_t to = packed_index(i, j, a.k, a.dt);
      if (a.lo) {
        const Split s = split(float(x));
        static_cast<uint16_t*>(a.w)[to] = s.high;
        static_cast<int16_t*>(a.lo)[to] = s.lo;
      } else if (a.dt == RLV_BF16) {
        static_cast<uint16_t*>(a.w)[to] = split(float(x)).high;
      } else {
        write(a.w, a.dt, to, x);
      }
    }
}

// Packed layout of dt with elements of edt (+ lo) -> row-major [n,k].
inline void unpack_weight(const args::UnpackWeight& a, Errors& e) {
  if (a.lo && a.edt != RLV_BF16) return e.fail("unpack_weight: remainder of float32 elements");
  for (size_t i = 0; i < a.n; i++)
    for (size_t j = 0; j < a.k; j++) {
      const size_t from = packed_index(i, j, a.k, a.dt);
      const double x =
          a.lo ? join(static_cast<const uint16_t*>(a.w)[from], static_cast<const int16_t*>(a.lo)[from])
               : read(a.w, a.edt, from);
      write(a.dst, a.ddt, i * a.k + j, x);
    }
}

}  // namespace ref
}  // namespace rlv
