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
        if (overlap && ((r.access | next[i].access) & kWrite)) return true;
      }
    }
    return false;
  }

  void note(const ByteRange* ranges, int count) {
    for (int i = 0; i < count; i++) noted_[ranges[i].buffer].push_back(ranges[i]);
  }

  void clear() { noted_.clear(); }

 private:
  std::unordered_map<uint32_t, std::vector<ByteRange>> noted_;
};

}  // namespace rlv
