// Misuse of Metal through metal-cpp, one case a run: soft-misuse CASE. tests/soft/misuse.test.ts knows what
// must be said.
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include "apple/metal_cpp.h"

extern "C" void soft_live(void (*visit)(const char* class_name, long count));

namespace {

using rlv::metal::Pool;
using rlv::metal::string;
using rlv::metal::TransferPtr;

constexpr const char* kSource = R"(
#include <metal_stdlib>
using namespace metal;
kernel void fill(device float* o [[buffer(0)]], uint i [[thread_position_in_grid]]) { o[i] = 1.0f; }
kernel void staged(device float* o [[buffer(0)]], threadgroup float* s [[threadgroup(0)]],
                   uint i [[thread_position_in_grid]]) { s[i] = 1.0f; o[i] = s[i]; }
)";

struct Metal {
  NS::SharedPtr<MTL::Device> device = TransferPtr(MTL::CreateSystemDefaultDevice());
  NS::SharedPtr<MTL::CommandQueue> queue = TransferPtr(device->newCommandQueue());
  NS::SharedPtr<MTL::Buffer> buffer = TransferPtr(device->newBuffer(256, MTL::ResourceStorageModeShared));

  NS::SharedPtr<MTL::ComputePipelineState> pipeline(const char* name) {
    NS::Error* error = nullptr;
    auto library = TransferPtr(device->newLibrary(string(kSource), nullptr, &error));
    auto function = TransferPtr(library->newFunction(string(name)));
    return TransferPtr(device->newComputePipelineState(function.get(), &error));
  }
  // An open encoder with `fill` and its buffer.
  MTL::ComputeCommandEncoder* encoder(MTL::CommandBuffer* commands) {
    MTL::ComputeCommandEncoder* e = commands->computeCommandEncoder();
    e->setComputePipelineState(fill.get());
    e->setBuffer(buffer.get(), 0, 0);
    return e;
  }
  NS::SharedPtr<MTL::ComputePipelineState> fill = pipeline("fill");
};

const MTL::Size kOne(1, 1, 1), kThreads(64, 1, 1);

using Case = std::function<void(Metal&)>;
const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> all{
      {"release_twice",
       [](Metal& m) {
         MTL::Buffer* b = m.device->newBuffer(64, MTL::ResourceStorageModeShared);
         b->release();
         b->release();
       }},
      {"message_to_deallocated",
       [](Metal& m) {
         MTL::Buffer* b = m.device->newBuffer(64, MTL::ResourceStorageModeShared);
         b->release();
         std::printf("%zu\n", size_t(b->length()));
       }},
      {"commit_with_open_encoder",
       [](Metal& m) {
         MTL::CommandBuffer* c = m.queue->commandBuffer();
         m.encoder(c);
         c->commit();
       }},
      {"encode_after_end",
       [](Metal& m) {
         MTL::ComputeCommandEncoder* e = m.encoder(m.queue->commandBuffer());
         e->endEncoding();
         e->dispatchThreadgroups(kOne, kThreads);
       }},
      {"two_encoders",
       [](Metal& m) {
         MTL::CommandBuffer* c = m.queue->commandBuffer();
         m.encoder(c);
         m.encoder(c);
       }},
      {"commit_twice",
       [](Metal& m) {
         MTL::CommandBuffer* c = m.queue->commandBuffer();
         c->commit();
         c->commit();
       }},
      {"wait_before_commit", [](Metal& m) { m.queue->commandBuffer()->waitUntilCompleted(); }},
      {"handler_after_commit",
       [](Metal& m) {
         MTL::CommandBuffer* c = m.queue->commandBuffer();
         c->commit();
         c->addCompletedHandler([](MTL::CommandBuffer*) {});
       }},
      {"no_pipeline",
       [](Metal& m) {
         MTL::ComputeCommandEncoder* e = m.queue->commandBuffer()->computeCommandEncoder();
         e->dispatchThreadgroups(kOne, kThreads);
       }},
      {"long_bytes",
       [](Metal& m) {
         static const char bytes[5000] = {};
         m.encoder(m.queue->commandBuffer())->setBytes(bytes, sizeof bytes, 1);
       }},
      {"odd_offset", [](Metal& m) { m.encoder(m.queue->commandBuffer())->setBuffer(m.buffer.get(), 2, 0); }},
      {"offset_beyond",
       [](Metal& m) { m.encoder(m.queue->commandBuffer())->setBuffer(m.buffer.get(), 512, 0); }},
      {"index_beyond",
       [](Metal& m) { m.encoder(m.queue->commandBuffer())->setBuffer(m.buffer.get(), 0, 31); }},
      {"threadgroup_memory_odd",
       [](Metal& m) { m.encoder(m.queue->commandBuffer())->setThreadgroupMemoryLength(24, 0); }},
      {"threadgroup_memory_missing",
       [](Metal& m) {
         auto staged = m.pipeline("staged");
         MTL::ComputeCommandEncoder* e = m.encoder(m.queue->commandBuffer());
         e->setComputePipelineState(staged.get());
         e->dispatchThreadgroups(kOne, kThreads);
       }},
      {"threadgroup_memory_large",
       [](Metal& m) {
         auto staged = m.pipeline("staged");
         MTL::ComputeCommandEncoder* e = m.encoder(m.queue->commandBuffer());
         e->setComputePipelineState(staged.get());
         e->setThreadgroupMemoryLength(40000 / 16 * 16, 0);
         e->dispatchThreadgroups(kOne, kThreads);
       }},
      {"too_many_threads",
       [](Metal& m) {
         m.encoder(m.queue->commandBuffer())->dispatchThreadgroups(kOne, MTL::Size(2048, 1, 1));
       }},
      {"pipeline_freed_too_early",
       [](Metal& m) {
         MTL::CommandBuffer* c = m.queue->commandBufferWithUnretainedReferences();
         {
           auto early = m.pipeline("fill");
           MTL::ComputeCommandEncoder* e = c->computeCommandEncoder();
           e->setComputePipelineState(early.get());
           e->setBuffer(m.buffer.get(), 0, 0);
           e->dispatchThreadgroups(kOne, kThreads);
           e->endEncoding();
         }
         c->commit();
         c->waitUntilCompleted();
       }},
      {"leak",
       [](Metal& m) {
         m.device->newBuffer(64, MTL::ResourceStorageModeShared);
         m.device->newBuffer(64, MTL::ResourceStorageModeShared);
       }},
      {"no_leak",
       [](Metal& m) {
         MTL::CommandBuffer* c = m.queue->commandBuffer();
         MTL::ComputeCommandEncoder* e = m.encoder(c);
         e->dispatchThreadgroups(kOne, kThreads);
         e->endEncoding();
         c->commit();
         c->waitUntilCompleted();
       }},
  };
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "no_pool") == 0) {
    auto device = TransferPtr(MTL::CreateSystemDefaultDevice());
    auto queue = TransferPtr(device->newCommandQueue());
    queue->commandBuffer();
    return 0;
  }
  const auto found = argc == 2 ? cases().find(argv[1]) : cases().end();
  if (found == cases().end()) {
    for (const auto& each : cases()) std::printf("%s\n", each.first.c_str());
    return 2;
  }
  {
    const Pool pool;
    Metal metal;
    found->second(metal);
  }
  soft_live([](const char* name, long count) {
    if (count > 0) std::printf("alive: %ld %s\n", count, name);
  });
  return 0;
}
