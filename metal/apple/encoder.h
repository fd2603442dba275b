// Encodes one operation after the other into the current command buffer.
#pragma once
#include <functional>
#include "../core/device.h"
#include "launch.h"
#include "memory.h"
#include "pipelines.h"
#include "queue.h"

namespace rlv {
namespace metal {

class OperationEncoder final : public Encoder {
 public:
  using Fail = std::function<void(const std::string& text)>;
  // Ends the command buffer if it is full and begins another one, or none if the GPU is lost. Whether it did.
  using Split = std::function<bool(Queue::Batch& batch)>;

  OperationEncoder(MTL::Device* device, Memory& memory, Pipelines& pipelines, Queue& queue, bool direct,
                   Fail fail, Split split);

  // `flops` of the operation are added to those of the batch.
  void encode(Queue::Batch& batch, uint32_t id, const uint32_t* record, void* const* pointers, double flops);

  void run(const char* file, const std::string& name, Grid groups, Grid threads, const void* extra,
           uint32_t extra_bytes, std::initializer_list<Constant> constants) override;
  bool direct() const override { return direct_; }
  void barrier() override;
  void worked(double flops) override;
  void fail(const char* detail, uint32_t value) override;

 private:
  void bind_tensors();
  void fail_operation(const std::string& why);

  Memory& memory_;
  Pipelines& pipelines_;
  Queue& queue_;
  const bool direct_;
  Fail fail_;
  Split split_;
  SharedPtr<MTL::Buffer> absent_;  // stands in for tensors that are not there

  Queue::Batch* batch_ = nullptr;
  uint32_t id_ = 0;
  const uint32_t* record_ = nullptr;
  void* const* pointers_ = nullptr;
  double worked_ = 0;  // FLOPs of the operation that the batch knows of
  bool bound_ = false, failed_ = false;
};

// "device/file: why" texts of what kernels report; empty for an unknown code.
const char* kernel_error(uint32_t code);

}  // namespace metal
}  // namespace rlv
