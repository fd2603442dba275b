// What an instrumented kernel may read and write, and whether the order of accesses is certain.
#include <algorithm>
#include "worker.h"

namespace soft {

namespace {

bool is_store(Access a) { return a == Access::kStore || a == Access::kAtomicStore; }
bool is_atomic(Access a) { return a == Access::kAtomicLoad || a == Access::kAtomicStore; }

// What an instruction for n bytes may rely on; 16 bytes may be two of 8.
size_t needed_alignment(size_t n) { return n == 2 || n == 4 || n == 8 ? n : n == 16 ? 8 : 1; }

bool inside(const char* p, size_t bytes, const void* begin, size_t size) {
  const size_t offset = size_t(p - static_cast<const char*>(begin));
  return offset < size && bytes <= size - offset;
}

std::string buffer_name(int index) { return "[[buffer(" + std::to_string(index) + ")]]"; }

}  // namespace

Moment Worker::now(bool device, bool atomic) const {
  const Simdgroup& g = simdgroups_[running_->thread / kLanes];
  Moment m;
  m.epoch = device ? epoch_ : group_number_;  // threadgroup memory begins anew with each threadgroup
  m.group = group_number_;
  m.phase = device ? phase_device_ : phase_threadgroup_;
  m.simd_phase = device ? g.phase_device : g.phase_threadgroup;
  m.thread = running_->thread;
  m.atomic = atomic;
  return m;
}

void Worker::access(const void* address, size_t bytes, Access access, uintptr_t caller) {
  const char* p = static_cast<const char*>(address);
  if (running_->owns(p) || bytes == 0) return;
  count_step(caller);
  if (size_t(p - arena_) < arena_top_) return access_arena(size_t(p - arena_), bytes, access, caller);
  for (size_t i = 0; i < buffers_.size(); i++) {
    // Kernels go on with the same buffer for a while.
    const size_t at = (last_buffer_ + i) % buffers_.size();
    const Buffer& b = buffers_[at];
    if (!inside(p, bytes, b.begin, b.bytes)) continue;
    last_buffer_ = at;
    return access_buffer(b, size_t(p - b.begin), bytes, access, caller);
  }
  if (inside(p, bytes, &context_, sizeof context_)) return;
  if (stacks_->contains(p))
    return report_here(Fault::kPrivate, caller, 0, "access to another thread's private memory");
  const Image* image = dispatch_->image;
  if (image && !is_store(access) && inside(p, bytes, image->begin, size_t(image->end - image->begin))) return;
  out_of_bounds(p, bytes, access, caller);
}

// Only instructions that rely on alignment come with `checked` addresses, see sanitizer.cpp.
void Worker::check_alignment(const void* address, size_t bytes, uintptr_t caller) {
  if (reinterpret_cast<uintptr_t>(address) % needed_alignment(bytes) == 0) return;
  report_here(Fault::kMisaligned, caller, 0, "misaligned access of " + std::to_string(bytes) + " bytes");
  abandon();
}

void Worker::access_arena(size_t offset, size_t bytes, Access access, uintptr_t caller) {
  const bool known = std::any_of(variables_.begin(), variables_.end(), [&](const Variable& v) {
    return offset >= v.offset && offset + bytes <= v.offset + v.bytes;
  });
  if (!known) out_of_bounds(arena_ + offset, bytes, access, caller);
  if (!check_) return;
  const Moment moment = now(false, is_atomic(access));
  if (is_store(access)) {
    const Conflict c = arena_shadow_->write(offset, bytes, moment);
    if (c.kind != Conflict::kNone) report_race(c, "threadgroup memory", caller);
    return;
  }
  if (!arena_shadow_->written(offset, bytes, group_number_))
    report_here(Fault::kUninitialised, caller, 0,
                "read of uninitialised threadgroup memory" + nearest_variable(offset));
  const Conflict c = arena_shadow_->read(offset, bytes, moment);
  if (c.kind != Conflict::kNone) report_race(c, "threadgroup memory", caller);
}

void Worker::access_buffer(const Buffer& b, size_t offset, size_t bytes, Access access, uintptr_t caller) {
  if (count_ && b.counted)
    traffic_.touch(reinterpret_cast<uint64_t>(b.begin) + offset, bytes, is_store(access));
  if (!b.shadow) return;
  const Moment moment = now(true, is_atomic(access));
  const Conflict c =
      is_store(access) ? b.shadow->write(offset, bytes, moment) : b.shadow->read(offset, bytes, moment);
  if (c.kind == Conflict::kNone) return;
  report_race(c, "device memory, " + buffer_name(b.index) + " at byte " + std::to_string(c.offset), caller);
}

void Worker::report_race(const Conflict& c, const std::string& place, uintptr_t caller) {
  const char* verb = c.kind == Conflict::kReadAfterWrite    ? "reads what "
                     : c.kind == Conflict::kWriteAfterWrite ? "overwrites what "
                                                            : "overwrites, while it may still read it, what ";
  const char* other = c.kind == Conflict::kWriteAfterRead ? " read" : " wrote";
  report_here(Fault::kRace, caller, 0,
              "data race on " + place + ": " + verb + thread_name(c.thread) +
                  (c.other_group ? " of another threadgroup" : "") + other + " without a barrier between");
}

std::string Worker::nearest_buffer(const char* p) const {
  const Buffer* best = nullptr;
  size_t least = SIZE_MAX;
  for (const Buffer& b : buffers_) {
    const char* end = b.begin + b.bytes;
    const size_t distance = p < b.begin ? size_t(b.begin - p) : p >= end ? size_t(p - end) : 0;
    if (distance >= least) continue;
    least = distance;
    best = &b;
  }
  if (reinterpret_cast<uintptr_t>(p) < 4096) return "; the pointer is null";
  if (!best) return "";
  return "; the nearest is " + buffer_name(best->index) + " of " + std::to_string(best->bytes) +
         " bytes, at its offset " + std::to_string(p - best->begin);
}

std::string Worker::nearest_variable(size_t offset) const {
  const Variable* best = nullptr;
  for (const Variable& v : variables_)
    if (!best || offset + 128 >= v.offset) best = &v;
  if (!best) return "";
  return " (variable of " + std::to_string(best->bytes) + " bytes" +
         (best->line > 0 ? " declared at line " + std::to_string(best->line) : "") + ", offset " +
         std::to_string(long(offset) - long(best->offset)) + ")";
}

void Worker::out_of_bounds(const char* p, size_t bytes, Access access, uintptr_t caller) {
  {
    const bool threadgroup = size_t(p - arena_) < arena_top_;
    std::string what = std::string("out-of-bounds ") + (is_store(access) ? "store" : "load") + " of " +
                       std::to_string(bytes) + " bytes";
    what += threadgroup ? " in threadgroup memory" + nearest_variable(size_t(p - arena_)) : nearest_buffer(p);
    report_here(Fault::kOutOfBounds, caller, 0, std::move(what));
  }
  abandon();
}

}  // namespace soft
