// Buffers behind handles: 18 bits of slot, 14 bits of generation. A stale handle is found, never followed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace rlv {

struct BufferSlot {
  void* data = nullptr;
  uint64_t bytes = 0;
  uint32_t generation = 1;
  // Where the pages of a mapped file begin and how many bytes they are; nullptr: memory of the device's own.
  void* pages = nullptr;
  uint64_t page_bytes = 0;
  bool live = false;
  std::string label;
};

class Handles {
 public:
  static constexpr uint32_t kSlotBits = 18;

  // 0 when all slots are taken. What throws leaves everything as it was.
  uint32_t add(void* data, uint64_t bytes, const char* label) {
    std::string name = label;
    if (free_.empty() && !grow()) return 0;
    const uint32_t slot = free_.back();
    free_.pop_back();
    BufferSlot& s = slots_[slot];
    s.data = data;
    s.bytes = bytes;
    s.live = true;
    s.label.swap(name);
    return s.generation << kSlotBits | slot;
  }

  BufferSlot* find(uint32_t handle) {
    const uint32_t slot = handle & ((1u << kSlotBits) - 1);
    if (slot >= slots_.size()) return nullptr;
    BufferSlot& s = slots_[slot];
    return s.live && s.generation == handle >> kSlotBits ? &s : nullptr;
  }

  // Label of a handle even if it is stale, for error texts.
  std::string describe(uint32_t handle) const {
    const uint32_t slot = handle & ((1u << kSlotBits) - 1);
    if (handle == 0) return "no buffer";
    if (slot >= slots_.size()) return "unknown buffer";
    const BufferSlot& s = slots_[slot];
    const bool current = s.live && s.generation == handle >> kSlotBits;
    return current ? s.label : "stale handle, once '" + s.label + "' or a later buffer";
  }

  void remove(uint32_t handle) noexcept {
    const uint32_t slot = handle & ((1u << kSlotBits) - 1);
    BufferSlot& s = slots_[slot];
    s.live = false;
    s.data = s.pages = nullptr;
    s.generation = s.generation == (1u << 14) - 1 ? 1 : s.generation + 1;
    free_.push_back(slot);  // there is room for all
  }

  template <class F>
  void each(F f) {
    for (BufferSlot& s : slots_)
      if (s.live) f(s);
  }

 private:
  // One slot more, and room in free_ for every slot.
  bool grow() {
    const size_t n = slots_.size();
    if (n >= (1u << kSlotBits)) return false;
    if (free_.capacity() <= n) free_.reserve(2 * n + 16);
    slots_.emplace_back();
    free_.push_back(uint32_t(n));
    return true;
  }

  std::vector<BufferSlot> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace rlv
