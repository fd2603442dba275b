#include "executor.h"
#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <numeric>
#include "helpers.h"
#include "worker.h"

namespace soft {

namespace {

constexpr uint32_t kMaxWorkers = 16;
// Waking helpers pays from this much work on.
constexpr double kWorthHelp = 50e-6;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// GPUs of Apple take float32 subnormals for zero and make none.
class FlushSubnormals {
 public:
  FlushSubnormals() : before_(control()) { set_control(before_ | kFlush); }
  ~FlushSubnormals() { set_control(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kFlush = 0x8040;  // flush to zero, denormals are zero
  static uint64_t control() { return __builtin_ia32_stmxcsr(); }
  static void set_control(uint64_t value) { __builtin_ia32_ldmxcsr(uint32_t(value)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlush = 1 << 24;  // FZ
  static uint64_t control() {
    uint64_t value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set_control(uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
#endif
  const uint64_t before_;
};

// The i-th threadgroup to run.
class GroupOrder {
 public:
  GroupOrder(const Dispatch& d, const Mode& mode) : total_(d.groups[0] * d.groups[1] * d.groups[2]) {
    runs_ = mode.sample_groups == 0 ? total_ : std::min(total_, mode.sample_groups);
    // The golden section: no dimension of the grid is hit in step.
    stride_ = std::max(1u, uint32_t(total_ * 0.6180339887498949));
    while (total_ > 0 && std::gcd(stride_, total_) != 1) stride_++;
    if (mode.seed == 0) return;
    first_ = uint32_t(mode.seed * 0x9e3779b97f4a7c15ull >> 33) % runs_;
    step_ = 1 + uint32_t(mode.seed * 0xd1342543de82ef95ull >> 33) % runs_;
    while (std::gcd(step_, runs_) != 1) step_++;
  }
  uint32_t total() const { return total_; }
  uint32_t runs() const { return runs_; }
  uint32_t at(uint32_t i) const {
    const uint64_t place = (first_ + uint64_t(step_) * i) % runs_;
    return uint32_t(runs_ == total_ ? place : (total_ / 2 + place * stride_) % total_);
  }

 private:
  uint32_t total_, runs_ = 0, first_ = 0, step_ = 1, stride_ = 1;
};

class Execution {
 public:
  Execution(const Dispatch& dispatch, const Mode& mode)
      : dispatch_(dispatch), mode_(mode), order_(dispatch, mode) {}

  Outcome run() {
    if (order_.total() == 0) return {};
    const uint32_t most = std::min({mode_.workers, order_.runs(), kMaxWorkers});
    const uint32_t helpers = mode_.check || most < 2 ? 0 : most - 1;
    Helpers::Job job;
    job.body = [this] { work(nullptr, 0); };
    work(&job, helpers);
    if (helped_) Helpers::instance().withdraw(job);
    return finish();
  }

 private:
  // Runs threadgroups until none is left; the caller of execute() also decides when to ask for help.
  void work(Helpers::Job* job, uint32_t helpers) {
    const FlushSubnormals flush;
    Worker& worker = Worker::of_this_thread();
    worker.begin(dispatch_, mode_);
    const double start = helpers > 0 ? seconds() : 0;
    for (uint32_t i, done = 0; !failed_ && (i = next_++) < order_.runs();) {
      worker.run_group(order_.at(i));
      if (worker.failed()) failed_ = true;
      done++;
      if (helpers == 0 || helped_ || i + 2 >= order_.runs()) continue;
      const double each = (seconds() - start) / done;
      if (each * (order_.runs() - i - 1) < kWorthHelp) continue;
      helped_ = true;
      Helpers::instance().offer(*job, std::min(helpers, order_.runs() - i - 1));
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    for (PendingReport& r : worker.take_reports()) reports_.push_back(std::move(r));
    counts_ += worker.counts();
  }

  Outcome finish() {
    Outcome out;
    out.aborted = failed_;
    out.counts = counts_;
    if (order_.runs() < order_.total()) {
      const double scale = double(order_.total()) / order_.runs();
      Counts& c = out.counts;
      for (double* n :
           {&c.loaded_bytes, &c.stored_bytes, &c.matrix_ops, &c.simd_ops, &c.barriers, &c.groups, &c.threads})
        *n *= scale;
    }
    find_lines();
    for (PendingReport& r : reports_) out.reports.push_back(std::move(r.report));
    return out;
  }

  // Files, and the lines that are not known yet.
  void find_lines() {
    if (!dispatch_.image || reports_.empty()) return;
    std::vector<CallPath> paths;
    for (PendingReport& r : reports_) paths.push_back(std::move(r.path));
    const std::vector<SourcePlace> places = source_places(*dispatch_.image, paths);
    for (size_t i = 0; i < places.size(); i++) {
      Report& r = reports_[i].report;
      if (r.line != 0 && r.line != places[i].line) continue;
      r.line = places[i].line;
      r.file = places[i].file;
    }
  }

  const Dispatch& dispatch_;
  const Mode& mode_;
  const GroupOrder order_;
  std::atomic<uint32_t> next_{0};
  std::atomic<bool> failed_{false};
  bool helped_ = false;  // the caller's alone
  std::mutex mutex_;
  std::vector<PendingReport> reports_;
  Counts counts_;
};

// The first thing that makes a dispatch impossible, or nullptr.
const char* misuse(const Dispatch& d) {
  uint64_t threads = 1, groups = 1, memory = 0;
  for (int i = 0; i < 3; i++) {
    threads *= d.threads_per_group[i];
    groups *= d.groups[i];
    if (d.threads_per_group[i] > kMaxThreads || groups > UINT32_MAX / 2) return "the grid is too large";
    if (d.exact_threads && d.groups[i] > 0 &&
        uint64_t(d.groups[i] - 1) * d.threads_per_group[i] >= d.threads[i])
      return "more threadgroups than the grid's threads need";
  }
  for (size_t bytes : d.threadgroup_bytes) memory += (bytes + 15) / 16 * 16;
  if (!d.trampoline) return "the kernel is not loaded";
  if (threads == 0) return "a threadgroup has no threads";
  if (threads > kMaxThreads) return "more than 1024 threads per threadgroup";
  if (memory > kThreadgroupMemory) return "more than 32768 bytes of threadgroup memory";
  return nullptr;
}

}  // namespace

Counts& Counts::operator+=(const Counts& o) {
  loaded_bytes += o.loaded_bytes;
  stored_bytes += o.stored_bytes;
  matrix_ops += o.matrix_ops;
  simd_ops += o.simd_ops;
  barriers += o.barriers;
  groups += o.groups;
  threads += o.threads;
  threadgroup_memory = std::max(threadgroup_memory, o.threadgroup_memory);
  return *this;
}

Outcome execute(const Dispatch& dispatch, const Mode& mode) {
  if (const char* what = misuse(dispatch)) {
    Outcome out;
    out.aborted = true;
    out.reports.emplace_back();
    out.reports[0].what = what;
    return out;
  }
  // The shadows of buffers belong to one dispatch at a time.
  static std::mutex checked;
  std::unique_lock<std::mutex> lock(checked, std::defer_lock);
  if (mode.check) lock.lock();
  return Execution(dispatch, mode).run();
}

std::string describe(const std::string& kernel, const Report& r) {
  std::string place;
  if (r.line) place = (r.file.empty() ? " line " : " " + r.file + ":") + std::to_string(r.line);
  return "kernel '" + kernel + "'" + place + ", " + thread_name(r.thread) + " of threadgroup (" +
         std::to_string(r.threadgroup[0]) + "," + std::to_string(r.threadgroup[1]) + "," +
         std::to_string(r.threadgroup[2]) + "): " + r.what;
}

}  // namespace soft
