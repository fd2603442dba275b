// Softmax attention over packed rows with shared prefixes and cached pages, and the cache itself.
//
// A page holds 16 positions of all kv heads: [kv_head]{ K: [head_dim][16], V: [16][head_dim] }.
#pragma once
#include "value.h"

namespace rlv {
namespace ref {

// One key and its value: key[d*stride], value[d].
template <class T>
struct KeyValue {
  const T *key, *value;
  size_t stride;
};

// o = sum of softmax(scale*q.k)*v over `keys`; returns log sum exp(scale*q.k).
template <class T>
T attend(const T* q, const std::vector<KeyValue<T>>& keys, size_t dim, double scale, T* o) {
  std::vector<T> scores;
  double max = -INFINITY;
  for (const KeyValue<T>& kv : keys) {
    T score = 0;
    for (size_t d = 0; d < dim; d++) score += q[d] * kv.key[d * kv.stride];
    scores.push_back(score * scale);
    max = std::fmax(max, real_part(scores.back()));
  }
  T sum = 0;
  for (T& score : scores) sum += score = std::exp(score - max);
  for (size_t d = 0; d < dim; d++) {
    T value = 0;
    for (size_t j = 0; j < keys.size(); j++) value += scores[j] * keys[j].value[d];
    o[d] = value / sum;
  }
  return std::log(sum) + max;
}

struct Segment {
  uint32_t start, len, parent, pos0, page_start, cached_len, root, reserved;
};

// Elements of a page up to a kv head.
inline size_t page_offset(size_t page, size_t kv_heads, size_t head, size_t dim) {
  return (page * kv_heads + head) * 2 * RLV_PAGE * dim;
}

template <class T>
KeyValue<T> cached(const T* kv, size_t page, size_t slot, size_t kv_heads, size_t head, size_t dim) {
  const T* base = kv + page_offset(page, kv_heads, head, dim);
  return {base + slot, base + (RLV_PAGE + slot) * dim, RLV_PAGE};
}

// A token attends to the cached prefix of its root, to all tokens of its ancestors, and to its own segment up
// to itself. lse = log sum exp(scale*q.k) per token and head.
struct AttnFwd {
  static Fields fields(const args::AttnFwd& a) {
    const size_t q = size_t(a.rows) * a.heads * a.head_dim, k = size_t(a.rows) * a.kv_heads * a.head_dim;
    return {output(a.o, a.dt, q),
            output(a.lse, RLV_F32, size_t(a.rows) * a.heads),
            input(a.q, a.dt, q),
            input(a.k, a.dt, k),
            input(a.v, a.dt, k),
            other(),
            input(a.kv, a.dt, size_t(a.kv_pages) * a.kv_heads * a.head_dim * 2 * RLV_PAGE),
            other()};
  }

  template <class T>
  static void run(const args::AttnFwd& a, Values<T>& v, Errors& e) {
    if (a.kv_heads == 0 || a.heads % a.kv_heads)
      return e.fail("attn_fwd: heads must be a multiple of kv heads", a.kv_heads);
    const Segment* segs = static_cast<const Segment*>(a.segs);
    for (uint32_t s = 0; s < a.n_segs; s++) {
      if (!valid(a, segs, s, e)) return;
      for (uint32_t head = 0; head < a.heads; head++) {
        const size_t kv_head = head / (a.heads / a.kv_heads);
        std::vector<KeyValue<T>> keys;
        add_prefix(a, v, segs[segs[s].root], kv_head, keys);
        add_ancestors(a, v, segs, segs[s].parent, kv_head, keys);
        for (uint32_t t = segs[s].start; t < segs[s].start + segs[s].len; t++) {
          keys.push_back(own(a, v, t, kv_head));
          const size_t at = size_t(t) * a.heads + head;
          const T lse = attend(v[2] + at * a.head_dim, keys, a.head_dim, a.scale, v[0] + at * a.head_dim);
          if (v[1]) v[1][at] = lse;
        }
      }
    }
  }

 private:
  template <class T>
  static KeyValue<T> own(const args::AttnFwd& a, Values<T>& v, size_t row, size_t kv_head) {
    const size_t at = (row * a.kv_heads + kv_head) * a.head_dim;
    return {v[3] + at, v[4] + at, 1};
  }

  template <class T>
  static void add_prefix(const args::AttnFwd& a, Values<T>& v, const Segment& root, size_t kv_head,
                         std::vector<KeyValue<T>>& keys) {
    const uint32_t* pages = static_cast<const uint32_t*>(a.pages);
    for (uint32_t j = 0; j < root.cached_len; j++)
      keys.push_back(
          cached(v[6], pages[root.page_start + j / RLV_PAGE], j % RLV_PAGE, a.kv_heads, kv_head, a.head_dim));
  }

  // From the root downwards.
  template <class T>
  static void add_ancestors(const args::AttnFwd& a, Values<T>& v, const Segment* segs, uint32_t s,
                            size_t kv_head, std::vector<KeyValue<T>>& keys) {
    if (s == RLV_NONE) return;
    add_ancestors(a, v, segs, segs[s].parent, kv_head, keys);
    for (uint32_t t = segs[s].start; t < segs[s].start + segs[s].len; t++)
      keys.push_back(own(a, v, t, kv_head));
  }

