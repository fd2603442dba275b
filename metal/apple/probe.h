// What this GPU can do, found out by running small kernels.
#pragma once
#include <string>
#include "pipelines.h"

namespace rlv {
namespace metal {

struct Features {
  bool simdgroup_matrix = false;  // 8x8 float products give the right numbers
  bool bfloat = false;  // MSL's own type compiles and rounds to nearest even; kernels do not need it
  bool direct = false;  // preference: operands of products straight from device memory (Apple9 and later)
  uint32_t simd_width = 0;
};

// `error` says what is missing if the kernels cannot run at all.
Features probe(MTL::Device* device, Pipelines& pipelines, std::string& error);

}  // namespace metal
}  // namespace rlv
