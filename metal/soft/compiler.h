// Compiles MSL for the CPU: preprocess, rewrite what C++ for OpenCL does not know, compile with clang, load.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>
#include "executor.h"

namespace soft {

struct Argument {
  std::string kind;  // "buffer", "threadgroup" or the attribute's name
  int index = -1;
  std::string name, type;
  std::string function_constant;  // the condition of an argument that may be absent
};

struct Kernel {
  std::string host_name;
  std::vector<Argument> arguments;
  void (*trampoline)(const Context*) = nullptr;
  uint32_t max_threads = 0;  // [[max_total_threads_per_threadgroup]], 0: not given
  uint32_t line = 0;
};

struct FunctionConstant {
  std::string name, type;
  int index = 0;
};

struct Library {
  std::vector<Kernel> kernels;
  std::vector<FunctionConstant> constants;
  Image image;
  void* handle = nullptr;  // of dlopen
  ~Library();
  const Kernel* find(const std::string& host_name) const;
};

struct CompileOptions {
  bool instrumented = false;  // for check and count mode
  bool fast_math = true;
  std::map<std::string, std::string> defines;
};

// nullptr with `log` filled ("program_source:LINE:COL: error: ...") when Metal would refuse the source or
// clang does. Compiled libraries are kept in the cache folder by the hash of rewritten source, command and
// compiler.
std::unique_ptr<Library> compile(const std::string& source, const CompileOptions& options, std::string& log);

}  // namespace soft
