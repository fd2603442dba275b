// Rules of MSL that C++ for OpenCL does not enforce and that only the compiled program shows: an address
// space on every pointer and reference, member functions for the memory their object is in, no vector as
// condition, no recursion. (compiler.h refuses what the source's tokens and types show.)
#pragma once
#include <string>
#include <vector>
#include "compiler.h"

namespace soft {

// Errors as "program_source:LINE:COLUMN: error: ..." of a source that compile() takes.
std::vector<std::string> lint(const std::string& source, const CompileOptions& options);

}  // namespace soft
