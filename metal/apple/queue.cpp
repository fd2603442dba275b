#include "queue.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>
#include "../core/guard.h"

namespace rlv {
namespace metal {

namespace {

// Made while there is memory for it.
Queue::Result lost_result(double limit_seconds) {
  Queue::Result result;
  char limit[32];
  std::snprintf(limit, sizeof limit, "%g", limit_seconds);
  result.error =
      std::string("no answer from the GPU for ") + limit + " s: restart the run, or use --device cpu";
  return result;
}

}  // namespace

Queue::Queue(MTL::Device* device, double limit_seconds)
    : queue_(TransferPtr(device->newCommandQueue(kInFlight + 1))),
      errors_(TransferPtr(device->newBuffer(kInFlight * kErrorBytes, MTL::ResourceStorageModeShared))),
      limit_seconds_(limit_seconds),
      lost_result_(lost_result(limit_seconds)) {
  watchdog_ = std::thread([this] { watch(); });
}

Queue::~Queue() {
  drain();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  watchdog_.join();
}

Queue::Batch Queue::begin() {
  Batch batch;
  batch.queue = this;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    auto free_slot = [&] {
      return std::find_if(slots_.begin(), slots_.end(), [](const Slot& s) { return !s.busy; });
    };
    changed_.wait(lock, [&] { return lost_ || free_slot() != slots_.end(); });
    if (lost_) return batch;
    const auto slot = free_slot();
    *slot = Slot();
    slot->busy = true;
    slot->serial = next_serial_++;
    batch.slot = uint32_t(slot - slots_.begin());
  }
  std::memset(static_cast<char*>(errors_->contents()) + error_offset(batch), 0, kErrorBytes);
  batch.buffer = RetainPtr(queue_->commandBuffer());
  batch.encoder = RetainPtr(batch.buffer->computeCommandEncoder(MTL::DispatchTypeConcurrent));
  return batch;
}

void Queue::end(Batch& batch) noexcept {
  if (!std::exchange(batch.ended, true)) batch.encoder->endEncoding();
}

void Queue::give_up(Batch& batch) noexcept {
  end(batch);
  std::lock_guard<std::mutex> lock(mutex_);
  slots_[batch.slot] = Slot();
  changed_.notify_all();
}

void Queue::commit(Batch batch, const std::string& label, Done done) {
  end(batch);
  batch.buffer->setLabel(string(label));
  const uint32_t index = batch.slot;
  uint64_t serial = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    serial = slots_[index].serial;
  }
  batch.buffer->addCompletedHandler(
      [this, index, serial](MTL::CommandBuffer* buffer) { finished(index, serial, buffer); });
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Slot& slot = slots_[index];
    if (lost_) {
      slot = Slot();  // lost while this one was being encoded
      serial = 0;
    } else {
      slot.committed = true;
      slot.done = std::move(done);
    }
  }
  batch.queue = nullptr;
  if (serial == 0) return done(lost_result_);
  batch.buffer->commit();
  changed_.notify_all();
}

namespace {

std::string why(MTL::CommandBuffer* buffer) noexcept {
  // Short enough to lie within the string.
  static_assert(sizeof "out of memory" <= 16, "");
  return guarded(
      "", std::string("out of memory"), [](const char*) {},
      [&] {
        std::string error = text(buffer->error());
        // The system's own watchdog: it wants to draw.
        if (error.find("Interactiv") != std::string::npos || error.find("Timeout") != std::string::npos)
          error += ": set RLV_METAL_BATCH to fewer GFLOP, or let the display sleep";
        return error;
      });
}

}  // namespace

// On a thread of Metal's.
void Queue::finished(uint32_t index, uint64_t serial, MTL::CommandBuffer* buffer) {
  const Pool pool;
  Result result;
  if (buffer->status() == MTL::CommandBufferStatusError) result.error = why(buffer);
  uint32_t record[2];
  std::memcpy(record, static_cast<char*>(errors_->contents()) + index * kErrorBytes, sizeof record);
  result.code = record[0];
  result.value = record[1];
  result.seconds = buffer->GPUEndTime() - buffer->GPUStartTime();
  Done done;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Slot& slot = slots_[index];
    if (!slot.busy || slot.serial != serial) return;  // given up by the watchdog
    done = std::move(slot.done);
  }
  if (done) done(result);
  // Under the lock: the queue may be gone right after.
  std::lock_guard<std::mutex> lock(mutex_);
  slots_[index] = Slot();
  changed_.notify_all();
}

// A command buffer counts from when it is the oldest one: those behind it wait for it. Time that passes
// between two looks counts as at most twice what was intended: some clocks run on while the machine sleeps.
void Queue::watch() {
  const double period = limit_seconds_ < 4 ? 0.02 : 1;
  std::unique_lock<std::mutex> lock(mutex_);
  uint64_t oldest = 0;
  double waited = 0;
  auto last = Clock::now();
  while (!closing_) {
    changed_.wait_for(lock, std::chrono::duration<double>(period));
    const auto now = Clock::now();
    waited += std::min(std::chrono::duration<double>(now - last).count(), 2 * period);
    last = now;
    Slot* first = nullptr;
    for (Slot& slot : slots_)
      if (slot.busy && slot.committed && (!first || slot.serial < first->serial)) first = &slot;
    if (!first || first->serial != oldest) {
      oldest = first ? first->serial : 0;
      waited = 0;
      continue;
    }
    if (waited < limit_seconds_) continue;

    lost_ = true;
    std::array<std::pair<uint64_t, Done>, kInFlight> given_up;
    auto end = given_up.begin();
    for (Slot& slot : slots_)
      if (slot.busy && slot.committed && slot.done) {
        *end++ = {slot.serial, std::move(slot.done)};
        slot.serial = 0;
      }
    std::sort(given_up.begin(), end, [](const auto& a, const auto& b) { return a.first < b.first; });
    lock.unlock();
    for (auto each = given_up.begin(); each != end; each++) each->second(lost_result_);
    lock.lock();
    told_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return closing_; });
  }
}

bool Queue::lost() {
  std::lock_guard<std::mutex> lock(mutex_);
  return lost_;
}

void Queue::drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] {
    // The `done` of a slot with a serial is being called by a thread of Metal's.
    if (told_)
      return std::none_of(slots_.begin(), slots_.end(),
                          [](const Slot& s) { return s.busy && s.committed && s.serial != 0; });
    return !lost_ && std::none_of(slots_.begin(), slots_.end(), [](const Slot& s) { return s.busy; });
  });
}

}  // namespace metal
}  // namespace rlv
