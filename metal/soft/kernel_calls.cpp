// The functions that metal_stdlib for software Metal declares.
#include <cstring>
#include "number_formats.h"
#include "worker.h"

#define SOFT_EXPORT extern "C" __attribute__((visibility("default")))
#define SOFT_CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

namespace soft {

namespace {

enum AtomicOperation : int {
  kAtomicLoad = 0,
  kAtomicStore,
  kAtomicExchange,
  kAtomicAdd,
  kAtomicSub,
  kAtomicMax,
  kAtomicMin,
  kAtomicCompareExchange,
  kAtomicAnd,
  kAtomicOr,
  kAtomicXor,
};

uint32_t atomic_result(int operation, uint32_t type, uint32_t old, uint32_t value) {
  switch (operation) {
    case kAtomicAdd:
      return combine(kSimdSum, type, old, value);
    case kAtomicSub:
      return type == kFloat ? bits_as<uint32_t>(bits_as<float>(old) - bits_as<float>(value)) : old - value;
    case kAtomicMax:
      return combine(kSimdMax, type, old, value);
    case kAtomicMin:
      return combine(kSimdMin, type, old, value);
    case kAtomicAnd:
      return old & value;
    case kAtomicOr:
      return old | value;
    case kAtomicXor:
      return old ^ value;
    default:
      return value;
  }
}

uint32_t atomic(uint32_t* p, uint32_t value, uint32_t expected, int operation, uint32_t type) {
  uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
  if (operation == kAtomicLoad) return old;
  for (;;) {
    if (operation == kAtomicCompareExchange && old != expected) return old;
    const uint32_t next = atomic_result(operation, type, old, value);
    if (__atomic_compare_exchange_n(p, &old, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
  }
}

// Separate functions: they find the lane anew, so that the calls before a switch keep no registers.
__attribute__((noinline)) uint32_t simd_result() {
  const Fiber& f = current_worker->running();
  return f.simdgroup->out[f.lane];
}

// A simdgroup's next product needs all lanes to come, so its one result stays until all have taken it.
__attribute__((noinline)) void take_floats() {
  const Fiber& f = current_worker->running();
  std::memcpy(reinterpret_cast<void*>(f.result), f.simdgroup->d + f.fragment, 2 * sizeof(float));
}

}  // namespace

}  // namespace soft

using soft::current_worker;

SOFT_EXPORT void soft_barrier(int kind, uint32_t flags, int line) {
  if (kind == 1)
    current_worker->simdgroup_barrier(flags, SOFT_CALLER, line);
  else
    current_worker->threadgroup_barrier(flags, SOFT_CALLER, line);
}

SOFT_EXPORT uint64_t soft_threadgroup_variable(int id, uint64_t size, int line) {
  return reinterpret_cast<uint64_t>(current_worker->threadgroup_variable(id, size, SOFT_CALLER, line));
}

SOFT_EXPORT uint32_t soft_simd(uint32_t bits, int op, int type, uint32_t argument, int line) {
  current_worker->simd(bits, uint32_t(op), uint32_t(type), argument, SOFT_CALLER, line);
  return soft::simd_result();
}

SOFT_EXPORT void soft_matrix_multiply(uint64_t d, uint64_t a, uint64_t b, uint64_t c, int types, int line) {
  if (types != 0 || c == 0) return current_worker->multiply(d, a, b, c, uint32_t(types), SOFT_CALLER, line);
  current_worker->multiply_floats(d, a, b, c, SOFT_CALLER, line);
  soft::take_floats();
}

SOFT_EXPORT uint32_t soft_atomic(uint64_t address, uint32_t value, uint32_t expected, int op, int type) {
  soft::Worker& w = *current_worker;
  uint32_t* p = reinterpret_cast<uint32_t*>(address);
  if (w.instrumented()) {
    w.check_alignment(p, 4, SOFT_CALLER);
    const bool load = op == soft::kAtomicLoad, store = op == soft::kAtomicStore;
    if (load || (!store && w.counting())) w.access(p, 4, soft::Access::kAtomicLoad, SOFT_CALLER);
    if (!load) w.access(p, 4, soft::Access::kAtomicStore, SOFT_CALLER);
  } else {
    w.count_step(SOFT_CALLER);
  }
  return soft::atomic(p, value, expected, op, uint32_t(type));
}

SOFT_EXPORT uint64_t soft_function_constant(int index) {
  return current_worker->function_constant(index, SOFT_CALLER);
}

SOFT_EXPORT int soft_function_constant_defined(int index) {
  return current_worker->function_constant_defined(index);
}

SOFT_EXPORT void soft_check_argument(int index, uint64_t size) {
  current_worker->check_argument(index, size, SOFT_CALLER);
}

SOFT_EXPORT uint32_t soft_lane(void) { return current_worker->running().lane; }
