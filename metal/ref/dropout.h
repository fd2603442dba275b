// y = scale*x where it is kept, 0*x where it is dropped.
#pragma once
#include "random.h"
#include "value.h"

namespace rlv {
namespace ref {

struct Dropout {
  static Fields fields(const args::Dropout& a) { return {output(a.y, a.dt, a.n), input(a.x, a.dt, a.n)}; }
  template <class T>
  static void run(const args::Dropout& a, Values<T>& v, Errors&) {
    for (size_t i = 0; i < a.n; i++) {
      const uint32_t counter = uint32_t(i / 256 * 64 + i % 64);
      const uint32_t word = philox_block(a.seed, a.purpose, counter, a.site, a.step, a.part).w[i % 256 / 64];
      v[0][i] = v[1][i] * (word < a.threshold ? 0.0 : double(a.scale));
    }
  }
};

}  // namespace ref
}  // namespace rlv
