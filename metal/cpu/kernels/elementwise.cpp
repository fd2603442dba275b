// Element-wise operations on flat arrays: add, fill, copy, cast. Threads take ranges of elements; every
// output is "=", nothing is saved and no scratch is used. Arithmetic is float32, rounded to nearest even.
#include <cstring>
#include "args.gen.hpp"
#include "lanes.h"

namespace rlv {
namespace RLV_ISA {

namespace {

template <class T>
void add_as(Ctx& c, const args::Add& a) {
  const T* x = static_cast<const T*>(a.a);
  const T* z = static_cast<const T*>(a.b);
  T* y = static_cast<T*>(a.y);
  for_lanes(c, a.n, [=](size_t i, int count) {
    store_part(y + i, add(load_part(x + i, count), load_part(z + i, count)), count);
  });
}

void widen(Ctx& c, const args::Cast& a) {
  const uint16_t* x = static_cast<const uint16_t*>(a.x);
  float* y = static_cast<float*>(a.y);
  for_lanes(c, a.n, [=](size_t i, int count) { store_part(y + i, load_part(x + i, count), count); });
}

// Exact for subnormals too, which kernels that compute round to zero.
void narrow(Ctx& c, const args::Cast& a) {
  const float* x = static_cast<const float*>(a.x);
  uint16_t* y = static_cast<uint16_t*>(a.y);
  const Range r = split_units(a.n, 64, c);
  for (uint32_t i = r.begin; i < r.end; i++) y[i] = f32_to_bf16(x[i]);
}

// Elements of `size` bytes, bit for bit. By memmove: nobody keeps a record from naming ranges that overlap.
void copy_elements(Ctx& c, void* y, const void* x, uint32_t n, size_t size) {
  const Range r = split_units(n, 64, c);
  if (r.begin < r.end && x != y)
    std::memmove(static_cast<char*>(y) + r.begin * size, static_cast<const char*>(x) + r.begin * size,
                 (r.end - r.begin) * size);
}

}  // namespace

// y = a + b [n]; y may be a or b.
void add(Ctx& c, const args::Add& a) { a.dt == RLV_BF16 ? add_as<uint16_t>(c, a) : add_as<float>(c, a); }

// y = value [n].
void fill(Ctx& c, const args::Fill& a) {
  float* y = static_cast<float*>(a.y);
  const V value = set1(a.value);
  for_lanes(c, a.n, [=](size_t i, int count) { store_part(y + i, value, count); });
}

// n bytes of x to y.
void copy(Ctx& c, const args::Copy& a) { copy_elements(c, a.y, a.x, a.n, 1); }

// y (dtype ydt) = x (dtype dt) [n]; the same dtype copies bits.
void cast(Ctx& c, const args::Cast& a) {
  if (a.dt == RLV_F32 && a.ydt == RLV_BF16) return narrow(c, a);
  if (a.dt == RLV_BF16 && a.ydt == RLV_F32) return widen(c, a);
  copy_elements(c, a.y, a.x, a.n, a.dt == RLV_BF16 ? 2 : 4);
}

}  // namespace RLV_ISA
}  // namespace rlv
