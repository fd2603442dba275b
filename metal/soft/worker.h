// Runs threadgroups of one dispatch on one OS thread.
#pragma once
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>
#include "executor.h"
#include "fiber.h"
#include "shadow.h"
#include "simdgroup.h"
#include "symbols.h"
#include "traffic.h"

// Everything here is internal to the library; calls within need no indirection.
#pragma GCC visibility push(hidden)

#define SOFT_INLINE __attribute__((always_inline)) inline
// Called on seldom branches of inlined functions: does not make those save registers.
#define SOFT_SELDOM __attribute__((noinline, preserve_most))

namespace soft {

enum class Access { kLoad, kStore, kAtomicLoad, kAtomicStore };

// Kinds of faults: one report of a kind and a place is enough.
enum class Fault {
  kRace,
  kUninitialised,
  kOutOfBounds,
  kMisaligned,
  kPrivate,
  kDivergence,
  kSimdArgument,
  kMemoryLimit,
  kArgument,
  kEndless,
  kUndefined,
  kTrap,  // undefined behaviour after which the kernel cannot go on
};

// A report whose line may still have to be found from code addresses.
struct PendingReport {
  Report report;
  CallPath path;
};

class Worker {
 public:
  static Worker& of_this_thread();
  Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker();

  void begin(const Dispatch& dispatch, const Mode& mode);
  void run_group(uint32_t group);
  bool failed() const { return failed_; }
  // Hands over what begin() and run_group() have gathered.
  std::vector<PendingReport> take_reports() { return std::move(reports_); }
  Counts counts() const;

  // ---- calls from kernels; `caller` is the address they return to
  void threadgroup_barrier(uint32_t flags, uintptr_t caller, int line);
  void simdgroup_barrier(uint32_t flags, uintptr_t caller, int line);
  // In two steps, so that nothing need be kept on the stack in between: come to the rendezvous, which returns
  // when all lanes have; then take the result, see kernel_calls.cpp.
  void simd(uint32_t bits, uint32_t operation, uint32_t type, uint32_t argument, uintptr_t caller, int line);
  void multiply(uint64_t d, uint64_t a, uint64_t b, uint64_t c, uint32_t types, uintptr_t caller, int line);
  void multiply_floats(uint64_t d, uint64_t a, uint64_t b, uint64_t c, uintptr_t caller, int line);
  const Fiber& running() const { return *running_; }
  char* threadgroup_variable(int id, uint64_t bytes, uintptr_t caller, int line);
  uint64_t function_constant(int index, uintptr_t caller);
  bool function_constant_defined(int index) const;
  void check_argument(int index, uint64_t bytes, uintptr_t caller);

  bool instrumented() const { return check_ || count_; }
  bool counting() const { return count_; }
  void count_step(uintptr_t caller, int line = 0) {
    if (--steps_left_ == 0) out_of_steps(caller, line);
  }
  void access(const void* address, size_t bytes, Access access, uintptr_t caller);
  void check_alignment(const void* address, size_t bytes, uintptr_t caller);
  void enter_function(uintptr_t caller) {
    if (running_->call_depth < kCallDepth) running_->calls[running_->call_depth] = caller;
    running_->call_depth++;
  }
  void leave_function() { running_->call_depth -= running_->call_depth > 0; }
  // `line` 0: found from `caller`.
  void undefined_behaviour(const char* what, bool fatal, uintptr_t caller, int line);

 private:
  struct Variable {  // a stretch of the arena
    int id;          // -1: a threadgroup argument
    int line;
    size_t offset, bytes;
  };
  struct Buffer {
    const char* begin;
    size_t bytes;
    int index;
    Shadow* shadow;
    bool counted;
  };

  // ---- worker.cpp: scheduling
  static void fiber_main();
  void prepare_group(uint32_t group);
  void place_threads();
  void run_thread();
  void finish_thread();
  void assign_thread(Fiber* fiber);
  Fiber* start_fiber();
  Fiber* next_fiber();
  SOFT_SELDOM Fiber* pick_fiber();
  void block();
  uint32_t random(uint32_t bound);
  uint64_t site_of(const Fiber& fiber, uintptr_t caller, uint32_t detail) const;
  SOFT_SELDOM uint64_t site_in_calls(const Fiber& fiber, uint64_t site) const;
  void meet(Fiber& fiber, Rendezvous kind, uint32_t operation, uint32_t type, uintptr_t caller, int line);
  void complete(Simdgroup& group, uint32_t waiting);
  void add_variable(int id, int line, size_t bytes);
  size_t threadgroup_memory() const;

  // ---- faults.cpp
  [[noreturn]] void diverge();
  [[noreturn]] void diverge_simdgroup(const Simdgroup& group, Rendezvous kind, uint32_t operation,
                                      uintptr_t caller, int line);
  [[noreturn]] void out_of_steps(uintptr_t caller, int line);
  [[noreturn]] void abandon();
  void report(Fault fault, uintptr_t caller, int line, uint32_t thread, std::string what);
  void report_here(Fault fault, uintptr_t caller, int line, std::string what) {
    report(fault, caller, line, running_->thread, std::move(what));
  }

