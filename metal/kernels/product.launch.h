// Grids of the matrix products, and the variants of those with few rows: gemm_tile.h and gemm_skinny.h.
#pragma once
#include "launch.h"

namespace rlv {
namespace metal {

constexpr uint32_t kTile = 64, kThreads = 128, kSkinnyRows = 64;

// Tiles of a result, along its shorter side first: tile_at of gemm.metal.
inline Grid tiles(uint32_t rows, uint32_t cols) {
  const uint32_t r = groups_of(rows, kTile), c = groups_of(cols, kTile);
  return rows <= cols ? Grid{r, c} : Grid{c, r};
}

// A variant of a product of few rows: fragments of 8 rows, a power of two, and spans of K, each summed by
// itself, as spans_of in gemm_tile.h.
struct Skinny {
  uint32_t fragments = 1, spans, columns, chunks;
  Skinny(uint32_t m, uint32_t k) : spans(k >= 512 ? 4 : 1), columns(kTile / spans) {
    while (fragments * 8 < kSkinnyRows && fragments * 8 < m) fragments *= 2;
    chunks = groups_of(m, fragments * 8);
  }
  std::string name(const std::string& kernel, const std::string& types) const {
    return kernel + std::to_string(fragments) + "_" + std::to_string(spans) + types;
  }
};

}  // namespace metal
}  // namespace rlv
