// Memory that CPU and GPU share: small buffers from large heaps, large ones of their own.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>
#include "metal_cpp.h"

namespace rlv {
namespace metal {

class Memory {
 public:
  explicit Memory(MTL::Device* device);

  // Zeroed bytes with a stable address, nullptr when there are none left.
  void* allocate(uint64_t bytes);
  void release(void* p);

  struct Place {
    MTL::Buffer* buffer = nullptr;
    uint64_t offset = 0;
  };
  // The buffer that holds an address; no buffer if none does.
  Place find(const void* p) const;

 private:
  SharedPtr<MTL::Buffer> from_heap(uint64_t bytes);

  MTL::Device* device_;
  const uint64_t limit_;
  const bool heaps_work_;
  mutable std::mutex mutex_;
  std::map<uintptr_t, SharedPtr<MTL::Buffer>> buffers_;  // by address
  std::vector<SharedPtr<MTL::Heap>> heaps_;
};

}  // namespace metal
}  // namespace rlv