  // ---- memory_check.cpp
  Moment now(bool device, bool atomic) const;
  void access_arena(size_t offset, size_t bytes, Access access, uintptr_t caller);
  void access_buffer(const Buffer& buffer, size_t offset, size_t bytes, Access access, uintptr_t caller);
  void report_race(const Conflict& conflict, const std::string& place, uintptr_t caller);
  [[noreturn]] void out_of_bounds(const char* p, size_t bytes, Access access, uintptr_t caller);
  std::string nearest_buffer(const char* p) const;
  std::string nearest_variable(size_t offset) const;

  const Dispatch* dispatch_ = nullptr;
  // Rendezvous are what kernels do most: their fields come first.
  Fiber* running_ = nullptr;
  uint32_t ready_count_ = 0;
  bool shuffled_ = false;
  std::unique_ptr<Fiber*[]> ready_;  // fibers that may go on, at most kMaxThreads

  bool check_ = false, count_ = false, failed_ = false;
  uint64_t random_state_ = 0, steps_left_ = 0;
  Context context_;
  uint32_t epoch_ = 0, group_number_ = 0;

  // Threads of the group: started in order_, at position_ (x, y, z of 11, 11 and 10 bits).
  uint32_t threads_ = 0, started_ = 0, finished_ = 0, shape_[3] = {0, 0, 0}, origin_[3] = {0, 0, 0};
  std::vector<uint32_t> position_;
  std::vector<uint16_t> order_;

  void* main_stack_ = nullptr;
  std::unique_ptr<Stacks> stacks_;
  std::unique_ptr<Fiber[]> fibers_;
  uint32_t made_ = 0;  // of fibers_
  std::unique_ptr<Fiber*[]> idle_, at_barrier_;
  uint32_t idle_count_ = 0, at_barrier_count_ = 0;
  bool barrier_mixed_ = false;
  Simdgroup simdgroups_[kMaxThreads / kLanes];
  uint32_t phase_threadgroup_ = 1, phase_device_ = 1;

  char* arena_map_ = nullptr;
  char* arena_ = nullptr;
  size_t arena_top_ = 0;
  std::vector<Variable> variables_;
  std::unique_ptr<Shadow> arena_shadow_;

  std::vector<Buffer> buffers_;
  size_t last_buffer_ = 0;
  Traffic traffic_;
  Counts counts_;

  std::vector<PendingReport> reports_;
  std::set<std::pair<Fault, uint64_t>> reported_;
};

// The worker whose kernel runs on this OS thread, nullptr outside kernels.
extern __thread Worker* current_worker __attribute__((tls_model("initial-exec"), visibility("hidden")));

// Where in the program a call is made and what it asks for (16 bits).
SOFT_INLINE uint64_t Worker::site_of(const Fiber& fiber, uintptr_t caller, uint32_t detail) const {
  const uint64_t site = caller ^ uint64_t(detail) << 48;
  return __builtin_expect(fiber.call_depth == 0, 1) ? site : site_in_calls(fiber, site);
}

SOFT_INLINE void Worker::block() {
  Fiber* self = running_;
  Fiber* next = __builtin_expect(ready_count_ > 0 && !shuffled_, 1) ? ready_[--ready_count_] : pick_fiber();
  running_ = next;
  soft_switch_stack(&self->stack_pointer, next->stack_pointer);
}

SOFT_INLINE void Worker::meet(Fiber& fiber, Rendezvous kind, uint32_t operation, uint32_t type,
                              uintptr_t caller, int line) {
  Simdgroup& g = *fiber.simdgroup;
  const uint64_t site = site_of(fiber, caller, operation << 4 ^ type);
  if (g.arrived == 0) {
    g.kind = kind;
    g.operation = operation;
    g.type = type;
    g.line = line;
    g.site = site;
    g.mask = fiber.lane_bit;
  } else {
    if (__builtin_expect(g.site != site || g.line != line, 0))
      diverge_simdgroup(g, kind, operation, caller, line);
    g.mask |= fiber.lane_bit;
  }
  const uint32_t arrived = ++g.arrived;
  if (arrived == g.live) return complete(g, arrived - 1);
  g.waiting[arrived - 1] = &fiber;
  block();
}

SOFT_INLINE void Worker::simd(uint32_t bits, uint32_t operation, uint32_t type, uint32_t argument,
                              uintptr_t caller, int line) {
  Fiber& f = *running_;
  f.simdgroup->in[f.lane] = bits;
  f.simdgroup->argument[f.lane] = argument;
  meet(f, Rendezvous::kSimd, operation, type, caller, line);
}

// What most products are: all of float32, with an addend.
SOFT_INLINE void Worker::multiply_floats(uint64_t d, uint64_t a, uint64_t b, uint64_t c, uintptr_t caller,
                                         int line) {
  Fiber& f = *running_;
  Simdgroup& g = *f.simdgroup;
  std::memcpy(g.a + f.fragment, reinterpret_cast<const void*>(a), 2 * sizeof(float));
  std::memcpy(g.b + f.fragment, reinterpret_cast<const void*>(b), 2 * sizeof(float));
  std::memcpy(g.c + f.fragment, reinterpret_cast<const void*>(c), 2 * sizeof(float));
  f.result = d;
  meet(f, Rendezvous::kMatrix, 0, 0, caller, line);
}

// "thread 3 (simdgroup 0 lane 3)"
std::string thread_name(uint32_t thread);

}  // namespace soft

#pragma GCC visibility pop
