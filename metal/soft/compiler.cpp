#include "compiler.h"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include "rewrite.h"
#include "toolchain.h"

namespace soft {

namespace {

bool write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  return bool(file.flush());
}

// The standard library belongs to the source as far as the cache is concerned.
uint64_t library_hash() {
  static const uint64_t hash = [] {
    uint64_t h = kHashStart;
    for (const char* name : {"metal_stdlib", "types.h", "traits.h", "vectors.h", "math.h", "simdgroup.h",
                             "simdgroup_matrix.h", "atomics.h", "arguments.h"})
      h = hash_text(read_file(std::string(SOFT_HOME "/msl/") + name), h);
    return hash_text(toolchain_version(), h);
  }();
  return hash;
}

// Check and count mode see every access through the callbacks of the sanitizers, which metal/soft implements.
std::string instrumentation(bool instrumented) {
  return instrumented
             ? " -O1 -fsanitize=thread,array-bounds,alignment,float-cast-overflow,integer-divide-by-zero,bool"
               " -fsanitize-recover=all -mllvm -tsan-instrument-read-before-write"
               " -mllvm -tsan-instrument-func-entry-exit=0 -fno-sanitize-link-runtime"
             : " -O2";
}

// What the loader has mapped of the library at `begin`, up to the end of its last segment.
size_t loaded_bytes(const char* begin) {
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(begin);
  const auto* segments = reinterpret_cast<const ElfW(Phdr)*>(begin + header->e_phoff);
  size_t end = 0;
  for (int i = 0; i < header->e_phnum; i++)
    if (segments[i].p_type == PT_LOAD) end = std::max<size_t>(end, segments[i].p_vaddr + segments[i].p_memsz);
  return end;
}

std::unique_ptr<Library> load(const std::string& path, Rewritten rewritten, std::string& log) {
  auto library = std::make_unique<Library>();
  library->handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library->handle) {
    log = dlerror();
    return nullptr;
  }
  library->kernels = std::move(rewritten.kernels);
  library->constants = std::move(rewritten.constants);
  for (size_t i = 0; i < library->kernels.size(); i++)
    library->kernels[i].trampoline = reinterpret_cast<void (*)(const Context*)>(
        dlsym(library->handle, ("soft_kernel_" + std::to_string(i)).c_str()));
  link_map* map = nullptr;
  dlinfo(library->handle, RTLD_DI_LINKMAP, &map);
  library->image.path = path;
  library->image.begin = reinterpret_cast<const char*>(map->l_addr);
  library->image.end = library->image.begin + loaded_bytes(library->image.begin);
  return library;
}

}  // namespace

Library::~Library() {
  if (handle) dlclose(handle);
}

const Kernel* Library::find(const std::string& host_name) const {
  for (const Kernel& kernel : kernels)
    if (kernel.host_name == host_name) return &kernel;
  return nullptr;
}

std::unique_ptr<Library> compile(const std::string& source, const CompileOptions& options, std::string& log) {
  const std::string folder = cache_folder();
  if (folder.empty()) {
    log = "software Metal: no folder to compile in: set RLV_SOFT_CACHE or HOME";
    return nullptr;
  }
  const std::string own = folder + "/" + hex(hash_text(source)) + "." + std::to_string(getpid());
  Rewritten rewritten;
  if (!translate(source, options, own, rewritten, log)) return nullptr;
  const std::string command =
      compile_command() + " -fPIC -shared -nostdlib -g -fuse-ld=lld" + instrumentation(options.instrumented);
  const std::string shared =
      folder + "/" + hex(hash_text(rewritten.source + command, library_hash())) + ".so";
  if (access(shared.c_str(), R_OK) != 0) {
    const std::string rewritten_path = own + ".cl", made = own + ".so";
    write(rewritten_path, rewritten.source);
    const bool ok = run_tool(command + " " + rewritten_path + " -o " + made, log);
    unlink(rewritten_path.c_str());
    if (!ok) return nullptr;
    std::rename(made.c_str(), shared.c_str());
  }
  return load(shared, std::move(rewritten), log);
}

}  // namespace soft
