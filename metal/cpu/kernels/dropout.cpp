// Dropout: threads take whole blocks of 256 elements, so a mask never depends on their number.
#include <algorithm>
#include "args.gen.hpp"
#include "lanes.h"
#include "philox.h"

namespace rlv {
namespace RLV_ISA {

namespace {

constexpr uint32_t kBlock = 256, kCounters = 64;

template <class T>
void apply(Ctx& c, const args::Dropout& a) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const Range mine = split(uint32_t((uint64_t(a.n) + kBlock - 1) / kBlock), c);
  uint32_t words[kBlock];
  float factor[kBlock];
  for (uint32_t block = mine.begin; block < mine.end; block++) {
    philox_rows<kCounters, 4>(words, kCounters, a.seed, a.purpose, block * kCounters, a.site, a.step, a.part);
    for (uint32_t i = 0; i < kBlock; i++) factor[i] = words[i] < a.threshold ? 0.0f : a.scale;
    const size_t first = size_t(block) * kBlock;
    const uint32_t n = uint32_t(std::min<size_t>(kBlock, a.n - first));
    for (uint32_t i = 0; i < n; i += W) {
      const int count = part(i, n);
      store_part(y + first + i, mul(load_part(x + first + i, count), load(factor + i)), count);
    }
  }
}

}  // namespace

// y = x*(0 or scale) [n].
void dropout(Ctx& c, const args::Dropout& a) {
  a.dt == RLV_BF16 ? apply<uint16_t>(c, a) : apply<float>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
