#include "memory.h"

#include <unistd.h>
#include <algorithm>
#include <cstring>

namespace rlv {
namespace metal {

namespace {
constexpr uint64_t kHeapBytes = 64ull << 20;
constexpr uint64_t kLarge = kHeapBytes / 8;
// Tracked: the order of command buffers that touch the same memory is Metal's to keep.
constexpr MTL::ResourceOptions kOptions =
    MTL::ResourceStorageModeShared | MTL::ResourceHazardTrackingModeTracked;
// A GPU takes more than it recommends, at the cost of other programs, but never what the machine does not
// have: beyond that, work fails when it runs.
uint64_t limit_of(MTL::Device* device) {
  const double physical = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
  return uint64_t(std::min(1.5 * double(device->recommendedMaxWorkingSetSize()), 0.95 * physical));
}

}  // namespace

// Virtual machines have a GPU without shared heaps.
Memory::Memory(MTL::Device* device)
    : device_(device),
      limit_(limit_of(device)),
      heaps_work_(std::strstr(device->name()->utf8String(), "Paravirtual") == nullptr) {}

SharedPtr<MTL::Buffer> Memory::from_heap(uint64_t bytes) {
  if (!heaps_work_) return TransferPtr(device_->newBuffer(bytes, kOptions));
  for (auto& heap : heaps_)
    if (MTL::Buffer* buffer = heap->newBuffer(bytes, kOptions)) return TransferPtr(buffer);
  auto descriptor = TransferPtr(MTL::HeapDescriptor::alloc()->init());
  descriptor->setSize(kHeapBytes);
  descriptor->setStorageMode(MTL::StorageModeShared);
  descriptor->setHazardTrackingMode(MTL::HazardTrackingModeTracked);
  MTL::Heap* heap = device_->newHeap(descriptor.get());
  if (!heap) return TransferPtr(device_->newBuffer(bytes, kOptions));
  heaps_.push_back(TransferPtr(heap));
  return TransferPtr(heap->newBuffer(bytes, kOptions));
}

void* Memory::allocate(uint64_t bytes) {
  const Pool pool;
  std::lock_guard<std::mutex> lock(mutex_);
  SharedPtr<MTL::Buffer> buffer;
  if (device_->currentAllocatedSize() + bytes > limit_) return nullptr;
  if (bytes < kLarge) {
    buffer = from_heap(bytes);
    // Memory of a heap comes back as it was left; a buffer of its own comes zeroed.
    if (buffer) std::memset(buffer->contents(), 0, bytes);
  } else if (bytes <= device_->maxBufferLength()) {
    buffer = TransferPtr(device_->newBuffer(bytes, kOptions));
  }
  if (!buffer) return nullptr;
  void* p = buffer->contents();
  buffers_[reinterpret_cast<uintptr_t>(p)] = buffer;
  return p;
}

void Memory::release(void* p) {
  const Pool pool;
  std::lock_guard<std::mutex> lock(mutex_);
  buffers_.erase(reinterpret_cast<uintptr_t>(p));
}

Memory::Place Memory::find(const void* p) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto address = reinterpret_cast<uintptr_t>(p);
  auto it = buffers_.upper_bound(address);
  if (it == buffers_.begin()) return {};
  --it;
  const uint64_t offset = address - it->first;
  if (offset >= it->second->length()) return {};
  return {it->second.get(), offset};
}

}  // namespace metal
}  // namespace rlv
