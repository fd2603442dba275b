// What the native kernel tests share: a pool that lives for one call, arrays in storage dtype, comparison.
// Include after the kernels' .cpp files; one translation unit per test program.
#pragma once
#include <algorithm>
#include <cmath>
#include <complex>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>
#include "../../metal/cpu/ctx.h"
#include "../../metal/cpu/vec.h"
#include "args.gen.hpp"

namespace {

struct Pool {
  std::mutex mutex;
  std::condition_variable turn;
  uint32_t threads = 1, waiting = 0, phase = 0;
  std::string error;
};
struct Thread {
  Pool* pool;
  std::vector<char> local[rlv::kLocalSlots];
};

}  // namespace

void rlv::Ctx::barrier() {
  Pool& p = *static_cast<Thread*>(impl)->pool;
  std::unique_lock<std::mutex> lock(p.mutex);
  const uint32_t phase = p.phase;
  if (++p.waiting == p.threads) {
    p.waiting = 0;
    p.phase++;
    p.turn.notify_all();
  } else {
    p.turn.wait(lock, [&] { return p.phase != phase; });
  }
}
void* rlv::Ctx::local(int slot, size_t bytes) {
  std::vector<char>& v = static_cast<Thread*>(impl)->local[slot];
  v.assign(bytes + 64, char(0x7f));  // never zero by chance
  return v.data() + (64 - reinterpret_cast<uintptr_t>(v.data()) % 64) % 64;
}
void rlv::Ctx::fail(const char* detail, uint32_t) {
  Pool& p = *static_cast<Thread*>(impl)->pool;
  std::lock_guard<std::mutex> lock(p.mutex);
  if (p.error.empty()) p.error = detail;
}

namespace {

using namespace rlv;
using namespace rlv::RLV_ISA;
using std::vector;

int passed = 0, failed = 0;
inline void check(bool ok, const std::string& what) {
  ok ? passed++ : failed++;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

// Runs a kernel on `threads` threads; the error it recorded, or "".
template <class A>
std::string run(void (*kernel)(Ctx&, const A&), const A& a, uint32_t threads = 1) {
  Pool pool;
  pool.threads = threads;
  vector<Thread> state(threads);
  vector<std::thread> pool_threads;
  for (uint32_t t = 0; t < threads; t++) {
    state[t].pool = &pool;
    pool_threads.emplace_back([&, t] {
      Ctx c;
      c.tid = t;
      c.threads = threads;
      c.impl = &state[t];
      kernel(c, a);
    });
  }
  for (std::thread& t : pool_threads) t.join();
  return pool.error;
}

std::mt19937 engine(7);
inline double normal() { return std::normal_distribution<double>()(engine); }

// An array in storage dtype with the same values in float64.
struct Array {
  uint32_t dt;
  vector<char> bytes;
  size_t n;
  Array(uint32_t dt, size_t n, double scale = 0) : dt(dt), bytes(n * (dt == RLV_BF16 ? 2 : 4) + 64, 0), n(n) {
    for (size_t i = 0; i < n; i++) set(i, scale * normal());
  }
  void* ptr() { return bytes.data(); }
  char* at(size_t i) { return bytes.data() + i * (dt == RLV_BF16 ? 2 : 4); }
  const char* at(size_t i) const { return const_cast<Array*>(this)->at(i); }
  void set(size_t i, double x) {
    if (dt == RLV_BF16) {
      const uint16_t h = f32_to_bf16(float(x));
      std::memcpy(at(i), &h, 2);
    } else {
      const float f = float(x);
      std::memcpy(at(i), &f, 4);
    }
  }
  double operator[](size_t i) const {
    if (dt == RLV_BF16) {
      uint16_t h;
      std::memcpy(&h, at(i), 2);
      return bf16_to_f32(h);
    }
    float f;
    std::memcpy(&f, at(i), 4);
    return f;
  }
  Array slice(size_t begin, size_t count) const {
    Array s(dt, count);
    std::memcpy(s.ptr(), at(begin), count * (dt == RLV_BF16 ? 2 : 4));
    return s;
  }
  bool operator==(const Array& o) const { return bytes == o.bytes; }
};

// Every error of `got` against float64 is small beside the largest value (at least `scale`: that of the
// terms, where they cancel) and, in bfloat16, the rounding of the value itself.
inline bool close(const Array& got, const vector<double>& want, double f32_tolerance = 3e-6,
                  double scale = 0) {
  for (double w : want) scale = std::max(scale, std::abs(w));
  for (size_t i = 0; i < want.size(); i++) {
    const double tolerance =
        f32_tolerance * (scale + std::abs(want[i])) + (got.dt == RLV_BF16 ? std::abs(want[i]) / 250 : 0);
    if (!(std::abs(got[i] - want[i]) <= tolerance)) {
      std::printf("  element %zu: %.9g, expected %.9g\n", i, got[i], want[i]);
      return false;
    }
  }
  return true;
}

using Complex = std::complex<double>;
constexpr double kStep = 1e-30;
// gradient[i] = d/dx_i of sum(cotangent * f(x)), by the complex step.
inline vector<double> gradient(const std::function<vector<Complex>(const vector<Complex>&)>& f,
                               const vector<double>& x, const vector<double>& cotangent) {
  vector<Complex> z(x.begin(), x.end());
  vector<double> g(x.size());
  for (size_t i = 0; i < x.size(); i++) {
    z[i] += Complex(0, kStep);
    const vector<Complex> y = f(z);
    for (size_t j = 0; j < y.size(); j++) g[i] += cotangent[j] * y[j].imag() / kStep;
    z[i] = x[i];
  }
  return g;
}

inline std::string label(const char* what, uint32_t dt, uint32_t a, uint32_t b) {
  std::ostringstream s;
  s << what << (dt == RLV_BF16 ? " bf16 " : " f32 ") << a << "x" << b;
  return s.str();
}

inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}

}  // namespace
