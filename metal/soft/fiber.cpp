#include "fiber.h"
#include <sys/mman.h>
#include <cstdio>
#include <cstdlib>

#if defined(__x86_64__)
asm(R"(
.text
.hidden soft_switch_stack
.globl soft_switch_stack
.type soft_switch_stack,@function
soft_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size soft_switch_stack, .-soft_switch_stack
)");
#elif defined(__aarch64__)
// Goes on with 0 as return address, so that a walk up the stack ends at the entry: others never read it.
asm(R"(
.text
.hidden soft_switch_stack
.globl soft_switch_stack
.type soft_switch_stack,%function
soft_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x9, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  mov x30, xzr
  ret x9
.size soft_switch_stack, .-soft_switch_stack
)");
#else
#error "no stack switch for this processor"
#endif

namespace soft {

namespace {

// What soft_switch_stack takes from a stack, in 8-byte words, and where it finds the address to go on at.
#if defined(__x86_64__)
constexpr size_t kSavedWords = 7, kReturnWord = 6;
#else
constexpr size_t kSavedWords = 20, kReturnWord = 11;
#endif

// Stacks begin at different cache lines of a page: 32 lanes at equal offsets would share a few cache sets.
constexpr size_t kCacheLine = 64, kPage = 4096, kColourLines = 13;

size_t colour(uint32_t index) { return index * kColourLines * kCacheLine % kPage; }

}  // namespace

Stacks::Stacks(uint32_t count) : bytes_(count * kStackStride + kGuardBytes) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* p = mmap(nullptr, bytes_, PROT_NONE, flags, -1, 0);
  if (p == MAP_FAILED) {
    std::fprintf(stderr, "software Metal: no address space for %u stacks\n", count);
    std::abort();
  }
  begin_ = static_cast<char*>(p);
}

Stacks::~Stacks() { munmap(begin_, bytes_); }

void Stacks::prepare(uint32_t index, Fiber& fiber, void (*entry)()) {
  fiber.stack = begin_ + kGuardBytes + index * kStackStride;
  if (index >= usable_) {
    if (mprotect(fiber.stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) {
      std::fprintf(stderr, "software Metal: no memory for stack %u\n", index);
      std::abort();
    }
    usable_ = index + 1;
  }
  // The entry finds the stack as after a call: 16-byte aligned but for the return address (x86-64).
  uintptr_t* top = reinterpret_cast<uintptr_t*>(fiber.stack + kStackBytes - colour(index) - 64);
  uintptr_t* words = top - 1 - kSavedWords;
#if defined(__aarch64__)
  words = top - kSavedWords;
#endif
  for (uintptr_t* w = words; w < top; w++) *w = 0;
  words[kReturnWord] = reinterpret_cast<uintptr_t>(entry);
  fiber.stack_pointer = words;
  fiber.call_depth = 0;
}

}  // namespace soft
