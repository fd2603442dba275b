#include "encoder.h"

#include <algorithm>
#include "errors.h"

namespace rlv {
namespace metal {

RLV_OPS(RLV_DECLARE_LAUNCH)

namespace {

constexpr uint32_t kRecordIndex = 0, kExtraIndex = 29, kErrorIndex = 30;
static_assert(1 + kMaxTensors <= kExtraIndex, "tensors and constants share the argument table");

using Launch = void (*)(Encoder&, const uint32_t* record);

template <class Record, void (*launch)(Encoder&, const Record&)>
void typed(Encoder& e, const uint32_t* record) {
  launch(e, *reinterpret_cast<const Record*>(record));
}

#define RLV_LAUNCH_ROW(op, Op) typed<rlv_op_##op, launch_##op>,
const Launch kLaunch[RLV_OP_COUNT] = {nullptr, RLV_OPS(RLV_LAUNCH_ROW)};
#undef RLV_LAUNCH_ROW

}  // namespace

const char* kernel_error(uint32_t code) {
#define RLV_ERROR_TEXT(name, text) text,
  static const char* const texts[] = {"", RLV_KERNEL_ERRORS(RLV_ERROR_TEXT)};
#undef RLV_ERROR_TEXT
  return code < sizeof texts / sizeof texts[0] ? texts[code] : "";
}

OperationEncoder::OperationEncoder(MTL::Device* device, Memory& memory, Pipelines& pipelines, Queue& queue,
                                   bool direct, Fail fail, Split split)
    : memory_(memory),
      pipelines_(pipelines),
      queue_(queue),
      direct_(direct),
      fail_(std::move(fail)),
      split_(std::move(split)),
      absent_(TransferPtr(device->newBuffer(16, MTL::ResourceStorageModeShared))) {}

void OperationEncoder::encode(Queue::Batch& batch, uint32_t id, const uint32_t* record, void* const* pointers,
                              double flops) {
  batch_ = &batch;
  id_ = id;
  record_ = record;
  pointers_ = pointers;
  bound_ = failed_ = false;
  worked_ = 0;
  kLaunch[id](*this, record);
  batch.flops += std::max(0.0, flops - worked_);
}

void OperationEncoder::worked(double flops) {
  worked_ += flops;
  batch_->flops += flops;
  if (failed_ || !split_(*batch_)) return;
  bound_ = false;
  if (!*batch_) failed_ = true;
}

// Bindings stay from dispatch to dispatch: once per operation is enough.
void OperationEncoder::bind_tensors() {
  if (bound_) return;
  bound_ = true;
  MTL::ComputeCommandEncoder* encoder = batch_->encoder.get();
  const OpInfo& op = op_info(id_);
  encoder->setBytes(record_, op.record_bytes, kRecordIndex);
  for (int i = 0; i < op.tensors; i++) {
    const Memory::Place place = pointers_[i] ? memory_.find(pointers_[i]) : Memory::Place();
    encoder->setBuffer(place.buffer ? place.buffer : absent_.get(), place.offset, NS::UInteger(1 + i));
  }
  encoder->setBuffer(queue_.errors(), Queue::error_offset(*batch_), kErrorIndex);
}

void OperationEncoder::run(const char* file, const std::string& name, Grid groups, Grid threads,
                           const void* extra, uint32_t extra_bytes,
                           std::initializer_list<Constant> constants) {
  if (failed_ || groups.x == 0 || groups.y == 0 || groups.z == 0) return;
  std::string error;
  MTL::ComputePipelineState* state = pipelines_.get(file, name, constants, error);
  if (!state) return fail_operation(error);
  const uint64_t wanted = uint64_t(threads.x) * threads.y * threads.z;
  if (wanted > state->maxTotalThreadsPerThreadgroup())
    return fail_operation(name + " needs " + std::to_string(wanted) +
                          " threads in a group, this GPU gives it " +
                          std::to_string(state->maxTotalThreadsPerThreadgroup()));
  bind_tensors();
  MTL::ComputeCommandEncoder* encoder = batch_->encoder.get();
  encoder->setComputePipelineState(state);
  if (extra) encoder->setBytes(extra, extra_bytes, kExtraIndex);
  encoder->dispatchThreadgroups(MTL::Size(groups.x, groups.y, groups.z),
                                MTL::Size(threads.x, threads.y, threads.z));
}

void OperationEncoder::barrier() {
  if (*batch_) batch_->encoder->memoryBarrier(MTL::BarrierScopeBuffers);
}

void OperationEncoder::fail(const char* detail, uint32_t value) {
  failed_ = true;
  fail_(std::string("[") + detail + ": " + std::to_string(value) + "]");
}

void OperationEncoder::fail_operation(const std::string& why) {
  failed_ = true;
  fail_("[" + describe_operation(id_, record_) + "] " + why);
}

}  // namespace metal
}  // namespace rlv
