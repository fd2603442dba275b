// The Metal device: programs are encoded by a thread of their own into command buffers, in order.
#include <dlfcn.h>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <thread>
#include "../core/guard.h"
#include "encoder.h"
#include "limits.h"
#include "probe.h"

namespace rlv {
namespace metal {

namespace {

// A command buffer also ends after so many operations or bytes: the next one is encoded while it runs.
constexpr uint32_t kOperationsPerBatch = 192;
constexpr double kBytesPerBatch = 8e9;
// A tenth of a second of a small GPU: the system draws its windows in between.
constexpr double kBatchGflop = 200;
constexpr double kLimitSeconds = 120;

// A positive number, or what counts without one.
double from_environment(const char* name, double otherwise) {
  const char* text = std::getenv(name);
  const double value = text ? std::atof(text) : 0;
  return value > 0 ? value : otherwise;
}

std::string json_string(const char* s) {
  std::string out = "\"";
  for (; s && *s; s++) {
    if (*s == '"' || *s == '\\') out += '\\';
    if (static_cast<unsigned char>(*s) >= 0x20) out += *s;
  }
  return out + "\"";
}

// The first GPU of the machine. A program without windows may be refused the "default" one: CoreGraphics must
// be loaded for it, and it is for interactive sessions.
SharedPtr<MTL::Device> first_device() {
#if defined(__APPLE__)
  dlopen("/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics", RTLD_LAZY);
  // Read at the first use of the driver: command buffers may run longer while windows are drawn.
  setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1", 0);
#endif
  auto all = TransferPtr(MTL::CopyAllDevices());
  if (all && all->count() > 0) return RetainPtr(all->object<MTL::Device>(0));
  return TransferPtr(MTL::CreateSystemDefaultDevice());
}

class MetalDevice final : public Device {
 public:
  MetalDevice(const char* name, SharedPtr<MTL::Device> device)
      : name_(name),
        device_(std::move(device)),
        memory_(device_.get()),
        pipelines_(std::make_unique<Pipelines>(device_.get(), true)) {}

  ~MetalDevice() override {
    const Pool pool;
    if (!queue_) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
    queue_->drain();
    // What a lost GPU may still touch outlives the device.
    if (queue_->lost()) {
      queue_.release();
      device_->retain();
    }
  }

  // False, with `error` filled, if this GPU cannot run the kernels.
  bool start(std::string& error) {
    features_ = probe(device_.get(), *pipelines_, error);
    if (!features_.simdgroup_matrix) return false;
    queue_ = std::make_unique<Queue>(device_.get(), from_environment("RLV_METAL_TIMEOUT", kLimitSeconds));
    if (!queue_->usable()) {
      error = "Metal gives no command queue: use --device cpu";
      queue_.reset();
      return false;
    }
    encoder_ = std::make_unique<OperationEncoder>(
        device_.get(), memory_, *pipelines_, *queue_, features_.direct,
        [this](const std::string& text) { fail(text); },
        [this](Queue::Batch& batch) { return split(batch); });
    thread_ = std::thread([this] { work(); });
    return true;
  }

  const char* name() const override { return name_; }

  std::string info() const override {
    const Pool pool;
    auto flag = [](bool b) { return b ? "true" : "false"; };
    return std::string("{\"name\":\"") + name_ + "\",\"gpu\":" + json_string(device_->name()->utf8String()) +
           ",\"simdgroup_matrix\":" + flag(features_.simdgroup_matrix) +
           ",\"bfloat\":" + flag(features_.bfloat) +
           ",\"working_set_bytes\":" + std::to_string(device_->recommendedMaxWorkingSetSize()) + "}";
  }

  void* allocate(uint64_t bytes) noexcept override {
    return guarded<void*>(
        "", nullptr, [](const char*) {}, [&] { return memory_.allocate(bytes); });
  }
  void release(void* p, uint64_t) noexcept override { memory_.release(p); }
  void clear(void* p, uint64_t bytes) override { std::memset(p, 0, bytes); }

  // Products are float32 whatever the storage.
  double measure(uint32_t what, double seconds) override {
    if (what == 3) return 0;
    return what == 2 ? measure_reads(device_.get(), limit_pipelines(), seconds)
                     : measure_products(device_.get(), limit_pipelines(), seconds);
  }

  void enqueue(std::unique_ptr<Program> program) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      programs_.push_back(std::move(program));
    }
    wake_.notify_all();
  }

 private:
  // Pipelines belong to the encoding thread: measuring has its own.
  Pipelines& limit_pipelines() {
    if (!limit_pipelines_) limit_pipelines_ = std::make_unique<Pipelines>(device_.get(), false);
    return *limit_pipelines_;
  }

