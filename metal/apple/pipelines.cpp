#include "pipelines.h"

#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include "../core/guard.h"

namespace rlv {
namespace metal {

namespace {

uint64_t fnv1a(const std::string& s, uint64_t h = 0xcbf29ce484222325ull) {
  for (unsigned char c : s) h = (h ^ c) * 0x100000001b3ull;
  return h;
}

bool make_folder(const std::string& path) {
  for (size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at + 1);
    mkdir(path.substr(0, at).c_str(), 0755);
  }
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// Empty when there is no folder to write to.
std::string cache_folder() {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  std::string base;
  if (xdg && *xdg)
    base = xdg;
  else if (home && *home)
    base = std::string(home) + "/.cache";
  else
    return "";
  base += "/rlv/metal";
  return make_folder(base) ? base : "";
}

}  // namespace

Pipelines::Pipelines(MTL::Device* device, bool archive) : device_(device) {
  if (archive) open_archive();
}

Pipelines::~Pipelines() {
  const Pool pool;
  save_archive();
}

// Compiled code depends on the GPU, the system and the sources: all are in the name.
void Pipelines::open_archive() {
  const Pool pool;
  const std::string folder = cache_folder();
  if (folder.empty()) return;
  utsname system{};
  uname(&system);
  uint64_t h = fnv1a(std::string(device_->name()->utf8String()) + "\n" + system.sysname + system.release +
                     system.machine);
  for (uint32_t i = 0; i < kKernelSourceCount; i++) h = fnv1a(kKernelSources[i].text, h);
  char name[40];
  std::snprintf(name, sizeof name, "/%016llx.binarchive", static_cast<unsigned long long>(h));
  archive_path_ = folder + name;

  auto descriptor = TransferPtr(MTL::BinaryArchiveDescriptor::alloc()->init());
  NS::Error* error = nullptr;
  if (access(archive_path_.c_str(), R_OK) == 0) {
    descriptor->setUrl(NS::URL::fileURLWithPath(string(archive_path_)));
    archive_ = TransferPtr(device_->newBinaryArchive(descriptor.get(), &error));
    if (archive_) return;
    descriptor->setUrl(nullptr);  // damaged: begin anew
  }
  archive_ = TransferPtr(device_->newBinaryArchive(descriptor.get(), &error));
}

// A cache: what cannot be written is compiled again next time.
void Pipelines::save_archive() noexcept {
  if (!archive_ || !archive_changed_) return;
  archive_changed_ = false;
  guarded(
      "", false, [](const char*) {},
      [&] {
        const std::string temporary = archive_path_ + "." + std::to_string(getpid()) + ".tmp";
        NS::Error* error = nullptr;
        if (!archive_->serializeToURL(NS::URL::fileURLWithPath(string(temporary)), &error))
          return unlink(temporary.c_str()), false;
        return std::rename(temporary.c_str(), archive_path_.c_str()) == 0;
      });
}

MTL::Library* Pipelines::library(const std::string& file, std::string& error) {
  auto& entry = libraries_[file];
  if (entry) return entry.get();
  const char* source = nullptr;
  for (uint32_t i = 0; i < kKernelSourceCount; i++)
    if (file == kKernelSources[i].file) source = kKernelSources[i].text;
  if (!source) {
    error = "no kernel source named " + file;
    return nullptr;
  }
  auto options = TransferPtr(MTL::CompileOptions::alloc()->init());
  // Results must not depend on what a compiler may reorder; kernels name the fast functions they want.
  options->setFastMathEnabled(false);
  options->setLanguageVersion(MTL::LanguageVersion3_1);
  NS::Error* failure = nullptr;
  entry = TransferPtr(device_->newLibrary(string(source), options.get(), &failure));
  if (!entry) error = file + ".metal does not compile: " + text(failure);
  return entry.get();
}

MTL::ComputePipelineState* Pipelines::get(const std::string& file, const std::string& kernel,
                                          std::initializer_list<Constant> constants, std::string& error) {
  std::string key = file + "." + kernel;
  for (const Constant& c : constants) key += "," + std::to_string(c.index) + "=" + std::to_string(c.value);
  auto found = pipelines_.find(key);
  if (found != pipelines_.end()) return found->second.get();

  const Pool pool;
  MTL::Library* source = library(file, error);
  if (!source) return nullptr;
  NS::Error* failure = nullptr;
  SharedPtr<MTL::Function> function;
  if (constants.size() == 0) {
    function = TransferPtr(source->newFunction(string(kernel)));
  } else {
    auto values = TransferPtr(MTL::FunctionConstantValues::alloc()->init());
    for (const Constant& c : constants) values->setConstantValue(&c.value, MTL::DataTypeUInt, c.index);
    function = TransferPtr(source->newFunction(string(kernel), values.get(), &failure));
  }
  if (!function) {
    error = file + ".metal: no kernel " + kernel + (failure ? ": " + text(failure) : "");
    return nullptr;
  }
  auto descriptor = TransferPtr(MTL::ComputePipelineDescriptor::alloc()->init());
  descriptor->setComputeFunction(function.get());
  descriptor->setLabel(string(kernel));
  SharedPtr<MTL::ComputePipelineState> state;
  if (archive_) {
    const NS::Object* archives[] = {archive_.get()};
    descriptor->setBinaryArchives(NS::Array::array(archives, 1));
    state = TransferPtr(device_->newComputePipelineState(
        descriptor.get(), MTL::PipelineOptionFailOnBinaryArchiveMiss, nullptr, &failure));
  }
  if (!state) {
    state = TransferPtr(
        device_->newComputePipelineState(descriptor.get(), MTL::PipelineOptionNone, nullptr, &failure));
    if (!state) {
      error = "no pipeline for " + kernel + ": " + text(failure);
      return nullptr;
    }
    if (archive_ && archive_->addComputePipelineFunctions(descriptor.get(), &failure))
      archive_changed_ = true;
  }
  return (pipelines_[key] = state).get();
}

}  // namespace metal
}  // namespace rlv
