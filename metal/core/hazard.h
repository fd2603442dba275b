// Which operations must wait for earlier ones: read-after-write, write-after-read and write-after-write by
// byte range, since the last barrier. Kept in one place for every device.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>
#include "args.gen.hpp"

namespace rlv {

struct ByteRange {
  uint32_t buffer;
  uint64_t begin, end;
  Access access;
  // A device that divides an operation by rows, the same rows of every such range to the same thread, names
  // their number and how they lie in the range; 0: divided otherwise.
  uint32_t rows = 0, layout = 0;
};

class Hazards {
 public:
  // Whether `next` conflicts with anything noted since the last clear().
  bool conflicts(const ByteRange* next, int count) const {
    for (int i = 0; i < count; i++) {
      const auto it = noted_.find(next[i].buffer);
      if (it == noted_.end()) continue;
      for (const ByteRange& r : it->second) {
        const bool overlap = r.begin < next[i].end && next[i].begin < r.end;
        if (overlap && ((r.access | next[i].access) & kWrite) && !same_rows(r, next[i])) return true;
      }
    }
    return false;
  }

  void note(const ByteRange* ranges, int count) {
    for (int i = 0; i < count; i++) noted_[ranges[i].buffer].push_back(ranges[i]);
  }

  void clear() { noted_.clear(); }

 private:
  // Each thread meets its own rows alone, in order.
  static bool same_rows(const ByteRange& a, const ByteRange& b) {
    return a.rows != 0 && a.rows == b.rows && a.layout == b.layout && a.begin == b.begin && a.end == b.end;
  }

  std::unordered_map<uint32_t, std::vector<ByteRange>> noted_;
};

}  // namespace rlv