  void work() {
    for (;;) {
      std::unique_ptr<Program> program;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return closing_ || !programs_.empty(); });
        if (programs_.empty()) return;
        program = std::move(programs_.front());
        programs_.pop_front();
      }
      const Pool pool;
      try {
        run(*program);
      } catch (const std::exception&) {
        fail(Caught(name_).text());
        queue_->drain();  // what was committed of it
        complete(program->ticket);
      }
      if (idle()) pipelines_->save_archive();
    }
  }

  bool idle() {
    std::lock_guard<std::mutex> lock(mutex_);
    return programs_.empty();
  }

  // Measured operations stand alone, each in command buffers of its own, so that the GPU's times are theirs.
  void run(const Program& program) {
    running_ = {&program, 0, 0, profiling_};
    Queue::Batch batch;
    for (uint32_t i = 0; i < program.steps.size(); i++) {
      const Pool pool;
      const Step& step = program.steps[i];
      running_.next = i;
      const bool full = batch.operations >= kOperationsPerBatch || batch.bytes > kBytesPerBatch ||
                        batch.flops + step.flops > batch_flops_;
      if (batch && (running_.profiling || full)) commit(std::move(batch), 0);
      if (!batch) {
        batch = queue_->begin();
        running_.first = i;
        if (!batch) break;
      } else if (step.barrier) {
        batch.encoder->memoryBarrier(MTL::BarrierScopeBuffers);
        barriers_ += 1;
      }
      running_.next = i + 1;
      encoder_->encode(batch, step.id, program.record_of(step), program.pointers_of(step), step.flops);
      if (!batch) break;
      batch.operations += 1;
      batch.bytes += step.bytes;
    }
    if (!batch) batch = queue_->begin();
    if (!batch) {
      fail("[metal] the GPU is lost: restart the run, or use --device cpu");
      return complete(program.ticket);
    }
    commit(std::move(batch), program.ticket);
  }

  // In the middle of an operation: whether it goes on in a new command buffer, or in none if the GPU is lost.
  bool split(Queue::Batch& batch) {
    if (batch.flops < batch_flops_) return false;
    commit(std::move(batch), 0);
    batch = queue_->begin();
    running_.first = running_.next - 1;
    return true;
  }

  // What is committed of the program that is being encoded: steps [first, next). ticket 0: more of it
  // follows.
  void commit(Queue::Batch batch, uint32_t ticket) {
    const Program& program = *running_.program;
    std::string label = "nothing";
    uint32_t id = 0;
    if (running_.next > running_.first) {
      const Step& step = program.steps[running_.first];
      id = step.id;
      label = describe_operation(step.id, program.record_of(step));
      const uint32_t more = running_.next - running_.first - 1;
      if (more > 0) label += " and " + std::to_string(more) + " more";
    }
    const bool profiling = running_.profiling;
    queue_->commit(std::move(batch), label, [this, id, ticket, profiling, label](const Queue::Result& r) {
      tell(label, r);
      if (profiling && id != 0) {
        std::lock_guard<std::mutex> lock(profile_mutex_);
        profile_[id].ns += r.seconds * 1e9;
      }
      if (ticket != 0) complete(ticket);
    });
  }

  // On a thread of Metal's.
  void tell(const std::string& label, const Queue::Result& r) noexcept {
    guarded(
        name_, false, [this](const char* text) { fail(text); },
        [&] {
          if (!r.error.empty()) fail("[" + label + "] " + r.error);
          if (r.code != 0)
            fail(std::string("[") + kernel_error(r.code) + ": " + std::to_string(r.value) + "]");
          return true;
        });
  }

  const char* name_;
  const double batch_flops_ = from_environment("RLV_METAL_BATCH", kBatchGflop) * 1e9;
  SharedPtr<MTL::Device> device_;
  Memory memory_;
  std::unique_ptr<Pipelines> pipelines_, limit_pipelines_;
  Features features_;
  std::unique_ptr<Queue> queue_;
  std::unique_ptr<OperationEncoder> encoder_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Program>> programs_;
  // Of the encoding thread: the program, and its steps since the last command buffer.
  struct {
    const Program* program;
    uint32_t first, next;
    bool profiling;
  } running_{};
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace
}  // namespace metal

std::unique_ptr<Device> make_metal_device(const char* name, std::string& error) {
  const metal::Pool pool;
  auto device = metal::first_device();
  if (!device) {
    error = "no Metal device on this machine: use --device cpu";
    return nullptr;
  }
  auto made = std::make_unique<metal::MetalDevice>(name == std::string("soft") ? "soft" : "metal", device);
  if (!made->start(error)) return nullptr;
  return made;
}

}  // namespace rlv
