// Runs kernels of one .metal file on software Metal through metal-cpp, as a test sees them:
//
//   soft-run FILE [--concurrent] [--buffers BYTES,BYTES,...] STEP...
//
// STEP is KERNEL:GROUPS:THREADS (GROUPS may be XxY), KERNEL:=TOTAL:THREADS (dispatchThreads), or "barrier".
// Buffer i has the given size, is bound at index i and holds 0, 1, 2, ... as float32. Prints one JSON line:
// compile error, command buffer error, and the buffers as numbers. Misuse ends the program as Metal's
// validation does.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>
#include "apple/metal_cpp.h"

namespace {

using rlv::metal::string;
using rlv::metal::TransferPtr;

std::string json(const std::string& s) {
  std::string out = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else if (static_cast<unsigned char>(c) >= 0x20)
      out += c;
  }
  return out + "\"";
}

[[noreturn]] void usage(const char* why) {
  std::fprintf(stderr, "soft-run: %s\n", why);
  std::exit(2);
}

std::vector<std::string> split(const std::string& s, char by) {
  std::vector<std::string> parts;
  std::stringstream stream(s);
  for (std::string part; std::getline(stream, part, by);) parts.push_back(part);
  return parts;
}

MTL::Size size_of(const std::string& s) {
  const auto parts = split(s, 'x');
  auto at = [&](size_t i) { return i < parts.size() ? std::strtoul(parts[i].c_str(), nullptr, 10) : 1; };
  return MTL::Size(at(0), at(1), at(2));
}

struct Options {
  std::string file;
  bool concurrent = false;
  std::vector<size_t> buffers;
  std::vector<std::string> steps;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i++) {
    const std::string a = argv[i];
    if (a == "--concurrent")
      o.concurrent = true;
    else if (a == "--buffers" && i + 1 < argc)
      for (const auto& part : split(argv[++i], ','))
        o.buffers.push_back(std::strtoul(part.c_str(), nullptr, 10));
    else if (o.file.empty())
      o.file = a;
    else
      o.steps.push_back(a);
  }
  if (o.file.empty()) usage("no file");
  return o;
}

void encode(MTL::ComputeCommandEncoder* encoder, MTL::Device* device, MTL::Library* library,
            const std::string& step) {
  if (step == "barrier") return encoder->memoryBarrier(MTL::BarrierScopeBuffers);
  const auto parts = split(step, ':');
  if (parts.size() != 3) usage("a step is KERNEL:GROUPS:THREADS");
  auto function = TransferPtr(library->newFunction(string(parts[0])));
  if (!function) usage("no such kernel");
  NS::Error* error = nullptr;
  auto state = TransferPtr(device->newComputePipelineState(function.get(), &error));
  if (!state) usage("no pipeline");
  encoder->setComputePipelineState(state.get());
  if (parts[1][0] == '=')
    encoder->dispatchThreads(size_of(parts[1].substr(1)), size_of(parts[2]));
  else
    encoder->dispatchThreadgroups(size_of(parts[1]), size_of(parts[2]));
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = parse(argc, argv);
  const rlv::metal::Pool pool;
  auto device = TransferPtr(MTL::CreateSystemDefaultDevice());
  auto queue = TransferPtr(device->newCommandQueue());
  std::stringstream source;
  source << std::ifstream(o.file).rdbuf();
  NS::Error* error = nullptr;
  auto options = TransferPtr(MTL::CompileOptions::alloc()->init());
  options->setFastMathEnabled(false);
  auto library = TransferPtr(device->newLibrary(string(source.str()), options.get(), &error));
  if (!library) {
    std::printf("{\"compile\":%s}\n", json(rlv::metal::text(error)).c_str());
    return 0;
  }
  std::vector<NS::SharedPtr<MTL::Buffer>> buffers;
  for (size_t bytes : o.buffers) {
    buffers.push_back(TransferPtr(device->newBuffer(bytes, MTL::ResourceStorageModeShared)));
    float* p = static_cast<float*>(buffers.back()->contents());
    for (size_t i = 0; i < bytes / 4; i++) p[i] = float(i);
  }
  MTL::CommandBuffer* commands = queue->commandBuffer();
  MTL::ComputeCommandEncoder* encoder =
      commands->computeCommandEncoder(o.concurrent ? MTL::DispatchTypeConcurrent : MTL::DispatchTypeSerial);
  for (size_t i = 0; i < buffers.size(); i++) encoder->setBuffer(buffers[i].get(), 0, i);
  for (const auto& step : o.steps) encode(encoder, device.get(), library.get(), step);
  encoder->endEncoding();
  commands->commit();
  commands->waitUntilCompleted();
  const bool failed = commands->status() == MTL::CommandBufferStatusError;
  std::printf("{\"error\":%s,\"buffers\":[",
              failed ? json(rlv::metal::text(commands->error())).c_str() : "null");
  for (size_t b = 0; b < buffers.size(); b++) {
    std::printf("%s[", b ? "," : "");
    const float* p = static_cast<const float*>(buffers[b]->contents());
    for (size_t i = 0; i < buffers[b]->length() / 4; i++)
      std::isfinite(p[i]) ? std::printf("%s%.9g", i ? "," : "", double(p[i]))
                          : std::printf("%snull", i ? "," : "");
    std::printf("]");
  }
  std::printf("]}\n");
  return 0;
}
