#include "limits.h"

#include <algorithm>
#include <chrono>
#include <functional>

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kThreads = 256;
// As in limits.metal.
constexpr double kFlopsPerSimdgroup = 64.0 * 8 * 1024;
constexpr uint32_t kReads = 16;

// Seconds of the fastest command buffer in about `seconds`, at least two.
double fastest(MTL::Device* device, double seconds,
               const std::function<void(MTL::ComputeCommandEncoder*)>& encode) {
  using Clock = std::chrono::steady_clock;
  auto queue = TransferPtr(device->newCommandQueue());
  const auto start = Clock::now();
  double best = 0;
  for (int i = 0; i < 2 || std::chrono::duration<double>(Clock::now() - start).count() < seconds; i++) {
    const Pool pool;
    MTL::CommandBuffer* commands = queue->commandBuffer();
    MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder();
    encode(encoder);
    encoder->endEncoding();
    commands->commit();
    commands->waitUntilCompleted();
    if (commands->status() != MTL::CommandBufferStatusCompleted) return 0;
    const double took = commands->GPUEndTime() - commands->GPUStartTime();
    if (took > 0 && (best == 0 || took < best)) best = took;
  }
  return best;
}

}  // namespace

double measure_products(MTL::Device* device, Pipelines& pipelines, double seconds) {
  const Pool pool;
  constexpr uint32_t kGroups = 1024;
  std::string error;
  MTL::ComputePipelineState* state = pipelines.get("limits", "limit_products", {}, error);
  auto out = TransferPtr(device->newBuffer(kGroups * sizeof(float), MTL::ResourceStorageModeShared));
  if (!state || !out) return 0;
  const double took = fastest(device, seconds, [&](MTL::ComputeCommandEncoder* encoder) {
    encoder->setComputePipelineState(state);
    encoder->setBuffer(out.get(), 0, 0);
    encoder->dispatchThreadgroups(MTL::Size(kGroups, 1, 1), MTL::Size(kThreads, 1, 1));
  });
  return took > 0 ? kGroups * (kThreads / 32) * kFlopsPerSimdgroup / took * 1e-9 : 0;
}

double measure_reads(MTL::Device* device, Pipelines& pipelines, double seconds) {
  const Pool pool;
  constexpr uint64_t kBytes = 512ull << 20;  // beyond any cache
  const uint32_t count = kBytes / 16, groups = count / kReads / kThreads;
  std::string error;
  MTL::ComputePipelineState* state = pipelines.get("limits", "limit_reads", {}, error);
  auto out = TransferPtr(device->newBuffer(16, MTL::ResourceStorageModeShared));
  auto data = TransferPtr(device->newBuffer(kBytes, MTL::ResourceStorageModeShared));
  if (!state || !out || !data) return 0;
  const double took = fastest(device, seconds, [&](MTL::ComputeCommandEncoder* encoder) {
    encoder->setComputePipelineState(state);
    encoder->setBuffer(out.get(), 0, 0);
    encoder->setBuffer(data.get(), 0, 1);
    encoder->setBytes(&count, sizeof count, 2);
    encoder->dispatchThreadgroups(MTL::Size(groups, 1, 1), MTL::Size(kThreads, 1, 1));
  });
  return took > 0 ? kBytes / took * 1e-9 : 0;
}

}  // namespace metal
}  // namespace rlv
