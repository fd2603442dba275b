// The blocks runtime, as far as code without Objective-C objects in its blocks needs it. Layouts and flags
// are those of clang's block ABI.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include "objc.h"

namespace {

constexpr int kReferences = 0xfffe;  // count in steps of 2
constexpr int kOnHeap = 1 << 24;     // counted
constexpr int kHasCopyDispose = 1 << 25;
constexpr int kGlobal = 1 << 28;
constexpr int kFieldIsBlock = 7, kFieldIsByref = 8;

struct Descriptor {
  unsigned long reserved, size;
  void (*copy)(void* to, const void* from);
  void (*dispose)(const void* literal);
};

struct Literal {
  void* isa;
  int flags, reserved;
  void* invoke;
  const Descriptor* descriptor;
};

// The box of a __block variable; `forwarding` leads to where it lives now.
struct Byref {
  void* isa;
  Byref* forwarding;
  int flags;
  unsigned int size;
  void (*keep)(Byref* to, Byref* from);
  void (*destroy)(Byref* box);
};

void count_up(int* flags) { __atomic_fetch_add(flags, 2, __ATOMIC_RELAXED); }

// True if that was the last reference.
bool count_down(int* flags) { return (__atomic_sub_fetch(flags, 2, __ATOMIC_ACQ_REL) & kReferences) == 0; }

// The box on the heap with one more reference. On its first way there the frame that made it keeps one as
// well.
Byref* copy_byref(Byref* box) {
  Byref* now = box->forwarding;
  if (now->flags & kOnHeap) {
    count_up(&now->flags);
    return now;
  }
  Byref* heap = static_cast<Byref*>(std::malloc(now->size));
  std::memcpy(static_cast<void*>(heap), now, now->size);
  heap->flags = (now->flags & ~kReferences) | kOnHeap | 4;
  heap->forwarding = heap;
  box->forwarding = heap;
  if (box->flags & kHasCopyDispose) heap->keep(heap, box);
  return heap;
}

void release_byref(Byref* box) {
  Byref* now = box->forwarding;
  if (!(now->flags & kOnHeap) || !count_down(&now->flags)) return;
  if (now->flags & kHasCopyDispose) now->destroy(now);
  std::free(now);
}

}  // namespace

extern "C" {

void* _NSConcreteStackBlock[32];
void* _NSConcreteGlobalBlock[32];
void* _NSConcreteMallocBlock[32];

void* _Block_copy(const void* literal) {
  Literal* block = static_cast<Literal*>(const_cast<void*>(literal));
  if (!block || (block->flags & kGlobal)) return block;
  if (block->flags & kOnHeap) {
    count_up(&block->flags);
    return block;
  }
  Literal* heap = static_cast<Literal*>(std::malloc(block->descriptor->size));
  std::memcpy(static_cast<void*>(heap), block, block->descriptor->size);
  heap->isa = _NSConcreteMallocBlock;
  heap->flags = (block->flags & ~kReferences) | kOnHeap | 2;
  if (heap->flags & kHasCopyDispose) heap->descriptor->copy(heap, block);
  return heap;
}

void _Block_release(const void* literal) {
  Literal* block = static_cast<Literal*>(const_cast<void*>(literal));
  if (!block || (block->flags & kGlobal) || !(block->flags & kOnHeap) || !count_down(&block->flags)) return;
  if (block->flags & kHasCopyDispose) block->descriptor->dispose(block);
  std::free(block);
}

void _Block_object_assign(void* to, const void* object, int kind) {
  void* source = const_cast<void*>(object);
  if (kind & kFieldIsByref)
    source = copy_byref(static_cast<Byref*>(source));
  else if ((kind & 0x7f) == kFieldIsBlock)
    source = _Block_copy(source);
  std::memcpy(to, &source, sizeof source);
}

void _Block_object_dispose(const void* object, int kind) {
  if (kind & kFieldIsByref)
    release_byref(static_cast<Byref*>(const_cast<void*>(object)));
  else if ((kind & 0x7f) == kFieldIsBlock)
    _Block_release(object);
}

}  // extern "C"

namespace soft {

Block::Block(const void* literal) : literal_(_Block_copy(literal)) {}
Block::~Block() { _Block_release(literal_); }
void* Block::invoke() const { return static_cast<const Literal*>(literal_)->invoke; }

}  // namespace soft
