#include "worker.h"
#include <sys/mman.h>
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace soft {

__thread Worker* current_worker __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

constexpr size_t kArenaBytes = 128 << 10, kArenaGuard = kGuardBytes, kRedZone = 256;
constexpr size_t kShadowLimit = 16 << 20;  // larger buffers: bounds only
constexpr uint64_t kDefaultSteps = 200'000'000;

std::atomic<uint32_t> next_group_number{1};

size_t rounded_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Memory accesses and rendezvous that one threadgroup may take.
uint64_t step_budget() {
  const char* text = std::getenv("RLV_SOFT_STEPS");
  const uint64_t steps = text ? std::strtoull(text, nullptr, 10) : 0;
  return steps ? steps : kDefaultSteps;
}

struct Fragments {
  uint32_t of[kLanes];
  constexpr Fragments() : of() {
    for (uint32_t i = 0; i < kLanes; i++) of[i] = fragment_position(i);
  }
};
constexpr Fragments fragments;

uint32_t packed_position(uint32_t x, uint32_t y, uint32_t z) { return x | y << 11 | z << 22; }

}  // namespace

Worker& Worker::of_this_thread() {
  static thread_local std::unique_ptr<Worker> worker;
  if (!worker) worker = std::make_unique<Worker>();
  return *worker;
}

Worker::Worker()
    : ready_(std::make_unique<Fiber*[]>(kMaxThreads)),
      stacks_(std::make_unique<Stacks>(kMaxThreads)),
      fibers_(std::make_unique<Fiber[]>(kMaxThreads)),
      idle_(std::make_unique<Fiber*[]>(kMaxThreads)),
      at_barrier_(std::make_unique<Fiber*[]>(kMaxThreads)) {
  const size_t bytes = kArenaBytes + 2 * kArenaGuard;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) std::abort();
  arena_map_ = static_cast<char*>(p);
  arena_ = arena_map_ + kArenaGuard;
  mprotect(arena_map_, kArenaGuard, PROT_NONE);
  mprotect(arena_ + kArenaBytes, kArenaGuard, PROT_NONE);
}

Worker::~Worker() { munmap(arena_map_, kArenaBytes + 2 * kArenaGuard); }

// ---- a dispatch
// ---------------------------------------------------------------------------------------------

void Worker::begin(const Dispatch& dispatch, const Mode& mode) {
  dispatch_ = &dispatch;
  check_ = mode.check;
  count_ = mode.count;
  shuffled_ = mode.seed != 0;
  random_state_ = mode.seed * 0x9e3779b97f4a7c15ull + 0x1234567887654321ull;
  failed_ = false;
  epoch_ = std::max<uint32_t>(1, uint32_t(dispatch.epoch + 1));
  reports_.clear();
  reported_.clear();
  buffers_.clear();
  variables_.clear();
  last_buffer_ = 0;
  counts_ = Counts();
  traffic_.reset_totals();
  arena_top_ = kRedZone;
  if (check_ && !arena_shadow_) arena_shadow_ = std::make_unique<Shadow>(kArenaBytes);
  for (uint32_t i = 0; i < kMaxBuffers; i++) {
    const Binding& b = dispatch.buffers[i];
    context_.buffers[i] = b.base ? reinterpret_cast<uint64_t>(b.base + b.offset) : 0;
    context_.threadgroup_memory[i] = 0;
    if (const size_t bytes = dispatch.threadgroup_bytes[i]) {
      context_.threadgroup_memory[i] = reinterpret_cast<uint64_t>(arena_ + arena_top_);
      add_variable(-1, 0, bytes);
    }
    if (!b.base || !instrumented()) continue;
    Shadow* shadow = nullptr;
    if (check_ && b.shadow && b.bytes <= kShadowLimit) {
      if (!*b.shadow) b.shadow->reset(new Shadow(b.bytes));
      shadow = b.shadow->get();
    }
    buffers_.push_back({b.base, b.bytes, int(i), shadow, b.counted});
  }
  for (int i = 0; i < 3; i++) {
    context_.threadgroups_per_grid[i] = dispatch.groups[i];
    context_.threads_per_grid[i] = dispatch.threads[i];
  }
}

