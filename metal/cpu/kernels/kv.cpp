// Writing the key-value store. A page holds 16 positions: per kv head K as [D][16], then V as [16][D].
// Threads split (row, kv head) and (pair).
#include <cstring>
#include "../ctx.h"
#include "../vec.h"
#include "args.gen.hpp"

namespace rlv {
namespace RLV_ISA {

namespace {

template <class T>
inline void fetch_keys(const T* head, uint32_t dim) {
  const char* at = reinterpret_cast<const char*>(head);
  for (size_t i = 0; i < size_t(dim) * RLV_PAGE * sizeof(T); i += 64) __builtin_prefetch(at + i, 1);
}

template <class T>
void append(Ctx& c, const args::KvAppend& a) {
  const T* k = static_cast<const T*>(a.k);
  const T* v = static_cast<const T*>(a.v);
  T* kv = static_cast<T*>(a.kv);
  const auto* slots = static_cast<const uint32_t*>(a.slots);
  const uint32_t D = a.head_dim, K = a.kv_heads;
  const size_t per_head = size_t(D) * 2 * RLV_PAGE;
  const Range mine = split(a.rows, c);
  for (uint32_t t = mine.begin; t < mine.end; t++) {
    if (slots[t] == RLV_NONE) continue;
    const uint32_t page = slots[t] / RLV_PAGE, at = slots[t] % RLV_PAGE;
    if (page >= a.kv_pages) {
      c.fail("kv_append: slot outside the store", slots[t]);
      return;
    }
    for (uint32_t h = 0; h < K; h++) {
      T* head = kv + (size_t(page) * K + h) * per_head;
      const size_t from = (size_t(t) * K + h) * D;
      // One element of each line of K is written: the next head's lines come while this one's are filled.
      const uint32_t next = h + 1 < K ? slots[t] : t + 1 < mine.end ? slots[t + 1] : RLV_NONE;
      if (next != RLV_NONE && next / RLV_PAGE < a.kv_pages)
        fetch_keys(kv + (size_t(next / RLV_PAGE) * K + (h + 1) % K) * per_head, D);
      for (uint32_t d = 0; d < D; d++) head[size_t(d) * RLV_PAGE + at] = k[from + d];
      std::memmove(head + size_t(D) * RLV_PAGE + size_t(at) * D, v + from, D * sizeof(T));
    }
  }
}

}  // namespace

void kv_append(Ctx& c, const args::KvAppend& a) {
  a.dt == RLV_F32 ? append<float>(c, a) : append<uint16_t>(c, a);
}

void kv_copy(Ctx& c, const args::KvCopy& a) {
  const auto* pairs = static_cast<const uint32_t*>(a.pairs);
  const size_t bytes = size_t(a.kv_heads) * a.head_dim * 2 * RLV_PAGE * size(a.dt);
  const Range mine = split(a.count, c);
  for (uint32_t i = mine.begin; i < mine.end; i++) {
    const uint32_t from = pairs[2 * i], to = pairs[2 * i + 1];
    if (from >= a.kv_pages || to >= a.kv_pages) {
      c.fail("kv_copy: page outside the store", from >= a.kv_pages ? from : to);
      return;
    }
    std::memmove(static_cast<char*>(a.kv) + to * bytes, static_cast<const char*>(a.kv) + from * bytes, bytes);
  }
}

}  // namespace RLV_ISA
}  // namespace rlv
