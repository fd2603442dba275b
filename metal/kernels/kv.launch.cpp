#include "launch.h"

namespace rlv {
namespace metal {

void launch_kv_append(Encoder& e, const rlv_op_kv_append& a) {
  e.run("kv", std::string("kv_append") + suffix(a.dt), {a.kv_heads, groups_of(a.rows, RLV_PAGE)}, {256});
}

void launch_kv_copy(Encoder& e, const rlv_op_kv_copy& a) {
  e.run("kv", std::string("kv_copy") + suffix(a.dt), {a.kv_heads, a.count}, {128});
}

}  // namespace metal
}  // namespace rlv
