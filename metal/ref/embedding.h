// Rows of a table by token id; rows of a matrix by index.
#pragma once
#include "value.h"

namespace rlv {
namespace ref {

// y[t] = table[ids[t]].
struct EmbedFwd {
  static Fields fields(const args::EmbedFwd& a) {
    return {output(a.y, a.dt, size_t(a.rows) * a.cols), other(), weight(a.table, a.wdt, a.vocab, a.cols)};
  }
  template <class T>
  static void run(const args::EmbedFwd& a, Values<T>& v, Errors& e) {
    const uint32_t* ids = static_cast<const uint32_t*>(a.ids);
    for (size_t t = 0; t < a.rows; t++) {
      if (ids[t] >= a.vocab) {
        e.fail("embed_fwd: id outside the vocabulary", ids[t]);
        continue;
      }
      for (size_t i = 0; i < a.cols; i++) v[0][t * a.cols + i] = v[2][ids[t] * size_t(a.cols) + i];
    }
  }
};

// y[r] = x[index[r]].
struct GatherRows {
  static Fields fields(const args::GatherRows& a) {
    return {output(a.y, a.dt, size_t(a.rows) * a.cols), input(a.x, a.dt, size_t(a.src_rows) * a.cols),
            other()};
  }
  template <class T>
  static void run(const args::GatherRows& a, Values<T>& v, Errors& e) {
    const uint32_t* index = static_cast<const uint32_t*>(a.index);
    for (size_t r = 0; r < a.rows; r++) {
      if (index[r] >= a.src_rows) {
        e.fail("gather_rows: index beyond the rows", index[r]);
        continue;
      }
      for (size_t i = 0; i < a.cols; i++) v[0][r * a.cols + i] = v[1][index[r] * size_t(a.cols) + i];
    }
  }
};

}  // namespace ref
}  // namespace rlv
