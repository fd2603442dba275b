#pragma once
#include <cstdint>
#include <cstddef>

namespace rlv {

// What a kernel sees of the thread that runs it. Every thread of the pool calls every kernel of a program
// with the same arguments; a kernel divides its work by (tid, threads) such that no result depends on the
// division, and ends without a barrier: the executor places barriers where byte ranges conflict.
struct Ctx {
  uint32_t tid = 0;
  uint32_t threads = 1;

  // Waits until all threads of the pool are here. All threads must call it equally often.
  void barrier();
  // Thread-local scratch of at least `bytes`, 64-byte aligned, valid until the next call with the same slot.
  void* local(int slot, size_t bytes);
  // Records the first error of the stream; later operations are skipped. `detail` is a static string.
  void fail(const char* detail, uint32_t value = 0);

  void* impl = nullptr;
};

constexpr int kLocalSlots = 8;

// Static partition of n items: thread i gets [begin, end), sizes differ by at most one.
struct Range {
  uint32_t begin, end;
};
inline Range split(uint32_t n, const Ctx& c) {
  const uint64_t b = uint64_t(n) * c.tid / c.threads, e = uint64_t(n) * (c.tid + 1) / c.threads;
  return {uint32_t(b), uint32_t(e)};
}
// The same in multiples of `unit`.
inline Range split_units(uint32_t n, uint32_t unit, const Ctx& c) {
  const Range r = split((n + unit - 1) / unit, c);
  const uint32_t b = r.begin * unit, e = r.end * unit;
  return {b < n ? b : n, e < n ? e : n};
}

using Kernel = void (*)(Ctx&, const void* args);

}  // namespace rlv
