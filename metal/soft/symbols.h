// Turns code addresses of compiled kernels into lines of their MSL source.
#pragma once
#include <cstdint>
#include <vector>
#include "executor.h"

namespace soft {

// One code address and the calls that led to it, innermost first.
using CallPath = std::vector<uintptr_t>;

// The innermost line of "program_source" in each path, 0 if there is none. Results are kept; all unknown
// addresses go to one symbolizer process.
std::vector<uint32_t> source_lines(const Image& image, const std::vector<CallPath>& paths);

}  // namespace soft
