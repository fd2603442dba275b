// Row-major matrices to and from the packed layout; every conversion of a weight at load and save.
//   float32 [n/32][k][32], bfloat16 [n/32][k/2][32][2]; padding is zero.
// With `lo` a bfloat16 weight is the float32 value's nearest high half and lo the signed rest: bits = (hi <<
// 16) + lo.
#include <algorithm>
#include <cstring>
#include "../ctx.h"
#include "../vec.h"
#include "args.gen.hpp"

namespace rlv {
namespace RLV_ISA {

namespace {

size_t packed_index(uint32_t row, uint32_t col, uint32_t k, uint32_t dt) {
  const uint32_t depth = dt == RLV_BF16 ? (k + 1) / 2 * 2 : k;
  const size_t panel = size_t(row / RLV_PANEL) * RLV_PANEL * depth;
  const uint32_t lane = row % RLV_PANEL;
  return dt == RLV_BF16 ? panel + size_t(col / 2) * 2 * RLV_PANEL + lane * 2 + col % 2
                        : panel + size_t(col) * RLV_PANEL + lane;
}

uint32_t bits_of(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

float float_of(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

float element(const void* p, uint32_t dt, size_t i) {
  return dt == RLV_BF16 ? bf16_to_f32(static_cast<const uint16_t*>(p)[i]) : static_cast<const float*>(p)[i];
}

// Without conversion packing is a transposition of 32 rows of 32-bit words (a float32, or a pair of
// bfloat16), in blocks that stay in the first-level cache.
void transpose_panels(const Range& panels, uint32_t n, uint32_t words, const uint32_t* src, uint32_t* dst) {
  constexpr uint32_t kBlock = 32;
  for (uint32_t panel = panels.begin; panel < panels.end; panel++) {
    const uint32_t rows = std::min<uint32_t>(RLV_PANEL, n - panel * RLV_PANEL);
    const uint32_t* from = src + size_t(panel) * RLV_PANEL * words;
    uint32_t* to = dst + size_t(panel) * RLV_PANEL * words;
    for (uint32_t w0 = 0; w0 < words; w0 += kBlock) {
      const uint32_t w1 = std::min(words, w0 + kBlock);
      for (uint32_t lane = 0; lane < rows; lane++)
        for (uint32_t w = w0; w < w1; w++) to[size_t(w) * RLV_PANEL + lane] = from[size_t(lane) * words + w];
      for (uint32_t lane = rows; lane < RLV_PANEL; lane++)
        for (uint32_t w = w0; w < w1; w++) to[size_t(w) * RLV_PANEL + lane] = 0;
    }
  }
}

}  // namespace

void pack_weight(Ctx& c, const args::PackWeight& a) {
  if (!a.lo && a.dt == a.sdt && (a.dt == RLV_F32 || a.k % 2 == 0)) {
    const uint32_t words = a.dt == RLV_F32 ? a.k : a.k / 2;
    transpose_panels(split(uint32_t(ceil_div(a.n, RLV_PANEL)), c), a.n, words,
                     static_cast<const uint32_t*>(a.src), static_cast<uint32_t*>(a.w));
    return;
  }
  const Range mine = split_units(uint32_t(ceil_div(a.n, RLV_PANEL) * RLV_PANEL), RLV_PANEL, c);
  const uint32_t depth = a.dt == RLV_BF16 ? (a.k + 1) / 2 * 2 : a.k;
  uint16_t* w16 = static_cast<uint16_t*>(a.w);
  float* w32 = static_cast<float*>(a.w);
  int16_t* lo = static_cast<int16_t*>(a.lo);
  for (uint32_t row = mine.begin; row < mine.end; row++)
    for (uint32_t col = 0; col < depth; col++) {
      const size_t at = packed_index(row, col, a.k, a.dt);
      const float f = row < a.n && col < a.k ? element(a.src, a.sdt, size_t(row) * a.k + col) : 0.0f;
      if (a.dt == RLV_F32) {
        w32[at] = f;
        continue;
      }
      if (!lo) {
        w16[at] = f32_to_bf16(f);
        continue;
      }
      // Ties go up: to even would need a rest of +32768.
      w16[at] = uint16_t((bits_of(f) + 0x8000u) >> 16);
      lo[at] = int16_t(uint16_t(bits_of(f) - (uint32_t(w16[at]) << 16)));
    }
}

void unpack_weight(Ctx& c, const args::UnpackWeight& a) {
  const Range mine = split(a.n, c);
  const int16_t* lo = static_cast<const int16_t*>(a.lo);
  for (uint32_t row = mine.begin; row < mine.end; row++)
    for (uint32_t col = 0; col < a.k; col++) {
      const size_t at = packed_index(row, col, a.k, a.dt), to = size_t(row) * a.k + col;
      float f = element(a.w, a.edt, at);
      if (lo && a.edt == RLV_BF16) f = float_of(bits_of(f) + uint32_t(int32_t(lo[at])));
      if (a.ddt == RLV_BF16)
        static_cast<uint16_t*>(a.dst)[to] = f32_to_bf16(f);
      else
        static_cast<float*>(a.dst)[to] = f;
    }
}

}  // namespace RLV_ISA
}  // namespace rlv