Counts Worker::counts() const {
  Counts c = counts_;
  c.loaded_bytes = double(traffic_.loaded_bytes());
  c.stored_bytes = double(traffic_.stored_bytes());
  c.threadgroup_memory = uint32_t(threadgroup_memory());
  return c;
}

size_t Worker::threadgroup_memory() const {
  size_t bytes = 0;
  for (const Variable& v : variables_) bytes += rounded_up(v.bytes, 16);
  return bytes;
}

// Callers check that the sum of variables is within Metal's limit; red zones have room beside it.
void Worker::add_variable(int id, int line, size_t bytes) {
  const size_t step = rounded_up(bytes, 16) + kRedZone;
  variables_.push_back({id, line, arena_top_, bytes});
  arena_top_ += step;
}

// ---- a threadgroup
// ------------------------------------------------------------------------------------------

void Worker::run_group(uint32_t group) {
  prepare_group(group);
  current_worker = this;
  running_ = start_fiber();
  soft_switch_stack(&main_stack_, running_->stack_pointer);
  current_worker = nullptr;
  running_ = nullptr;
  if (failed_) {  // fibers hang in the middle of kernels
    made_ = 0;
    idle_count_ = 0;
  }
}

void Worker::prepare_group(uint32_t group) {
  const Dispatch& d = *dispatch_;
  const uint32_t at[3] = {group % d.groups[0], group / d.groups[0] % d.groups[1],
                          group / (d.groups[0] * d.groups[1])};
  uint32_t shape[3];
  for (int i = 0; i < 3; i++) {
    const uint32_t nominal = d.threads_per_group[i], first = at[i] * nominal;
    context_.threadgroup_position_in_grid[i] = at[i];
    origin_[i] = first;
    shape[i] = d.exact_threads ? std::min(nominal, d.threads[i] - first) : nominal;
    context_.threads_per_threadgroup[i] = shape[i];
  }
  if (!std::equal(shape, shape + 3, shape_)) {
    std::copy(shape, shape + 3, shape_);
    place_threads();
  }
  context_.simdgroups_per_threadgroup = (threads_ + kLanes - 1) / kLanes;
  if (shuffled_)
    for (uint32_t i = threads_; i > 1; i--) std::swap(order_[i - 1], order_[random(i)]);
  static const uint64_t steps = step_budget();
  steps_left_ = steps;
  started_ = finished_ = 0;
  ready_count_ = at_barrier_count_ = 0;
  phase_threadgroup_ = phase_device_ = 1;
  for (uint32_t s = 0; s * kLanes < threads_; s++) {
    Simdgroup& g = simdgroups_[s];
    g.live = std::min(kLanes, threads_ - s * kLanes);
    g.arrived = g.mask = 0;
    g.phase_threadgroup = g.phase_device = 1;
  }
  std::memset(arena_, 0xff, arena_top_);
  if (check_) group_number_ = next_group_number.fetch_add(1, std::memory_order_relaxed);
  if (count_) traffic_.begin_group();
  counts_.groups++;
  counts_.threads += threads_;
}

void Worker::place_threads() {
  threads_ = shape_[0] * shape_[1] * shape_[2];
  position_.clear();
  for (uint32_t z = 0; z < shape_[2]; z++)
    for (uint32_t y = 0; y < shape_[1]; y++)
      for (uint32_t x = 0; x < shape_[0]; x++) position_.push_back(packed_position(x, y, z));
  order_.resize(threads_);
  for (uint32_t i = 0; i < threads_; i++) order_[i] = uint16_t(i);
}

// ---- threads
// ------------------------------------------------------------------------------------------------

inline void Worker::assign_thread(Fiber* fiber) {
  const uint32_t thread = order_[started_++], lane = thread % kLanes;
  fiber->thread = thread;
  fiber->simdgroup = &simdgroups_[thread / kLanes];
  fiber->lane = lane;
  fiber->lane_bit = 1u << lane;
  fiber->fragment = fragments.of[lane];
}

