// SwiGLU (Shazeer 2020, arXiv:2002.05202): y = silu(gate) * up, element-wise over n elements of dtype dt.
// Threads take ranges of elements. Saved for the backward: gate and up; sigmoid is recomputed there. All
// outputs are "=".
#include "args.gen.hpp"
#include "lanes.h"

namespace rlv {
namespace RLV_ISA {

namespace {

template <class T>
void swiglu_forward(Ctx& c, const args::SwigluFwd& a) {
  const T* gate = static_cast<const T*>(a.gate);
  const T* up = static_cast<const T*>(a.up);
  T* y = static_cast<T*>(a.y);
  for_lanes(c, a.n, [=](size_t i, int count) {
    const V g = load_part(gate + i, count);
    store_part(y + i, mul(mul(g, sigmoid(g)), load_part(up + i, count)), count);
  });
}

template <class T>
void swiglu_backward(Ctx& c, const args::SwigluBwd& a) {
  const T* dy = static_cast<const T*>(a.dy);
  const T* gate = static_cast<const T*>(a.gate);
  const T* up = static_cast<const T*>(a.up);
  T* dgate = static_cast<T*>(a.dgate);
  T* dup = static_cast<T*>(a.dup);
  const V one = set1(1.0f);
  for_lanes(c, a.n, [=](size_t i, int count) {
    const V g = load_part(gate + i, count), u = load_part(up + i, count), s = sigmoid(g);
    const V t = mul(load_part(dy + i, count), s);
    store_part(dgate + i, mul(mul(t, u), fma(g, sub(one, s), one)), count);
    store_part(dup + i, mul(t, g), count);
  });
}

}  // namespace

void swiglu_fwd(Ctx& c, const args::SwigluFwd& a) {
  a.dt == RLV_BF16 ? swiglu_forward<uint16_t>(c, a) : swiglu_forward<float>(c, a);
}

// With s = sigmoid(gate): dgate = dy*up*s*(1 + gate*(1-s)), dup = dy*gate*s.
void swiglu_bwd(Ctx& c, const args::SwigluBwd& a) {
  a.dt == RLV_BF16 ? swiglu_backward<uint16_t>(c, a) : swiglu_backward<float>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
