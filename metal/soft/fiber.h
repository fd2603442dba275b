// Fibers: one per thread of a threadgroup that is under way, switched by the executor alone.
#pragma once
#include <cstddef>
#include <cstdint>

// Keeps the callee-saved registers on the running stack, stores its pointer in *save and goes on at `to`.
extern "C" void soft_switch_stack(void** save, void* to);

namespace soft {

// Guards are the largest page of any system.
constexpr size_t kStackBytes = 64 << 10, kGuardBytes = 64 << 10, kStackStride = kStackBytes + kGuardBytes;
constexpr uint32_t kCallDepth = 24;

struct Simdgroup;

struct alignas(64) Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;           // lowest byte
  Simdgroup* simdgroup = nullptr;  // of its thread
  uint32_t thread = 0;             // in the threadgroup
  uint32_t lane = 0, lane_bit = 0;
  uint32_t fragment = 0;  // the lane's place in 8x8 matrices
  uint64_t result = 0;    // where the lane's part of a matrix product goes
  int wait_line = 0;      // of the barrier it waits at
  uint64_t wait_site = 0;
  // Return addresses of the kernel's functions that are under way; only instrumented kernels tell.
  uint32_t call_depth = 0;
  uintptr_t calls[kCallDepth];

  bool owns(const char* p) const { return size_t(p - stack) < kStackBytes; }
};

// Address space for the stacks of one OS thread, each with a guard below it.
class Stacks {
 public:
  explicit Stacks(uint32_t count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  // Makes `fiber` the index-th one: the first switch to it calls entry(), which must not return.
  void prepare(uint32_t index, Fiber& fiber, void (*entry)());
  // Whether p lies in a stack that has been prepared, and not in a guard.
  bool contains(const char* p) const {
    const size_t offset = size_t(p - begin_);
    return offset < usable_ * kStackStride && offset % kStackStride >= kGuardBytes;
  }

 private:
  char* begin_ = nullptr;
  size_t bytes_ = 0;
  uint32_t usable_ = 0;  // stacks whose pages may be touched
};

}  // namespace soft
