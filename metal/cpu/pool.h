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

 private:
  const uint32_t threads_;
  std::atomic<uint32_t> arrived_{0};
  std::atomic<uint32_t> generation_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

class Pool {
 public:
  explicit Pool(uint32_t threads);
  ~Pool();
  uint32_t threads() const { return threads_; }
  // Queues a job that every thread of the pool will run with its own Ctx. Asynchronous, in order.
  void push(std::function<void(Ctx&)> job);
  uint64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  struct Local;
  friend struct Ctx;
  void loop(uint32_t tid);

  const uint32_t threads_;
  Barrier barrier_;
  std::atomic<uint64_t> scratch_bytes_{0};
  std::vector<std::unique_ptr<Local>> locals_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void(Ctx&)>> queue_;
  std::function<void(Ctx&)> job_;
  std::atomic<uint64_t> epoch_{0};
  bool stop_ = false;

 public:
  // Called by kernels through Ctx::fail.
  std::function<void(const char*, uint32_t)> on_fail;
};

}  // namespace rlv
