// Row-major matrices to and from the packed layout; every conversion of a weight at load and save.
//   float32 [n/32][k][32], bfloat16 [n/32][k/2][32][2]; padding is zero.
// With `lo` a bfloat16 weight is the float32 value's nearest high half and lo the signed rest: bits = (hi <<
// 16) + lo.
// A panel is 32 rows of 32-bit words (a float32, or a pair of bfloat16), turned over. Row-major sources may
// lie at any byte: they are parts of files.
#include <algorithm>
#include <cstring>
#include "../ctx.h"
#include "../transpose.h"
#include "args.gen.hpp"

namespace rlv {
namespace RLV_ISA {

namespace {

// Words of one row of a packed matrix.
uint32_t words_of(uint32_t k, uint32_t dt) { return dt == RLV_BF16 ? (k + 1) / 2 : k; }

// The first `bytes` < W * From::kBytes of a row's last words.
template <class From>
P load_tail(const char* p, size_t bytes) {
  char padded[W * From::kBytes] = {};
  std::memcpy(padded, p, bytes);
  return From::load(padded);
}

// Rows [0, rows) of `row_bytes` bytes each to one panel of `words` words a row.
template <class From, bool kStream>
void pack_panel(const char* src, size_t row_bytes, uint32_t rows, uint32_t words, uint32_t* dst) {
  for (uint32_t w0 = 0; w0 < words; w0 += W) {
    const uint32_t count = std::min<uint32_t>(W, words - w0);
    const size_t at = size_t(w0) * From::kBytes, bytes = std::min<size_t>(W * From::kBytes, row_bytes - at);
    for (uint32_t lane = 0; lane < RLV_PANEL; lane += W) {
      P r[W];
      for (uint32_t i = 0; i < uint32_t(W); i++) {
        const char* p = src + (lane + i) * row_bytes + at;
        if (lane + i >= rows)
          r[i] = set1_pair(0);
        else
          r[i] = bytes == W * From::kBytes ? From::load(p) : load_tail<From>(p, bytes);
      }
      transpose(r);
      uint32_t* to = dst + size_t(w0) * RLV_PANEL + lane;
      if (count == uint32_t(W)) {
        for (int i = 0; i < W; i++)
          kStream ? stream_words(to + i * RLV_PANEL, r[i]) : store_words(to + i * RLV_PANEL, r[i]);
      } else {
        for (uint32_t i = 0; i < count; i++) store_words(to + i * RLV_PANEL, r[i]);
      }
    }
  }
}

// Weights are read again long after they were loaded: stores go past the caches where the target allows it.
template <class From>
void pack(Ctx& c, const args::PackWeight& a, void* target) {
  const Range panels = split(uint32_t(ceil_div(a.n, RLV_PANEL)), c);
  const uint32_t words = words_of(a.k, a.dt);
  const size_t row_bytes = size_t(a.k) * (a.sdt == RLV_BF16 ? 2 : 4);
  const bool stream = reinterpret_cast<uintptr_t>(target) % 64 == 0;
  for (uint32_t panel = panels.begin; panel < panels.end; panel++) {
    const char* src = static_cast<const char*>(a.src) + size_t(panel) * RLV_PANEL * row_bytes;
    uint32_t* dst = static_cast<uint32_t*>(target) + size_t(panel) * RLV_PANEL * words;
    const uint32_t rows = std::min<uint32_t>(RLV_PANEL, a.n - panel * RLV_PANEL);
    (stream ? pack_panel<From, true> : pack_panel<From, false>)(src, row_bytes, rows, words, dst);
  }
  end_stream();
}

// One panel to rows [0, rows) of `row_bytes` bytes each.
template <class To>
void unpack_panel(const uint32_t* src, const uint32_t* rest, uint32_t rows, uint32_t words, char* dst,
                  size_t row_bytes) {
  for (uint32_t w0 = 0; w0 < words; w0 += W) {
    const uint32_t count = std::min<uint32_t>(W, words - w0);
    const size_t at = size_t(w0) * To::kBytes, bytes = std::min<size_t>(W * To::kBytes, row_bytes - at);
    for (uint32_t lane = 0; lane < rows; lane += W) {
      const size_t from = size_t(w0) * RLV_PANEL + lane;
      P r[W], l[W];
      for (uint32_t i = 0; i < uint32_t(W); i++) {
        r[i] = i < count ? load_words(src + from + i * RLV_PANEL) : set1_pair(0);
        l[i] = rest && i < count ? load_words(rest + from + i * RLV_PANEL) : set1_pair(0);
      }
      transpose(r);
      if (rest) transpose(l);
      for (uint32_t i = 0; i < std::min<uint32_t>(W, rows - lane); i++) {
        char* p = dst + (lane + i) * row_bytes + at;
        if (bytes == W * To::kBytes) {
          To::store(p, r[i], l[i]);
        } else {
          char whole[W * To::kBytes];
          To::store(whole, r[i], l[i]);
          std::memcpy(p, whole, bytes);
        }
      }
    }
  }
}

template <class To>
void unpack(Ctx& c, const args::UnpackWeight& a, const void* lo) {
  const Range panels = split(uint32_t(ceil_div(a.n, RLV_PANEL)), c);
  const uint32_t words = words_of(a.k, a.dt);
  const size_t row_bytes = size_t(a.k) * (a.ddt == RLV_BF16 ? 2 : 4);
  for (uint32_t panel = panels.begin; panel < panels.end; panel++) {
    const size_t at = size_t(panel) * RLV_PANEL * words;
    unpack_panel<To>(static_cast<const uint32_t*>(a.w) + at,
                     lo ? static_cast<const uint32_t*>(lo) + at : nullptr,
                     std::min<uint32_t>(RLV_PANEL, a.n - panel * RLV_PANEL), words,
                     static_cast<char*>(a.dst) + size_t(panel) * RLV_PANEL * row_bytes, row_bytes);
  }
}

void put_as(float* p, float f) { *p = f; }
void put_as(uint16_t* p, float f) { *p = f32_to_bf16(f); }

// Elements of another size than the layout's: float32 gradients and moments of a bfloat16 matrix, bfloat16
// ones of a float32 matrix.
template <class From, class To>
void unpack_elements(Ctx& c, const args::UnpackWeight& a) {
  const Range panels = split(uint32_t(ceil_div(a.n, RLV_PANEL)), c);
  const uint32_t pair = a.dt == RLV_BF16 ? 2 : 1, words = words_of(a.k, a.dt);
  constexpr uint32_t kBlock = 32;
  for (uint32_t panel = panels.begin; panel < panels.end; panel++) {
    const From* src = static_cast<const From*>(a.w) + size_t(panel) * RLV_PANEL * words * pair;
    const uint32_t row = panel * RLV_PANEL, rows = std::min<uint32_t>(RLV_PANEL, a.n - row);
    for (uint32_t w0 = 0; w0 < words; w0 += kBlock)
      for (uint32_t lane = 0; lane < rows; lane++) {
        To* to = static_cast<To*>(a.dst) + size_t(row + lane) * a.k;
        const uint32_t end = std::min((w0 + kBlock) * pair, a.k);
        for (uint32_t col = w0 * pair; col < end; col++)
          put_as(to + col, get(src + size_t(col / pair) * RLV_PANEL * pair + lane * pair + col % pair));
      }
  }
}

}  // namespace

void pack_weight(Ctx& c, const args::PackWeight& a) {
  if (a.dt == RLV_F32) return a.sdt == RLV_F32 ? pack<FromWords>(c, a, a.w) : pack<FromBf16>(c, a, a.w);
  if (a.sdt == RLV_BF16) {
    pack<FromWords>(c, a, a.w);
    if (a.lo) pack<FromNothing>(c, a, a.lo);
    return;
  }
  // A frozen model has the high halves that a trained one would begin with.
  pack<FromF32High>(c, a, a.w);
  if (a.lo) pack<FromF32Low>(c, a, a.lo);
}

void unpack_weight(Ctx& c, const args::UnpackWeight& a) {
  const bool wide = a.ddt == RLV_F32;
  if (a.edt != a.dt) {
    if (a.edt == RLV_F32)
      return (wide ? unpack_elements<float, float> : unpack_elements<float, uint16_t>)(c, a);
    return (wide ? unpack_elements<uint16_t, float> : unpack_elements<uint16_t, uint16_t>)(c, a);
  }
  if (a.dt == RLV_F32) return (wide ? unpack<ToWords> : unpack<ToBf16>)(c, a, nullptr);
  if (a.lo) return (wide ? unpack<ToMaster> : unpack<ToRounded>)(c, a, a.lo);
  (wide ? unpack<ToF32> : unpack<ToWords>)(c, a, nullptr);
}

}  // namespace RLV_ISA
}  // namespace rlv
