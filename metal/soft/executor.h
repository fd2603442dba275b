// Runs one dispatch of a compiled kernel on the CPU with the structure it has on a GPU: threadgroups of
// fibers, simdgroups of 32 lanes, barriers and simdgroup operations as rendezvous. Check mode watches every
// access.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace soft {

constexpr uint32_t kLanes = 32, kMaxBuffers = 31, kMaxThreads = 1024, kThreadgroupMemory = 32768;

// What a trampoline reads; mirrored by __soft_context in msl/metal_stdlib. uint3 has the size of uint4.
struct Context {
  uint64_t buffers[32];
  uint64_t threadgroup_memory[32];
  alignas(16) uint32_t thread_position_in_grid[4];
  uint32_t threadgroup_position_in_grid[4], thread_position_in_threadgroup[4], threads_per_threadgroup[4],
      threadgroups_per_grid[4], threads_per_grid[4];
  uint32_t thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup,
      simdgroups_per_threadgroup;
};

// Who wrote and read each byte of a buffer last; made on first use in check mode, owned by the buffer.
class Shadow;
struct ShadowDeleter {
  void operator()(Shadow*) const;
};
using ShadowPtr = std::unique_ptr<Shadow, ShadowDeleter>;

struct Binding {
  char* base = nullptr;  // of the whole buffer; nullptr: nothing bound
  size_t bytes = 0;      // of the whole buffer
  size_t offset = 0;
  ShadowPtr* shadow = nullptr;  // nullptr: only bounds are checked
  bool counted = true;          // as device traffic; false for the constants of one dispatch
};

// The compiled library a kernel comes from: turns code addresses into lines of the MSL source.
struct Image {
  std::string path;
  const char* begin = nullptr;
  const char* end = nullptr;
};

struct Dispatch {
  std::string kernel;
  void (*trampoline)(const Context*) = nullptr;
  const Image* image = nullptr;
  Binding buffers[kMaxBuffers];
  size_t threadgroup_bytes[kMaxBuffers] = {};
  const std::map<int, uint64_t>* constants = nullptr;
  uint32_t groups[3] = {1, 1, 1}, threads_per_group[3] = {1, 1, 1};
  uint32_t threads[3] = {1, 1, 1};  // of the whole grid
  bool exact_threads = false;       // dispatchThreads: groups at the edge are smaller
  uint64_t epoch = 0;  // dispatches of one epoch may overlap on a GPU (concurrent encoder, no barrier)
};

struct Mode {
  bool check = false;
  bool count = false;  // device traffic, needs instrumented kernels as check does
  uint64_t seed = 0;   // not 0: fibers start and wake in an order drawn from it
  uint32_t workers = 1;
  uint32_t sample_groups =
      0;  // not 0: only so many threadgroups, spread over the grid, run; counts are scaled up
};

// Traffic is what the threadgroups must move: distinct 32-byte sectors per threadgroup, summed over
// threadgroups.
struct Counts {
  double loaded_bytes = 0, stored_bytes = 0, matrix_ops = 0, simd_ops = 0, barriers = 0, groups = 0,
         threads = 0;
  uint32_t threadgroup_memory = 0;
  Counts& operator+=(const Counts& o);
};

struct Report {
  std::string what;   // one sentence: fault, place in memory, the other thread if there is one
  std::string file;   // of the source, where it has #line directives
  uint32_t line = 0;  // of that file, 0 if unknown
  uint32_t thread = 0, threadgroup[3] = {0, 0, 0};
};

struct Outcome {
  std::vector<Report> reports;  // empty: no fault seen
  bool aborted = false;         // the dispatch could not be finished
  Counts counts;
};

Outcome execute(const Dispatch& dispatch, const Mode& mode);
// "kernel 'gemm_nt_f32' gemm_tile.h:12, thread 3 (simdgroup 0 lane 3) of threadgroup (1,0,0): data race ..."
std::string describe(const std::string& kernel, const Report& report);

}  // namespace soft
