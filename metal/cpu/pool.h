// A pinned pool of threads that all run the same program. Thread 0 takes programs from the queue and wakes
// the others; operations are separated by barriers only where their byte ranges conflict.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#include "ctx.h"

namespace rlv {

// Sense-counting barrier: spins a little, then sleeps.
class Barrier {
 public:
  explicit Barrier(uint32_t threads) : threads_(threads) {}
  void wait();
  // A thread that will not come: all others leave what they do, by an exception at this barrier.
  void abandon() noexcept;
  // Makes it whole again, while nobody is at it.
  void restore() noexcept;

 private:
  struct Abandoned {};
  void release() noexcept;

  const uint32_t threads_;
  std::atomic<uint32_t> arrived_{0};
  std::atomic<uint32_t> generation_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> abandoned_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// What every thread of a pool runs with its own Ctx. An exception on one ends it on all, at their next
// barrier; `run` has reported it. `done` follows on one thread when all have left `run`, and throws nothing.
struct Job {
  std::function<void(Ctx&)> run;
  std::function<void()> done;
};

class Pool {
 public:
  // `on_fail` hears what kernels say through Ctx::fail.
  Pool(uint32_t threads, std::function<void(const char*)> on_fail);
  ~Pool();
  uint32_t threads() const { return threads_; }
  // Asynchronous, in order.
  void push(Job job);
  uint64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  struct Local;
  friend struct Ctx;
  void loop(uint32_t tid);
  void stop() noexcept;

  const uint32_t threads_;
  const std::function<void(const char*)> on_fail_;
  // Within a job, and at the end of each.
  Barrier barrier_, end_;
  std::atomic<uint64_t> scratch_bytes_{0};
  std::vector<std::unique_ptr<Local>> locals_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;
  Job job_;
  std::atomic<uint64_t> epoch_{0};
  bool stop_ = false;
};

}  // namespace rlv