  static bool valid(const args::AttnFwd& a, const Segment* segs, uint32_t s, Errors& e) {
    const Segment& seg = segs[s];
    if (uint64_t(seg.start) + seg.len > a.rows) e.fail("attn_fwd: segment beyond the rows", s);
    if (seg.parent != RLV_NONE && seg.parent >= s) e.fail("attn_fwd: parent after its segment", s);
    if (seg.root > s) e.fail("attn_fwd: root after its segment", s);
    if (seg.cached_len > 0) {
      const uint32_t* pages = static_cast<const uint32_t*>(a.pages);
      const uint64_t used = ceil_div(seg.cached_len, RLV_PAGE);
      if (!a.kv || !pages || uint64_t(seg.page_start) + used > a.n_pages)
        e.fail("attn_fwd: cached prefix beyond the pages", s);
      else
        for (uint64_t p = 0; p < used; p++)
          if (pages[seg.page_start + p] >= a.kv_pages)
            e.fail("attn_fwd: page outside the store", pages[seg.page_start + p]);
    }
    return e.first.empty();
  }
};

// One query per sequence over the first lens[b] positions of its page table [batch, max_pages].
inline void attn_decode(const args::AttnDecode& a, Errors& e) {
  if (a.kv_heads == 0 || a.heads % a.kv_heads)
    return e.fail("attn_decode: heads must be a multiple of kv heads", a.kv_heads);
  const uint32_t* table = static_cast<const uint32_t*>(a.table);
  const uint32_t* lens = static_cast<const uint32_t*>(a.lens);
  const size_t dim = a.head_dim, queries = size_t(a.batch) * a.heads * dim;
  Values<double> v({output(a.o, a.dt, queries), input(a.q, a.dt, queries),
                    input(a.kv, a.dt, page_offset(a.kv_pages, a.kv_heads, 0, dim))});
  for (size_t b = 0; b < a.batch; b++) {
    const uint32_t* pages = table + b * a.max_pages;
    if (lens[b] == 0 || ceil_div(lens[b], RLV_PAGE) > a.max_pages) {
      e.fail("attn_decode: length does not fit the page table", uint32_t(b));
      continue;
    }
    bool valid = true;
    for (uint32_t p = 0; p < ceil_div(lens[b], RLV_PAGE); p++) valid = valid && pages[p] < a.kv_pages;
    if (!valid) {
      e.fail("attn_decode: page outside the store", uint32_t(b));
      continue;
    }
    for (size_t head = 0; head < a.heads; head++) {
      std::vector<KeyValue<double>> keys;
      for (uint32_t j = 0; j < lens[b]; j++)
        keys.push_back(cached<double>(v[2], pages[j / RLV_PAGE], j % RLV_PAGE, a.kv_heads,
                                      head / (a.heads / a.kv_heads), dim));
      const size_t at = (b * a.heads + head) * dim;
      attend<double>(v[1] + at, keys, dim, a.scale, v[0] + at);
      for (size_t d = 0; d < dim; d++) write(a.o, a.dt, at + d, v[0][at + d]);
    }
  }
}

// Row t goes to slot slots[t] = page*16 + position%16; NONE skips it.
inline void kv_append(const args::KvAppend& a, Errors& e) {
  const uint32_t* slots = static_cast<const uint32_t*>(a.slots);
  for (size_t t = 0; t < a.rows; t++) {
    if (slots[t] == RLV_NONE) continue;
    const size_t page = slots[t] / RLV_PAGE, slot = slots[t] % RLV_PAGE;
    if (page >= a.kv_pages) {
      e.fail("kv_append: slot outside the store", slots[t]);
      continue;
    }
    for (size_t head = 0; head < a.kv_heads; head++)
      for (size_t d = 0; d < a.head_dim; d++) {
        const size_t from = (t * a.kv_heads + head) * a.head_dim + d;
        const size_t to = page_offset(page, a.kv_heads, head, a.head_dim);
        write(a.kv, a.dt, to + d * RLV_PAGE + slot, read(a.k, a.dt, from));
        write(a.kv, a.dt, to + (RLV_PAGE + slot) * a.head_dim + d, read(a.v, a.dt, from));
      }
  }
}

// pairs[i] = (source page, destination page).
inline void kv_copy(const args::KvCopy& a, Errors& e) {
  const uint32_t* pairs = static_cast<const uint32_t*>(a.pairs);
  const size_t bytes = page_offset(1, a.kv_heads, 0, a.head_dim) * size(a.dt);
  char* kv = static_cast<char*>(a.kv);
  for (size_t i = 0; i < a.count; i++) {
    const size_t from = pairs[2 * i], to = pairs[2 * i + 1];
    if (from >= a.kv_pages || to >= a.kv_pages)
      e.fail("kv_copy: page outside the store", uint32_t(from >= a.kv_pages ? from : to));
    else
      std::memmove(kv + to * bytes, kv + from * bytes, bytes);
  }
}

}  // namespace ref
}  // namespace rlv
