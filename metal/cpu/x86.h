// What an x86-64 processor and its system can run, asked by CPUID and XGETBV (Intel SDM, volume 2A and volume
// 1, chapter 14): not every compiler's runtime has __builtin_cpu_supports.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#include <initializer_list>

namespace rlv {

struct X86 {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, VL and DQ
  bool avx512bf16 = false;
};

inline X86 detect_x86() {
  struct Leaf {
    uint32_t a = 0, b = 0, c = 0, d = 0;
  };
  const auto leaf = [](uint32_t number, uint32_t part) {
    Leaf found;
    // 0 if the processor has no such leaf.
    if (__get_cpuid_count(number, part, &found.a, &found.b, &found.c, &found.d) == 0) return Leaf{};
    return found;
  };
  const auto has = [](uint32_t word, std::initializer_list<int> bits) {
    for (int bit : bits)
      if ((word >> bit & 1) == 0) return false;
    return true;
  };
  X86 found;
  const Leaf basic = leaf(1, 0);
  constexpr int kFma = 12, kOsxsave = 27, kAvx = 28, kF16c = 29;
  if (!has(basic.c, {kFma, kOsxsave, kAvx, kF16c})) return found;
  // Which registers the system saves when it switches threads.
  uint32_t saved, high;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  constexpr int kSse = 1, kYmm = 2, kMask = 5, kZmmLow = 6, kZmmHigh = 7;
  const Leaf extended = leaf(7, 0);
  constexpr int kAvx2 = 5, kAvx512f = 16, kAvx512dq = 17, kAvx512bw = 30, kAvx512vl = 31;
  found.avx2 = has(saved, {kSse, kYmm}) && has(extended.b, {kAvx2});
  found.avx512 = found.avx2 && has(saved, {kMask, kZmmLow, kZmmHigh}) &&
                 has(extended.b, {kAvx512f, kAvx512dq, kAvx512bw, kAvx512vl});
  constexpr int kAvx512bf16 = 5;
  found.avx512bf16 = found.avx512 && extended.a >= 1 && has(leaf(7, 1).a, {kAvx512bf16});
  return found;
}

}  // namespace rlv
#endif
