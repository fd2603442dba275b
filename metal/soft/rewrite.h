// Turns preprocessed MSL into C++ for OpenCL: kernels become plain functions, their attributes a description
// of their arguments, threadgroup variables references into the group's memory, vector constructors and
// function constants calls of the own standard library. For every kernel an extern "C" trampoline
// soft_kernel_N takes a Context.
#pragma once
#include <string>
#include <vector>
#include "compiler.h"

namespace soft {

struct Rewritten {
  std::string source;
  std::vector<Kernel> kernels;  // trampolines in order, not yet resolved
  std::vector<FunctionConstant> constants;
  std::vector<std::string> errors;  // "file:line: error: what"
};

Rewritten rewrite(const std::string& preprocessed);
// MSL preprocessed, then rewritten; `own` is a path without suffix for files in between. False, with `log`
// filled, if it is no MSL.
bool translate(const std::string& source, const CompileOptions& options, const std::string& own,
               Rewritten& out, std::string& log);

}  // namespace soft
