// What tests and benchmarks ask software Metal: traffic of every kernel, objects alive.
#include "metal_classes.h"

#include <dlfcn.h>
#include <atomic>
#include <cstdio>
#include <cstring>

namespace soft {
namespace metal {

namespace {

struct KernelCounts {
  uint64_t dispatches = 0;
  Counts sum;
};

// Never destroyed: queues' threads may still run when the program ends.
struct Counters {
  std::mutex mutex;
  std::map<std::string, KernelCounts> kernels;
};

std::atomic<bool> counts{false};
std::atomic<uint32_t> sampled{0};

Counters& counters() {
  static Counters* const c = new Counters;
  return *c;
}

std::string json_number(double x) {
  char digits[40];
  std::snprintf(digits, sizeof digits, "%.17g", x);
  return digits;
}

std::string json(const KernelCounts& kernel) {
  const Counts& sum = kernel.sum;
  return "{\"dispatches\":" + std::to_string(kernel.dispatches) +
         ",\"loaded_bytes\":" + json_number(sum.loaded_bytes) +
         ",\"stored_bytes\":" + json_number(sum.stored_bytes) +
         ",\"matrix_ops\":" + json_number(sum.matrix_ops) + ",\"simd_ops\":" + json_number(sum.simd_ops) +
         ",\"barriers\":" + json_number(sum.barriers) + ",\"groups\":" + json_number(sum.groups) +
         ",\"threads\":" + json_number(sum.threads) +
         ",\"threadgroup_memory\":" + std::to_string(sum.threadgroup_memory) + "}";
}

// Kernels are libraries of their own that look for soft_* in the global scope; whoever loaded this library
// may have kept it out of there.
const bool promoted = [] {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&count), &info) && info.dli_fname)
    dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
  return true;
}();

}  // namespace

bool counting() { return counts; }

uint32_t sampled_groups() { return sampled; }

void count(const std::string& kernel, const Counts& counts) {
  Counters& all = counters();
  std::lock_guard<std::mutex> lock(all.mutex);
  KernelCounts& its = all.kernels[kernel];
  its.dispatches++;
  its.sum += counts;
}

}  // namespace metal
}  // namespace soft

// Devices opened from now on count what their kernels do, or do not.
SOFT_EXPORT void soft_counting(uint32_t on) { soft::metal::counts = on != 0; }

// Counting devices run only so many threadgroups of a dispatch, spread over it, and scale the counts; 0: all.
SOFT_EXPORT void soft_sample_groups(uint32_t groups) { soft::metal::sampled = groups; }

// {"KERNEL": {...}} of every kernel run by a counting device since the last reset. Returns its length; it is
// written, with a 0 behind, and counters are reset, only if it fits.
SOFT_EXPORT uint32_t soft_counters(char* out, uint32_t capacity, uint32_t reset) {
  soft::metal::Counters& all = soft::metal::counters();
  std::lock_guard<std::mutex> lock(all.mutex);
  std::string text = "{";
  for (const auto& [name, kernel] : all.kernels)
    text += (text.size() > 1 ? ",\"" : "\"") + name + "\":" + soft::metal::json(kernel);
  text += "}";
  const uint32_t length = uint32_t(text.size());
  if (!out || length >= capacity) return length;
  std::memcpy(out, text.c_str(), length + 1);
  if (reset) all.kernels.clear();
  return length;
}

// Objects alive by class, after queues' threads have let go of theirs.
SOFT_EXPORT void soft_live(void (*visit)(const char* class_name, long count)) {
  soft::metal::wait_until_idle();
  soft::each_live_class([&](const char* name, long count) { visit(name, count); });
}

SOFT_EXPORT uint32_t soft_live_objects() {
  soft::metal::wait_until_idle();
  long total = 0;
  soft::each_live_class([&](const char*, long count) { total += count; });
  return uint32_t(total);
}
