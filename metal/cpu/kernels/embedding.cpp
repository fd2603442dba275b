// Token embedding and row gathering.
//
//   embed_fwd        y[t] = table[ids[t]] ("="); table [vocab, cols] in the packed layout of dtype wdt
//   (shared with
//                    a tied head), y [rows, cols] of dtype dt. Threads take rows, or of few rows pieces
//   of 64 columns.
//   embed_bwd        dtable[ids[t]] += dy[t], starting from what dtable holds, tokens ascending for every
//   element;
//                    dtable float32 in the layout of wdt. Threads take columns.
//   gather_rows      y[r] = x[index[r]] ("="). Threads take rows.
//   gather_rows_bwd  dx[t] = sum of dy[r] over index[r] = t, r ascending, in float32, zero if there is none
//                    ("="). Threads take rows of dx and chain the gathered rows of each in scratch.
//
// Ids and indices are data: one out of range is an error of the stream and nothing is read or written for it.
#include <cstring>
#include "args.gen.hpp"
#include "lanes.h"
#include "row_split.h"

namespace rlv {
namespace RLV_ISA {

namespace {

constexpr uint32_t kPiece = 64;   // columns of one unit of work, even: pairs stay together
constexpr uint32_t kStripe = 16;  // columns that embed_bwd walks over all tokens at once

// Column k of row `id` is element base + step(k) of the packed layout. float32: [N/32][K][32];
// bfloat16: [N/32][ceil(K/2)][32][2].
template <bool Pairs>
inline size_t packed_base(uint32_t id, uint32_t cols) {
  const size_t panel = id / RLV_PANEL, lane = id % RLV_PANEL;
  return Pairs ? panel * ((cols + 1) / 2) * (2 * RLV_PANEL) + 2 * lane : panel * cols * RLV_PANEL + lane;
}
template <bool Pairs>
inline size_t packed_step(uint32_t k) {
  return Pairs ? size_t(k / 2) * (2 * RLV_PANEL) + k % 2 : size_t(k) * RLV_PANEL;
}

// y[k] = column k of a packed row, first <= k < last, first even.
template <class T, class Table>
inline void copy_columns(T* y, const Table* row, uint32_t first, uint32_t last) {
  for (uint32_t k = first; k < last; k++) put(y + k, get(row + packed_step<sizeof(Table) == 2>(k)));
}
inline void copy_columns(uint16_t* y, const uint16_t* row, uint32_t first, uint32_t last) {
  uint32_t k = first;
  for (; k + 2 <= last; k += 2) std::memcpy(y + k, row + packed_step<true>(k), 4);
  if (k < last) y[k] = row[packed_step<true>(k)];
}

template <class T, class Table>
void embed(Ctx& c, const args::EmbedFwd& a) {
  constexpr bool pairs = sizeof(Table) == 2;
  const uint32_t* ids = static_cast<const uint32_t*>(a.ids);
  const uint64_t pieces = ceil_div(a.cols, kPiece), all = a.rows * pieces;
  uint64_t u = all * c.tid / c.threads, end = all * (c.tid + 1) / c.threads;
  if (row_split(c.threads, a)) {
    const Range rows = split(a.rows, c);
    u = rows.begin * pieces;
    end = rows.end * pieces;
  }
  for (; u < end; u++) {
    const uint32_t t = uint32_t(u / pieces), first = uint32_t(u % pieces) * kPiece;
    if (ids[t] >= a.vocab) {
      c.fail("embed_fwd: id outside the vocabulary", ids[t]);
      continue;
    }
    const Table* row = static_cast<const Table*>(a.table) + packed_base<pairs>(ids[t], a.cols);
    T* y = static_cast<T*>(a.y) + size_t(t) * a.cols;
    const uint32_t last = a.cols - first < kPiece ? a.cols : first + kPiece;
    copy_columns(y, row, first, last);
  }
}

template <class T, bool Pairs>
void embed_gradient(Ctx& c, const args::EmbedBwd& a) {
  const uint32_t* ids = static_cast<const uint32_t*>(a.ids);
  float* dtable = static_cast<float*>(a.dtable);
  const Range cols = split_units(a.cols, kStripe, c);
  for (uint32_t first = cols.begin; first < cols.end; first += kStripe) {
    const uint32_t last = cols.end - first < kStripe ? cols.end : first + kStripe;
    for (uint32_t t = 0; t < a.rows; t++) {
      if (ids[t] >= a.vocab) {
        c.fail("embed_bwd: id outside the vocabulary", ids[t]);
        continue;
      }
      float* row = dtable + packed_base<Pairs>(ids[t], a.cols);
      const T* dy = static_cast<const T*>(a.dy) + size_t(t) * a.cols;
      for (uint32_t k = first; k < last; k++) row[packed_step<Pairs>(k)] += get(dy + k);
    }
  }
}

template <class T>
void scatter(Ctx& c, const args::GatherRowsBwd& a) {
  const uint32_t* index = static_cast<const uint32_t*>(a.index);
  const Range own = split(a.src_rows, c);
  // first[t - begin]: the lowest row gathered from t; next[r]: the next one from the same t.
  uint32_t* first = static_cast<uint32_t*>(c.local(0, (size_t(own.end - own.begin) + a.rows) * 4));
  uint32_t* next = first + (own.end - own.begin);
  for (uint32_t t = own.begin; t < own.end; t++) first[t - own.begin] = RLV_NONE;
  for (uint32_t r = a.rows; r-- > 0;) {
    const uint32_t t = index[r];
    if (t >= a.src_rows) {
      c.fail("gather_rows_bwd: index beyond the rows", t);
    } else if (t >= own.begin && t < own.end) {
      next[r] = first[t - own.begin];
      first[t - own.begin] = r;
    }
  }
  for (uint32_t t = own.begin; t < own.end; t++) {
    T* dx = static_cast<T*>(a.dx) + size_t(t) * a.cols;
    for (uint32_t i = 0; i < a.cols; i += W) {
      const int count = part(i, a.cols);
      V sum = zero();
      for (uint32_t r = first[t - own.begin]; r != RLV_NONE; r = next[r])
        sum = add(sum, load_part(static_cast<const T*>(a.dy) + size_t(r) * a.cols + i, count));
      store_part(dx + i, sum, count);
    }
  }
}

}  // namespace

void embed_fwd(Ctx& c, const args::EmbedFwd& a) {
  if (a.wdt == RLV_BF16)
    a.dt == RLV_BF16 ? embed<uint16_t, uint16_t>(c, a) : embed<float, uint16_t>(c, a);
  else
    a.dt == RLV_BF16 ? embed<uint16_t, float>(c, a) : embed<float, float>(c, a);
}

void embed_bwd(Ctx& c, const args::EmbedBwd& a) {
  if (a.wdt == RLV_BF16)
    a.dt == RLV_BF16 ? embed_gradient<uint16_t, true>(c, a) : embed_gradient<float, true>(c, a);
  else
    a.dt == RLV_BF16 ? embed_gradient<uint16_t, false>(c, a) : embed_gradient<float, false>(c, a);
}

void gather_rows(Ctx& c, const args::GatherRows& a) {
  const uint32_t* index = static_cast<const uint32_t*>(a.index);
  const size_t bytes = size_t(a.cols) * (a.dt == RLV_BF16 ? 2 : 4);
  const Range rows = split(a.rows, c);
  for (uint32_t r = rows.begin; r < rows.end; r++) {
    if (index[r] >= a.src_rows) {
      c.fail("gather_rows: index beyond the rows", index[r]);
      continue;
    }
    std::memmove(static_cast<char*>(a.y) + r * bytes, static_cast<const char*>(a.x) + index[r] * bytes,
                 bytes);
  }
}

void gather_rows_bwd(Ctx& c, const args::GatherRowsBwd& a) {
  a.dt == RLV_BF16 ? scatter<uint16_t>(c, a) : scatter<float>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
