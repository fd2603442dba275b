#include "launch.h"

namespace rlv {
namespace metal {

namespace {
constexpr uint32_t kThreads = 256, kColumns = 1024, kGatheredRows = 16;
}

void launch_embed_fwd(Encoder& e, const rlv_op_embed_fwd& a) {
  e.run("embedding", std::string("embed_fwd") + suffix(a.dt) + suffix(a.wdt),
        {groups_of(a.cols, kThreads), a.rows}, {kThreads});
}

void launch_embed_bwd(Encoder& e, const rlv_op_embed_bwd& a) {
  e.run("embedding", std::string("embed_bwd") + suffix(a.dt) + suffix(a.wdt),
        {groups_of(a.cols, kColumns), a.rows}, {kThreads});
}

void launch_gather_rows(Encoder& e, const rlv_op_gather_rows& a) {
  e.run("embedding", std::string("gather_rows") + suffix(a.dt), {groups_of(a.cols, kThreads), a.rows},
        {kThreads});
}

void launch_gather_rows_bwd(Encoder& e, const rlv_op_gather_rows_bwd& a) {
  e.run("embedding", std::string("gather_rows_bwd") + suffix(a.dt),
        {groups_of(a.cols, kThreads), groups_of(a.src_rows, kGatheredRows)}, {kThreads});
}

}  // namespace metal
}  // namespace rlv
