#include "launch.h"

namespace rlv {
namespace metal {

namespace {

constexpr uint32_t kTileRows = 32, kThreads = 128;

// head_dim is padded to one of the sizes that kernels exist for; 0: none is large enough.
uint32_t padded(uint32_t head_dim) {
  for (uint32_t size : {32u, 64u, 128u, 256u})
    if (head_dim <= size) return size;
  return 0;
}

// Fails if the heads do not fit any kernel.
bool checked(Encoder& e, const char* divides, const char* large, uint32_t heads, uint32_t kv_heads,
             uint32_t head_dim) {
  if (kv_heads == 0 || heads % kv_heads != 0) {
    e.fail(divides, kv_heads);
    return false;
  }
  if (padded(head_dim) == 0) {
    e.fail(large, head_dim);
    return false;
  }
  return true;
}

std::string variant(const char* name, uint32_t head_dim, uint32_t dt) {
  return std::string(name) + std::to_string(padded(head_dim)) + suffix(dt);
}

// No segment ends in the middle of a tile more than once.
uint32_t tiles(uint64_t rows, uint32_t n_segs) { return rows == 0 ? 0 : uint32_t(rows / kTileRows) + n_segs; }

}  // namespace

void launch_attn_fwd(Encoder& e, const rlv_op_attn_fwd& a) {
  if (!checked(e, "attn_fwd: heads must be a multiple of kv heads", "attn_fwd: head_dim beyond 256", a.heads,
               a.kv_heads, a.head_dim))
    return;
  const uint64_t rows = uint64_t(a.rows) * (a.heads / a.kv_heads);
  e.run("attention", variant("attn_fwd", a.head_dim, a.dt), {tiles(rows, a.n_segs), a.kv_heads}, {kThreads});
}

void launch_attn_bwd(Encoder& e, const rlv_op_attn_bwd& a) {
  if (!checked(e, "attn_bwd: heads must be a multiple of kv heads", "attn_bwd: head_dim beyond 256", a.heads,
               a.kv_heads, a.head_dim))
    return;
  const uint64_t rows = uint64_t(a.rows) * (a.heads / a.kv_heads);
  e.run("attention", variant("attn_bwd_dq", a.head_dim, a.dt), {tiles(rows, a.n_segs), a.kv_heads},
        {kThreads});
  e.run("attention", variant("attn_bwd_dkv", a.head_dim, a.dt), {tiles(a.rows, a.n_segs), a.kv_heads},
        {kThreads});
}

void launch_attn_decode(Encoder& e, const rlv_op_attn_decode& a) {
  if (!checked(e, "attn_decode: heads must be a multiple of kv heads", "attn_decode: head_dim beyond 256",
               a.heads, a.kv_heads, a.head_dim))
    return;
  e.run("attention", variant("attn_decode", a.head_dim, a.dt),
        {a.batch, a.kv_heads, groups_of(a.heads / a.kv_heads, 8)}, {kThreads});
}

}  // namespace metal
}  // namespace rlv
