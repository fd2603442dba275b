// What every device shares: buffers behind handles, decoding and validation of records, order, errors,
// tickets and statistics. A device adds memory and execution.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>
#include "args.gen.hpp"
#include "handles.h"
#include "hazard.h"
#include "text.h"

namespace rlv {

// One decoded operation: resolved arguments and whether it must wait for the operations before it.
struct Step {
  uint32_t id;
  uint32_t args;      // offset into Program::args
  uint32_t record;    // offset into Program::records
  uint32_t pointers;  // offset into Program::pointers
  bool barrier;       // conflicts with an operation since the last barrier
  double flops, bytes;
};

struct Program {
  uint32_t ticket = 0;
  std::vector<Step> steps;
  std::vector<uint64_t> args;     // resolved structs, 8-byte aligned
  std::vector<uint32_t> records;  // the wire structs
  std::vector<void*> pointers;    // of each tensor, nullptr: absent
  const void* args_of(const Step& s) const { return args.data() + s.args; }
  const uint32_t* record_of(const Step& s) const { return records.data() + s.record; }
  void* const* pointers_of(const Step& s) const { return pointers.data() + s.pointers; }
};

// An operation of which thread i works on the i-th even share of `rows` alone, reading and writing only those
// rows of the tensors in the bit mask `fields`. rows 0: it is divided otherwise. The tensors in `paged`
// belong to the same `sequences` in the same order, wherever their pages lie.
struct RowSplit {
  uint32_t rows = 0, fields = 0, sequences = 0, paged = 0;
};

struct OpProfile {
  double calls = 0, ns = 0, flops = 0, bytes = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const char* name() const = 0;
  virtual std::string info() const = 0;
  virtual bool has_memory() const { return true; }
  // Whether operations may read straight from the pages of a mapped file.
  virtual bool maps_files() const { return false; }
  // Zeroed, 64-byte aligned; nullptr on failure.
  virtual void* allocate(uint64_t bytes) noexcept;
  virtual void release(void* p, uint64_t bytes) noexcept;
  // Zeroes all bytes of an allocation that no operation uses.
  virtual void clear(void* p, uint64_t bytes);
  // Takes a validated program; calls `complete` when it is done, whatever happens to it. Synchronous devices
  // run it here. What throws has not taken it.
  virtual void enqueue(std::unique_ptr<Program> program) = 0;
  // How the device divides an operation among its threads.
  virtual RowSplit row_split(uint32_t, const void* /*args*/) const { return {}; }
  virtual double measure(uint32_t, double) { return 0; }
  virtual uint64_t scratch_bytes() const { return 0; }

  uint32_t buffer_new(uint32_t units, const char* label);
  bool buffer_free(uint32_t handle);
  bool buffer_clear(uint32_t handle);
  void* buffer_ptr(uint32_t handle, uint64_t* bytes = nullptr);
  // See rlv_map_file.
  uint32_t map_file(int fd, uint64_t offset, uint64_t bytes, const char* label);
  uint32_t submit(const uint32_t* words, uint32_t count);
  uint32_t wait(uint32_t ticket, uint32_t milliseconds);
  // Waits for everything submitted and frees all buffers.
  void close();
  // Copies the error's text, forgets it and revives the stream; the text's length.
  uint32_t take_error(char* out, uint32_t capacity);
  uint32_t stats(double* out, uint32_t capacity);
  uint32_t profile(double* out, uint32_t capacity, bool enable);
  // Resolves one record's tensors to pointers. False, with the error recorded, if it is not valid.
  bool resolve(const uint32_t* record, uint32_t id, void** pointers);

  // Keeps the first error and poisons the stream until it is taken. Callable from any thread.
  void fail(std::string_view text) noexcept;
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  void complete(uint32_t ticket);

 protected:
  std::atomic<bool> profiling_{false};
  std::vector<OpProfile> profile_ = std::vector<OpProfile>(RLV_OP_COUNT);
  std::atomic<uint64_t> barriers_{0}, batches_{0};
  std::mutex profile_mutex_;

 private:
  // For who holds mutex_.
  void fail_locked(std::string_view text) noexcept;
  void release_slot(BufferSlot& s) noexcept;
  bool decode(const uint32_t* words, uint32_t count, Program& program);

  Handles handles_;
  Hazards hazards_;
  std::mutex mutex_;
  std::condition_variable done_;
  uint32_t next_ticket_ = 1;
  std::atomic<uint32_t> completed_{0};
  std::atomic<bool> failed_{false};
  ErrorText error_;
  uint64_t live_bytes_ = 0, live_buffers_ = 0, peak_bytes_ = 0;
  double ops_ = 0, flops_ = 0, bytes_ = 0;
};

std::unique_ptr<Device> make_cpu_device(uint32_t threads, std::string& error);
std::unique_ptr<Device> make_ref_device();
std::unique_ptr<Device> make_null_device();
// Apple's device, or software Metal behind the same source; nullptr with `error` filled.
std::unique_ptr<Device> make_metal_device(const char* name, std::string& error);

// "gemm_nt m=3 n=64 k=32 dt=0 ydt=0 accumulate=0".
std::string describe_operation(uint32_t id, const uint32_t* record);

// Complex-step gradient of one forward operation; see rlv_ref_vjp.
bool ref_vjp(Device& device, const uint32_t* record, uint32_t words, const rlv_ref* cotangents,
             const rlv_ref* gradients);

// Makes the n-th next allocation of a buffer or of a thread's scratch fail.
void fail_allocation(uint32_t n);
// Whether this one is to fail.
bool allocation_fails() noexcept;

}  // namespace rlv
