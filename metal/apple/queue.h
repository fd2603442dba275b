// Command buffers on one queue: a bounded number in flight, each with an error record, watched by a clock.
#pragma once
#include <array>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include "metal_cpp.h"

namespace rlv {
namespace metal {

class Queue {
 public:
  static constexpr uint32_t kInFlight = 3;

  // What became of a command buffer. `error` is empty if all went well; code and value are a kernel's report.
  struct Result {
    std::string error;
    uint32_t code = 0, value = 0;
    double seconds = 0;  // on the GPU
  };
  using Done = std::function<void(const Result&)>;

  // A command buffer being encoded; one that is not committed gives its slot back.
  struct Batch {
    Batch() = default;
    Batch(Batch&&) = default;
    Batch& operator=(Batch&&) = default;
    ~Batch() {
      if (buffer && queue) queue->give_up(*this);
    }
    Queue* queue = nullptr;
    bool ended = false;
    SharedPtr<MTL::CommandBuffer> buffer;
    SharedPtr<MTL::ComputeCommandEncoder> encoder;
    uint32_t slot = 0;
    uint32_t operations = 0;
    double flops = 0, bytes = 0;
    explicit operator bool() const { return bool(buffer); }
  };

  Queue(MTL::Device* device, double limit_seconds);
  ~Queue();

  // Waits for a free slot. Empty if the queue is lost.
  Batch begin();
  // `done` runs once, on another thread: when the GPU has finished, or when the limit has passed.
  void commit(Batch batch, const std::string& label, Done done);
  // Until nothing is in flight and no `done` runs; of a lost queue, until all were told.
  void drain();
  // The GPU stopped answering. Its command buffers may still come back: such a queue must not be destroyed.
  bool lost();
  // False if the system gave no queue.
  bool usable() const { return queue_ && errors_; }

  MTL::Buffer* errors() const { return errors_.get(); }
  static uint64_t error_offset(const Batch& batch) { return batch.slot * kErrorBytes; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr uint32_t kErrorBytes = 256;  // records do not share a line of a cache

  struct Slot {
    bool busy = false, committed = false;
    uint64_t serial = 0;
    Done done;
  };

  void end(Batch& batch) noexcept;
  void give_up(Batch& batch) noexcept;
  void finished(uint32_t slot, uint64_t serial, MTL::CommandBuffer* buffer);
  void watch();

  SharedPtr<MTL::CommandQueue> queue_;
  SharedPtr<MTL::Buffer> errors_;
  const double limit_seconds_;
  const Result lost_result_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<Slot, kInFlight> slots_;
  uint64_t next_serial_ = 1;
  // lost_: no answer came. told_: everyone who waited for one knows.
  bool lost_ = false, told_ = false, closing_ = false;
  std::thread watchdog_;
};

}  // namespace metal
}  // namespace rlv
