// Fibers: one per thread of a threadgroup that is under way, switched by the executor alone.
#pragma once
#include <cstddef>
#include <cstdint>

// Keeps the callee-saved registers on the running stack, stores its pointer in *save and goes on at `to`.
extern "C" void soft_switch_stack(void** save, void* to);

namespace soft {

constexpr size_t kStackBytes = 64 << 10, kGuardBytes = 16 << 10, kStackStride = kStackBytes + kGuardBytes;
constexpr uint32_t kCallDepth = 24;

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // lowest byte
  uint32_t thread = 0;    // in the threadgroup
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
  bool contains(const char* p) const { return size_t(p - begin_) < bytes_; }

 private:
  char* begin_ = nullptr;
  size_t bytes_ = 0;
  uint32_t usable_ = 0;  // stacks whose pages may be touched
};

}  // namespace soft
