// What this processor can do at most, measured by register-only arithmetic and a streaming read: the
// denominators of every "fraction of the limit".
#include <atomic>
#include <chrono>
#include <vector>
#include "../ctx.h"
#include "../vec.h"

namespace rlv {
namespace RLV_ISA {

namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Independent chains enough to hide the latency of two pipes.
constexpr int kChains = W == 4 ? 12 : W == 8 ? 12 : 20;
constexpr int kInner = 4096;

// The chains must have been computed: their sum is stored where the compiler cannot see that nobody reads it.
std::atomic<float> g_sink;
void keep(const V (&acc)[kChains]) {
  float sum = 0;
  for (const V& v : acc) sum += hsum(v);
  g_sink.store(sum, std::memory_order_relaxed);
}

double float32_gflops(double seconds) {
  V acc[kChains];
  for (int i = 0; i < kChains; i++) acc[i] = set1(float(i));
  const V a = set1(0.999f), b = set1(1e-3f);
  double rounds = 0;
  const auto start = Clock::now();
  do {
    for (int r = 0; r < kInner; r++)
#pragma GCC unroll 32
      for (int i = 0; i < kChains; i++) acc[i] = fma(acc[i], a, b);
    rounds += kInner;
  } while (since(start) < seconds);
  const double elapsed = since(start);
  keep(acc);
  return rounds * kChains * W * 2 / elapsed * 1e-9;
}

double bfloat16_gflops(double seconds) {
  V acc[kChains];
  for (int i = 0; i < kChains; i++) acc[i] = set1(float(i));
  const P a = set1_pair(0x3f7f3f7fu), b = set1_pair(0x3a803a80u);
  double rounds = 0;
  const auto start = Clock::now();
  do {
    for (int r = 0; r < kInner; r++)
#pragma GCC unroll 32
      for (int i = 0; i < kChains; i++) acc[i] = dot_pairs(acc[i], a, b);
    rounds += kInner;
  } while (since(start) < seconds);
  const double elapsed = since(start);
  keep(acc);
  return rounds * kChains * W * 4 / elapsed * 1e-9;
}

// Bytes that each thread reads: all of them together far larger than any cache.
uint64_t read_bytes(uint32_t threads) {
  constexpr uint64_t kEach = uint64_t(192) << 20, kMost = uint64_t(1536) << 20;
  const uint64_t each = threads * kEach > kMost ? kMost / threads : kEach;
  return each & ~uint64_t(4095);
}

// Eight streams of sums. The memory stays with the thread: a short test among other work would else be spent
// on getting it.
double read_gbps(uint32_t threads, double seconds) {
  thread_local std::vector<float> data;
  const size_t n = read_bytes(threads) / sizeof(float);
  if (data.size() != n) data.assign(n, 1.0f);
  V acc[8];
  for (V& v : acc) v = zero();
  double bytes = 0;
  const auto start = Clock::now();
  do {
    for (size_t i = 0; i + 8 * W <= n; i += 8 * W)
      for (int j = 0; j < 8; j++) acc[j] = add(acc[j], load(data.data() + i + size_t(j) * W));
    bytes += double(n) * 4;
  } while (since(start) < seconds);
  const double elapsed = since(start);
  float sum = 0;
  for (const V& v : acc) sum += hsum(v);
  g_sink.store(sum, std::memory_order_relaxed);
  return bytes / elapsed * 1e-9;
}

double g_results[256];

}  // namespace

double measure_limit(Ctx& c, uint32_t what, double seconds) {
  c.barrier();
  g_results[c.tid] = what == 0   ? float32_gflops(seconds)
                     : what == 1 ? bfloat16_gflops(seconds)
                     : what == 2 ? read_gbps(c.threads, seconds)
                                 : double(read_bytes(c.threads));
  c.barrier();
  double sum = 0;
  for (uint32_t i = 0; i < c.threads; i++) sum += g_results[i];
  return sum;
}

}  // namespace RLV_ISA
}  // namespace rlv
