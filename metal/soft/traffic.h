// Counts the distinct 32-byte sectors of device memory that a threadgroup touches.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace soft {

class Traffic {
 public:
  static constexpr uint64_t kSector = 32;
  void begin_group();
  void touch(uint64_t address, uint64_t bytes, bool store);
  uint64_t loaded_bytes() const { return loaded_ * kSector; }
  uint64_t stored_bytes() const { return stored_ * kSector; }
  void reset_totals() { loaded_ = stored_ = 0; }

 private:
  struct Entry {
    uint64_t sector = 0;
    uint32_t generation = 0;  // of the threadgroup that made it
    uint32_t seen = 0;        // kLoad, kStore
  };
  Entry& find(uint64_t sector);
  void grow();

  std::vector<Entry> entries_;  // open addressing, a power of two
  uint32_t generation_ = 0, used_ = 0;
  uint64_t loaded_ = 0, stored_ = 0;
};

}  // namespace soft