inline void Worker::run_thread() {
  const uint32_t t = running_->thread, packed = position_[t];
  const uint32_t at[3] = {packed & 0x7ff, packed >> 11 & 0x7ff, packed >> 22};
  for (int i = 0; i < 3; i++) {
    context_.thread_position_in_threadgroup[i] = at[i];
    context_.thread_position_in_grid[i] = origin_[i] + at[i];
  }
  context_.thread_index_in_threadgroup = t;
  context_.thread_index_in_simdgroup = t % kLanes;
  context_.simdgroup_index_in_threadgroup = t / kLanes;
  running_->call_depth = 0;
  dispatch_->trampoline(&context_);
}

// A fiber runs threads one after the other; one that never waits is a turn of this loop.
void Worker::fiber_main() {
  for (;;) {
    current_worker->run_thread();
    current_worker->finish_thread();
  }
}

void Worker::finish_thread() {
  Fiber* self = running_;
  Simdgroup& g = *self->simdgroup;
  g.live--;
  if (g.arrived > 0 && g.arrived == g.live) complete(g, g.arrived);
  finished_++;
  if (ready_count_ == 0 && started_ < threads_) return assign_thread(self);
  idle_[idle_count_++] = self;
  if (finished_ == threads_) {
    soft_switch_stack(&self->stack_pointer, main_stack_);
    return;
  }
  Fiber* next = next_fiber();
  if (!next) diverge();
  if (next == self) return;
  running_ = next;
  soft_switch_stack(&self->stack_pointer, next->stack_pointer);
}

Fiber* Worker::start_fiber() {
  Fiber* fiber;
  if (idle_count_ > 0) {
    fiber = idle_[--idle_count_];
  } else {
    fiber = &fibers_[made_];
    stacks_->prepare(made_++, *fiber, &Worker::fiber_main);
  }
  assign_thread(fiber);
  return fiber;
}

Fiber* Worker::next_fiber() {
  const bool fresh = started_ < threads_;
  if (ready_count_ > 0 && !(fresh && shuffled_ && random(2))) {
    if (shuffled_) std::swap(ready_[random(ready_count_)], ready_[ready_count_ - 1]);
    return ready_[--ready_count_];
  }
  return fresh ? start_fiber() : nullptr;
}

Fiber* Worker::pick_fiber() {
  Fiber* next = next_fiber();
  if (!next) diverge();
  return next;
}

uint32_t Worker::random(uint32_t bound) {
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return uint32_t((random_state_ >> 32) * bound >> 32);
}

// ---- rendezvous
// ---------------------------------------------------------------------------------------------

uint64_t Worker::site_in_calls(const Fiber& fiber, uint64_t site) const {
  for (uint32_t i = 0; i < std::min(fiber.call_depth, kCallDepth); i++)
    site = (site ^ fiber.calls[i]) * 0x9e3779b97f4a7c15ull;
  return site;
}

__attribute__((noinline)) void Worker::complete(Simdgroup& g, uint32_t waiting) {
  count_step(g.site, g.line);
  if (g.kind == Rendezvous::kMatrix) {
    compute_matrix(g);
    counts_.matrix_ops++;
    if (g.mask != ~0u && check_)
      report(Fault::kSimdArgument, g.site, g.line,
             uint32_t(&g - simdgroups_) * kLanes + __builtin_ctz(g.mask),
             "simdgroup_multiply with inactive lanes");
  } else if (g.kind == Rendezvous::kSimd) {
    const SimdFault fault = compute_simd(g);
    counts_.simd_ops++;
    if (fault.what && check_)
      report(Fault::kSimdArgument, g.site, g.line, uint32_t(&g - simdgroups_) * kLanes + fault.lane,
             std::string(simd_operation_name(g.operation)) + ": " + fault.what);
  } else {
    counts_.barriers++;
    if (g.operation & 1) g.phase_device++;
    if (g.operation & 2) g.phase_threadgroup++;
  }
  std::memcpy(ready_.get() + ready_count_, g.waiting, waiting * sizeof(Fiber*));
  ready_count_ += waiting;
  g.arrived = 0;
}

