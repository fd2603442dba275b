// The Metal device: programs are encoded by a thread of their own into command buffers, in order.
#include <cstdlib>
#include <deque>
#include <thread>
#include "encoder.h"
#include "limits.h"
#include "probe.h"

namespace rlv {
namespace metal {

namespace {

// A command buffer ends after so many operations or so much arithmetic (about a second of a small GPU): the
// next one is encoded while it runs, and no single one runs long enough to be taken for a hang.
constexpr uint32_t kOperationsPerBatch = 192;
constexpr double kFlopsPerBatch = 2e12;
constexpr double kDefaultLimitSeconds = 120;

// RLV_METAL_TIMEOUT: seconds after which the GPU counts as lost.
double limit_seconds() {
  const char* text = std::getenv("RLV_METAL_TIMEOUT");
  const double seconds = text ? std::atof(text) : 0;
  return seconds > 0 ? seconds : kDefaultLimitSeconds;
}

std::string json_string(const char* s) {
  std::string out = "\"";
  for (; s && *s; s++) {
    if (*s == '"' || *s == '\\') out += '\\';
    if (static_cast<unsigned char>(*s) >= 0x20) out += *s;
  }
  return out + "\"";
}

class MetalDevice final : public Device {
 public:
  MetalDevice(const char* name, SharedPtr<MTL::Device> device)
      : name_(name),
        device_(std::move(device)),
        memory_(device_.get()),
        pipelines_(std::make_unique<Pipelines>(device_.get(), true)) {}

  ~MetalDevice() override {
    if (!queue_) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    thread_.join();
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
    queue_ = std::make_unique<Queue>(device_.get(), limit_seconds());
    encoder_ =
        std::make_unique<OperationEncoder>(device_.get(), memory_, *pipelines_, *queue_, features_.direct,
                                           [this](const std::string& text) { fail(text); });
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

  void* allocate(uint64_t bytes) override { return memory_.allocate(bytes); }
  void release(void* p, uint64_t) override { memory_.release(p); }

  // Products are float32 whatever the storage.
  double measure(uint32_t what, double seconds) override {
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
      run(*program);
    }
  }

  // Measured operations stand alone, each in a command buffer of its own, so that the GPU's times are theirs.
  void run(const Program& program) {
    const bool profiling = profiling_;
    Queue::Batch batch;
    uint32_t first = 0;
    for (uint32_t i = 0; i < program.steps.size(); i++) {
      const Step& step = program.steps[i];
      const uint32_t* record = program.record_of(step);
      const double flops = op_info(step.id).flops(record);
      const bool full = batch.operations >= kOperationsPerBatch || batch.flops + flops > kFlopsPerBatch;
      if (batch && (profiling || full)) commit(std::move(batch), program, first, i, 0, profiling);
      if (!batch) {
        batch = queue_->begin();
        first = i;
        if (!batch) break;
      } else if (step.barrier) {
        batch.encoder->memoryBarrier(MTL::BarrierScopeBuffers);
        barriers_ += 1;
      }
      encoder_->encode(batch, step.id, record, program.pointers_of(step));
      batch.operations += 1;
      batch.flops += flops;
    }
    if (!batch) batch = queue_->begin();
    if (!batch) {
      fail("[metal] the GPU is lost: restart the run, or use --device cpu");
      return complete(program.ticket);
    }
    commit(std::move(batch), program, first, uint32_t(program.steps.size()), program.ticket, profiling);
  }

  // Steps [first, last) of the program; ticket 0: more of it follows.
  void commit(Queue::Batch batch, const Program& program, uint32_t first, uint32_t last, uint32_t ticket,
              bool profiling) {
    std::string label = "nothing";
    uint32_t id = 0;
    if (last > first) {
      const Step& step = program.steps[first];
      id = step.id;
      label = describe_operation(step.id, program.record_of(step));
      if (last - first > 1) label += " and " + std::to_string(last - first - 1) + " more";
    }
    queue_->commit(std::move(batch), label, [this, id, ticket, profiling, label](const Queue::Result& r) {
      if (!r.error.empty()) fail("[" + label + "] " + r.error);
      if (r.code != 0) fail(std::string("[") + kernel_error(r.code) + ": " + std::to_string(r.value) + "]");
      if (profiling && id != 0) {
        std::lock_guard<std::mutex> lock(profile_mutex_);
        profile_[id].ns += r.seconds * 1e9;
      }
      if (ticket != 0) complete(ticket);
    });
  }

  const char* name_;
  SharedPtr<MTL::Device> device_;
  Memory memory_;
  std::unique_ptr<Pipelines> pipelines_, limit_pipelines_;
  Features features_;
  std::unique_ptr<Queue> queue_;
  std::unique_ptr<OperationEncoder> encoder_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Program>> programs_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace
}  // namespace metal

std::unique_ptr<Device> make_metal_device(const char* name, std::string& error) {
  const metal::Pool pool;
  auto device = metal::TransferPtr(MTL::CreateSystemDefaultDevice());
  if (!device) {
    error = "no Metal device on this machine: use --device cpu";
    return nullptr;
  }
  auto made = std::make_unique<metal::MetalDevice>(name == std::string("soft") ? "soft" : "metal", device);
  if (!made->start(error)) return nullptr;
  return made;
}

}  // namespace rlv
