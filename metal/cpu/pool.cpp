#include "pool.h"

#include <sched.h>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <system_error>
#include <utility>
#include "../core/device.h"

namespace rlv {

namespace {
inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Worker i goes to the i-th processor this process may use; RLV_PIN=0 leaves placement to the system.
void pin(uint32_t tid, uint32_t threads) {
#if defined(__linux__)
  const char* wanted = std::getenv("RLV_PIN");
  if (wanted && wanted[0] == '0') return;
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) != 0 || uint32_t(CPU_COUNT(&mask)) != threads) return;
  uint32_t seen = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &mask) || seen++ != tid) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    return;
  }
#else
  (void)tid;
  (void)threads;
#endif
}
}  // namespace

constexpr int kSpins = 4000;
constexpr std::align_val_t kLocalAlign{64};

void Barrier::release() noexcept {
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
}

void Barrier::wait() {
  if (threads_ == 1) return;
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  // Behind the generation: who does not see it here sees the generation change.
  if (abandoned_.load(std::memory_order_acquire)) throw Abandoned();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    release();
    return;
  }
  const auto released = [&](std::memory_order order) { return generation_.load(order) != generation; };
  for (int i = 0; i < kSpins && !released(std::memory_order_acquire); i++) pause_cpu();
  if (!released(std::memory_order_acquire)) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return released(std::memory_order_seq_cst); });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }
  if (abandoned_.load(std::memory_order_relaxed)) throw Abandoned();
}

void Barrier::abandon() noexcept {
  abandoned_.store(true, std::memory_order_seq_cst);
  release();
}

void Barrier::restore() noexcept {
  arrived_.store(0, std::memory_order_relaxed);
  abandoned_.store(false, std::memory_order_relaxed);
}

struct Pool::Local {
  void* block[kLocalSlots] = {};
  size_t bytes[kLocalSlots] = {};
  void give_back(int slot) noexcept { ::operator delete(block[slot], kLocalAlign); }
  ~Local() {
    for (int slot = 0; slot < kLocalSlots; slot++) give_back(slot);
  }
};

Pool::Pool(uint32_t threads, std::function<void(const char*)> on_fail)
    : threads_(threads), on_fail_(std::move(on_fail)), barrier_(threads), end_(threads) {
  for (uint32_t i = 0; i < threads; i++) locals_.push_back(std::make_unique<Local>());
  workers_.reserve(threads);
  try {
    for (uint32_t i = 0; i < threads; i++) workers_.emplace_back([this, i] { loop(i); });
  } catch (const std::system_error& e) {
    const std::string which = std::to_string(workers_.size() + 1) + " of " + std::to_string(threads);
    stop();
    throw std::system_error(e.code(), "cannot start thread " + which);
  } catch (...) {
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() noexcept {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void Pool::push(Job job) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(job));
  }
  wake_.notify_all();
}

// Thread 0 moves the next job into place and bumps the epoch; everyone runs it; a barrier ends it, which
// everyone reaches, whatever was abandoned before.
void Pool::loop(uint32_t tid) {
  pin(tid, threads_);
  Ctx ctx;
  ctx.tid = tid;
  ctx.threads = threads_;
  ctx.impl = this;
  uint64_t seen = 0;
  for (;;) {
    if (tid == 0) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) {
        epoch_.store(~uint64_t(0), std::memory_order_release);
        wake_.notify_all();
        return;
      }
      job_ = std::move(queue_.front());
      queue_.pop_front();
      epoch_.store(++seen, std::memory_order_release);
      lock.unlock();
      if (threads_ > 1) wake_.notify_all();
    } else {
      for (int i = 0; i < kSpins && epoch_.load(std::memory_order_acquire) == seen; i++) pause_cpu();
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
      }
      const uint64_t epoch = epoch_.load(std::memory_order_acquire);
      if (epoch == ~uint64_t(0)) return;
      seen = epoch;
    }
    try {
      job_.run(ctx);
    } catch (...) {
      barrier_.abandon();
    }
    end_.wait();
    if (tid != 0) continue;
    barrier_.restore();
    const Job job = std::move(job_);
    job.done();
  }
}

void Ctx::barrier() { static_cast<Pool*>(impl)->barrier_.wait(); }

void* Ctx::local(int slot, size_t bytes) {
  Pool* pool = static_cast<Pool*>(impl);
  Pool::Local& l = *pool->locals_[tid];
  if (l.bytes[slot] < bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    l.give_back(slot);
    l.block[slot] = nullptr;
    pool->scratch_bytes_ -= std::exchange(l.bytes[slot], 0);
    if (allocation_fails()) throw std::bad_alloc();
    l.block[slot] = ::operator new(rounded, kLocalAlign);
    l.bytes[slot] = rounded;
    pool->scratch_bytes_ += rounded;
  }
  return l.block[slot];
}

void Ctx::fail(const char* detail, uint32_t value) {
  char text[256];
  std::snprintf(text, sizeof text, "[%s: %u]", detail, value);
  static_cast<Pool*>(impl)->on_fail_(text);
}

}  // namespace rlv
