#include "probe.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace rlv {
namespace metal {

namespace {

// Runs one threadgroup of 32 threads with `bytes` shared between input and output. False if it does not
// finish.
bool run(MTL::Device* device, MTL::ComputePipelineState* state, MTL::Buffer* buffer) {
  auto queue = TransferPtr(device->newCommandQueue());
  MTL::CommandBuffer* commands = queue->commandBuffer();
  MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder();
  encoder->setComputePipelineState(state);
  encoder->setBuffer(buffer, 0, 0);
  encoder->dispatchThreadgroups(MTL::Size(1, 1, 1), MTL::Size(32, 1, 1));
  encoder->endEncoding();
  commands->commit();
  commands->waitUntilCompleted();
  return commands->status() == MTL::CommandBufferStatusCompleted;
}

// c = a*b of small integers, exact in float32: any wrong lane map or a kernel that did not run shows.
bool matrix_works(MTL::Device* device, MTL::ComputePipelineState* state) {
  auto buffer = TransferPtr(device->newBuffer(3 * 64 * sizeof(float), MTL::ResourceStorageModeShared));
  if (!buffer) return false;
  float* a = static_cast<float*>(buffer->contents());
  float *b = a + 64, *c = a + 128;
  for (int i = 0; i < 64; i++) {
    a[i] = float(i % 7 - 3);
    b[i] = float(i % 5 - 2);
    c[i] = NAN;
  }
  if (!run(device, state, buffer.get())) return false;
  for (int i = 0; i < 8; i++)
    for (int j = 0; j < 8; j++) {
      float sum = 0;
      for (int k = 0; k < 8; k++) sum += a[8 * i + k] * b[8 * k + j];
      if (c[8 * i + j] != sum) return false;
    }
  return true;
}

// 1 + 2^-8 is halfway between two bfloat16 values and must round to the even one, 1.
bool bfloat_works(MTL::Device* device, MTL::ComputePipelineState* state) {
  auto buffer = TransferPtr(device->newBuffer(2 * 32 * sizeof(float), MTL::ResourceStorageModeShared));
  if (!buffer) return false;
  float* x = static_cast<float*>(buffer->contents());
  for (int i = 0; i < 32; i++) x[i] = 1.0f + float(i) * 0x1p-8f;
  if (!run(device, state, buffer.get())) return false;
  return x[32] == 1.0f && x[33] == 1.0f && x[34] == 1.0078125f && x[35] == 1.015625f;
}

// A matter of speed alone, so the family may decide; RLV_METAL_DIRECT=0 or 1 overrules it.
bool prefers_direct(MTL::Device* device) {
  const char* wanted = std::getenv("RLV_METAL_DIRECT");
  if (wanted && *wanted) return *wanted == '1';
  return device->supportsFamily(MTL::GPUFamilyApple9);
}

}  // namespace

Features probe(MTL::Device* device, Pipelines& pipelines, std::string& error) {
  const Pool pool;
  Features features;
  MTL::ComputePipelineState* matrix = pipelines.get("probe", "probe_matrix", {}, error);
  if (!matrix) return features;
  features.simd_width = uint32_t(matrix->threadExecutionWidth());
  features.simdgroup_matrix = features.simd_width == 32 && matrix_works(device, matrix);
  if (!features.simdgroup_matrix)
    error = "this GPU does not compute simdgroup_matrix products (Apple7 and later do): use --device cpu";
  std::string ignored;
  MTL::ComputePipelineState* bfloat = pipelines.get("probe_bfloat", "probe_bfloat", {}, ignored);
  features.bfloat = bfloat && bfloat_works(device, bfloat);
  features.direct = prefers_direct(device);
  return features;
}

}  // namespace metal
}  // namespace rlv
