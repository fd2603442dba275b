// Turns code addresses of compiled kernels into lines of their MSL source.
#pragma once
#include <cstdint>
#include <vector>
#include "executor.h"

namespace soft {

// One code address and the calls that led to it, innermost first.
using CallPath = std::vector<uintptr_t>;

struct SourcePlace {
  std::string file;   // empty: the source has no #line directive
  uint32_t line = 0;  // 0: not known
};

// The innermost place of each path in the kernel's own source. Results are kept; all unknown addresses are
// looked up in one call of the symbolizer.
std::vector<SourcePlace> source_places(const Image& image, const std::vector<CallPath>& paths);

}  // namespace soft
