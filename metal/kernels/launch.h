// How an operation becomes dispatches: every family has NAME.metal and, beside it, NAME.launch.cpp with one
// function per operation that picks the variant, the grid and the threadgroup.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include "ops.gen.h"

namespace rlv {
namespace metal {

struct Grid {
  uint32_t x = 1, y = 1, z = 1;
};

// A function constant: index in the source and a 32-bit value (bool: 0 or 1).
struct Constant {
  uint32_t index, value;
};

// One operation being encoded. Buffer 0 is its record, buffer 1 + i its i-th tensor, in every dispatch.
class Encoder {
 public:
  virtual ~Encoder() = default;
  // Dispatches `groups` threadgroups of `threads` threads of kernel `name` (its host name) of `file`
  // ("gemm"). `extra` goes to buffer RLV_EXTRA. Nothing is dispatched when a count is zero.
  virtual void run(const char* file, const std::string& name, Grid groups, Grid threads,
                   const void* extra = nullptr, uint32_t extra_bytes = 0,
                   std::initializer_list<Constant> constants = {}) = 0;
  // Whether products take their operands straight from device memory instead of staging them: the same bits,
  // and faster where caches feed registers well.
  virtual bool direct() const = 0;
  // What the operation dispatches next sees what it dispatched before.
  virtual void barrier() = 0;
  // So much arithmetic has been dispatched since the last call: between two parts of a long operation a
  // command buffer may end, because a system that draws its windows with the same GPU stops one that runs for
  // seconds.
  virtual void worked(double flops) = 0;
  // Ends the operation with an error of the stream; nothing more is dispatched.
  virtual void fail(const char* detail, uint32_t value) = 0;
};

// One per operation: void launch_gemm_nt(Encoder&, const rlv_op_gemm_nt&).
#define RLV_DECLARE_LAUNCH(op, Op) void launch_##op(Encoder& e, const rlv_op_##op& a);

inline const char* suffix(uint32_t dt) { return dt == RLV_BF16 ? "_bf16" : "_f32"; }
inline uint32_t groups_of(uint64_t n, uint32_t size) { return uint32_t((n + size - 1) / size); }

}  // namespace metal
}  // namespace rlv
