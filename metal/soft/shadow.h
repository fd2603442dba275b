// Who wrote and read each unit of memory last: what finds data races.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>
#include "executor.h"

namespace soft {

// An access in time. Barriers with the memory's flag begin the next phase of a threadgroup, or of a
// simdgroup.
struct Moment {
  uint32_t epoch = 0;  // of the dispatch; 0: no access yet
  uint32_t group = 0;  // number of the threadgroup, unique over dispatches
  uint64_t phase : 24, simd_phase : 24, thread : 10, atomic : 1;
  uint64_t many_threads : 1, many_simdgroups : 1, many_groups : 1;  // readers since

  Moment()
      : phase(0), simd_phase(0), thread(0), atomic(0), many_threads(0), many_simdgroups(0), many_groups(0) {}
};

struct Conflict {
  enum Kind { kNone, kReadAfterWrite, kWriteAfterWrite, kWriteAfterRead };
  Kind kind = kNone;
  size_t offset = 0;
  uint32_t thread = 0;  // the other one
  bool other_group = false;
};

class Shadow {
 public:
  explicit Shadow(size_t bytes);
  // Records an access and says whether it is ordered with those before it.
  Conflict read(size_t offset, size_t bytes, const Moment& now);
  Conflict write(size_t offset, size_t bytes, const Moment& now);
  // Whether threadgroup `group` has written all of it.
  bool written(size_t offset, size_t bytes, uint32_t group) const;

 private:
  struct Cell {
    Moment write, read;
  };
  // A stretch of memory; its unit is as small as its accesses were: 4, 2 or 1 byte.
  struct Chunk {
    std::unique_ptr<Cell[]> cells;
    uint8_t shift = 2;
  };
  Chunk& prepare(size_t offset, size_t bytes);
  template <typename Visit>
  Conflict visit(size_t offset, size_t bytes, Visit visit);

  std::vector<Chunk> chunks_;
};

}  // namespace soft
