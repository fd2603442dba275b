// Kernel sources, the libraries compiled from them and the pipelines made of those, in memory and on disk.
#pragma once
#include <initializer_list>
#include <map>
#include <string>
#include "launch.h"
#include "metal_cpp.h"

namespace rlv {
namespace metal {

// One .metal file with its includes; written by the build.
struct KernelSource {
  const char* file;  // "gemm"
  const char* text;
};
extern const KernelSource kKernelSources[];
extern const uint32_t kKernelSourceCount;

class Pipelines {
 public:
  // `archive`: keep compiled pipelines in the cache folder.
  Pipelines(MTL::Device* device, bool archive);
  ~Pipelines();

  // nullptr with `error` filled if the source does not compile or has no such kernel.
  MTL::ComputePipelineState* get(const std::string& file, const std::string& kernel,
                                 std::initializer_list<Constant> constants, std::string& error);
  // Writes what was compiled since it was written last.
  void save_archive() noexcept;

 private:
  MTL::Library* library(const std::string& file, std::string& error);
  void open_archive();

  MTL::Device* device_;
  std::map<std::string, SharedPtr<MTL::Library>> libraries_;
  std::map<std::string, SharedPtr<MTL::ComputePipelineState>> pipelines_;
  SharedPtr<MTL::BinaryArchive> archive_;
  std::string archive_path_;
  bool archive_changed_ = false;
};

}  // namespace metal
}  // namespace rlv
