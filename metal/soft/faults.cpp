// How the faults of a kernel are put into words.
#include <cstdio>
#include <map>
#include "worker.h"

namespace soft {

namespace {

constexpr size_t kMaxReports = 16;

std::string lanes_of(uint32_t count) { return std::to_string(count) + (count == 1 ? " lane" : " lanes"); }

// Whether the kernel continues after it.
bool goes_on(Fault f) {
  return f == Fault::kRace || f == Fault::kUninitialised || f == Fault::kPrivate ||
         f == Fault::kSimdArgument || f == Fault::kUndefined;
}

std::string call_name(Rendezvous kind, uint32_t operation) {
  if (kind == Rendezvous::kMatrix) return "simdgroup_multiply";
  if (kind == Rendezvous::kBarrier) return "simdgroup_barrier";
  return simd_operation_name(operation);
}

}  // namespace

std::string thread_name(uint32_t thread) {
  return "thread " + std::to_string(thread) + " (simdgroup " + std::to_string(thread / kLanes) + " lane " +
         std::to_string(thread % kLanes) + ")";
}

// `caller` may be any number that stands for the place when the line is known.
void Worker::report(Fault fault, uintptr_t caller, int line, uint32_t thread, std::string what) {
  if (goes_on(fault) && reports_.size() >= kMaxReports) return;
  if (!reported_.insert({fault, caller}).second) return;
  PendingReport p;
  p.report.what = std::move(what);
  p.report.line = uint32_t(line);
  p.report.thread = thread;
  for (int i = 0; i < 3; i++) p.report.threadgroup[i] = context_.threadgroup_position_in_grid[i];
  p.path.push_back(caller);
  for (uint32_t i = std::min(running_->call_depth, kCallDepth); i > 0; i--)
    p.path.push_back(running_->calls[i - 1]);
  reports_.push_back(std::move(p));
}

// Leaves the kernel for good. Nothing on the fiber's stack is destroyed: call it with nothing there.
void Worker::abandon() {
  failed_ = true;
  soft_switch_stack(&running_->stack_pointer, main_stack_);
  __builtin_unreachable();
}

void Worker::out_of_steps(uintptr_t caller, int line) {
  report_here(Fault::kEndless, caller, line,
              "endless loop? The threadgroup has used up its steps (RLV_SOFT_STEPS): memory accesses and "
              "rendezvous");
  abandon();
}

// All threads wait and none can go on.
void Worker::diverge() {
  {
    std::string what = "divergent synchronisation:";
    // Threads by line, and by call path within a line.
    std::map<std::pair<int, uint64_t>, uint32_t> places;
    for (uint32_t i = 0; i < at_barrier_count_; i++)
      places[{at_barrier_[i]->wait_line, at_barrier_[i]->wait_site}]++;
    if (at_barrier_count_ > 0)
      what += " " + std::to_string(at_barrier_count_) + " thread(s) wait at threadgroup_barrier";
    int line_before = -1;
    for (const auto& place : places) {
      const int line = place.first.first;
      what += " [line " + std::to_string(line) +
              (line == line_before ? " by another call or other flags" : "") + ": " +
              std::to_string(place.second) + "]";
      line_before = line;
    }
    uint32_t thread = at_barrier_count_ > 0 ? at_barrier_[0]->thread : running_->thread;
    int line = at_barrier_count_ > 0 ? at_barrier_[0]->wait_line : 0;
    for (uint32_t s = 0; s < context_.simdgroups_per_threadgroup; s++) {
      const Simdgroup& g = simdgroups_[s];
      if (g.arrived == 0) continue;
      what += "; simdgroup " + std::to_string(s) + ": " + std::to_string(g.arrived) + " of " +
              lanes_of(g.live) + " wait at " + call_name(g.kind, g.operation) + " [line " +
              std::to_string(g.line) + "]";
      if (line != 0) continue;
      line = g.line;
      thread = g.waiting[0]->thread;
    }
    if (finished_ > 0) what += "; " + std::to_string(finished_) + " thread(s) already returned";
    report(Fault::kDivergence, uintptr_t(line), line, thread, std::move(what));
  }
  abandon();
}

void Worker::diverge_simdgroup(const Simdgroup& g, Rendezvous kind, uint32_t operation, uintptr_t caller,
                               int line) {
  {
    const std::string here = call_name(kind, operation), there = call_name(g.kind, g.operation);
    std::string what = "divergent simdgroup operation: " + lanes_of(g.arrived) + " at " + there + " [line " +
                       std::to_string(g.line) + "], this one at " + here + " [line " + std::to_string(line) +
                       "]";
    if (here == there && line == g.line) what += " by another call or with other flags or types";
    report_here(Fault::kDivergence, caller, line, std::move(what));
  }
  abandon();
}

void Worker::undefined_behaviour(const char* what, bool fatal, uintptr_t caller, int line) {
  report_here(fatal ? Fault::kTrap : Fault::kUndefined, caller, line, what);
  if (fatal) abandon();
}

}  // namespace soft