void Worker::simdgroup_barrier(uint32_t flags, uintptr_t caller, int line) {
  meet(*running_, Rendezvous::kBarrier, flags & 7, 0, caller, line);
}

void Worker::multiply(uint64_t d, uint64_t a, uint64_t b, uint64_t c, uint32_t types, uintptr_t caller,
                      int line) {
  Fiber& f = *running_;
  Simdgroup& g = *f.simdgroup;
  load_fragment(g.a + f.fragment, a, types >> 4 & 15);
  load_fragment(g.b + f.fragment, b, types >> 8 & 15);
  if (c)
    load_fragment(g.c + f.fragment, c, types >> 12 & 15);
  else
    g.c[f.fragment] = g.c[f.fragment + 1] = 0.0f;
  meet(f, Rendezvous::kMatrix, 0, types, caller, line);
  store_fragment(d, g.d + f.fragment, types & 15);
}

void Worker::threadgroup_barrier(uint32_t flags, uintptr_t caller, int line) {
  Fiber* self = running_;
  self->wait_line = line;
  self->wait_site = site_of(*self, caller, flags & 7);
  if (at_barrier_count_ == 0)
    barrier_mixed_ = false;
  else if (at_barrier_[0]->wait_site != self->wait_site || at_barrier_[0]->wait_line != line)
    barrier_mixed_ = true;
  at_barrier_[at_barrier_count_++] = self;
  if (at_barrier_count_ < threads_) return block();
  if (barrier_mixed_) diverge();
  count_step(caller, line);
  counts_.barriers += context_.simdgroups_per_threadgroup;
  if (flags & 1) phase_device_++;
  if (flags & 2) phase_threadgroup_++;
  const uint32_t waiting = at_barrier_count_ - 1;
  std::memcpy(ready_.get() + ready_count_, at_barrier_.get(), waiting * sizeof(Fiber*));
  ready_count_ += waiting;
  at_barrier_count_ = 0;
}

// ---- arguments
// ----------------------------------------------------------------------------------------------

char* Worker::threadgroup_variable(int id, uint64_t bytes, uintptr_t caller, int line) {
  for (const Variable& v : variables_)
    if (v.id == id) return arena_ + v.offset;
  const size_t total = threadgroup_memory() + rounded_up(bytes, 16), offset = arena_top_;
  if (total > kThreadgroupMemory || offset + rounded_up(bytes, 16) + kRedZone > kArenaBytes) {
    report_here(Fault::kMemoryLimit, caller, line,
                "threadgroup memory of " + std::to_string(total) + " bytes, the limit is " +
                    std::to_string(kThreadgroupMemory));
    abandon();
  }
  add_variable(id, line, bytes);
  std::memset(arena_ + offset, 0xff, arena_top_ - offset);
  return arena_ + offset;
}

bool Worker::function_constant_defined(int index) const {
  return dispatch_->constants && dispatch_->constants->count(index);
}

uint64_t Worker::function_constant(int index, uintptr_t caller) {
  if (!function_constant_defined(index)) {
    report_here(Fault::kArgument, caller, 0,
                "function constant " + std::to_string(index) + " is used but not set");
    abandon();
  }
  return dispatch_->constants->at(index);
}

void Worker::check_argument(int index, uint64_t bytes, uintptr_t caller) {
  if (index < 0) return;
  const Binding& b = dispatch_->buffers[index];
  const size_t bound = b.base ? b.bytes - b.offset : 0;
  if (bound >= bytes) return;
  report_here(Fault::kArgument, caller, 0,
              "[[buffer(" + std::to_string(index) + ")]] has " + std::to_string(bound) +
                  " bytes, the kernel's argument needs " + std::to_string(bytes));
  abandon();
}

}  // namespace soft
