// What clang's sanitizers call in instrumented kernels. Kernels are compiled with -fsanitize=thread and
// others, but no sanitizer's runtime is linked.
#include <cstring>
#include "worker.h"

#define SOFT_EXPORT extern "C" __attribute__((visibility("default")))
#define SOFT_CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

namespace soft {

namespace {

Worker* watching() {
  Worker* w = current_worker;
  return w && w->instrumented() ? w : nullptr;
}

inline void seen(const void* p, size_t bytes, Access access, uintptr_t caller) {
  if (Worker* w = watching()) w->access(p, bytes, access, caller);
}
inline void seen_aligned(const void* p, size_t bytes, Access access, uintptr_t caller) {
  Worker* w = watching();
  if (!w) return;
  w->check_alignment(p, bytes, caller);
  w->access(p, bytes, access, caller);
}

// The head of every record that a check hands over.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

void undefined_behaviour(const char* what, bool fatal, const void* record, uintptr_t caller) {
  Worker* w = watching();
  if (!w) return;
  const auto* at = static_cast<const SourceLocation*>(record);
  const bool in_source = at && at->file && std::strstr(at->file, "program_source");
  w->undefined_behaviour(what, fatal, caller, in_source ? int(at->line) : 0);
}

}  // namespace

}  // namespace soft

// ---- memory accesses
// ---------------------------------------------------------------------------------------

#define SOFT_ACCESS(bytes)                                           \
  SOFT_EXPORT void __tsan_read##bytes(void* p) {                     \
    soft::seen_aligned(p, bytes, soft::Access::kLoad, SOFT_CALLER);  \
  }                                                                  \
  SOFT_EXPORT void __tsan_write##bytes(void* p) {                    \
    soft::seen_aligned(p, bytes, soft::Access::kStore, SOFT_CALLER); \
  }                                                                  \
  SOFT_EXPORT void __tsan_unaligned_read##bytes(void* p) {           \
    soft::seen(p, bytes, soft::Access::kLoad, SOFT_CALLER);          \
  }                                                                  \
  SOFT_EXPORT void __tsan_unaligned_write##bytes(void* p) {          \
    soft::seen(p, bytes, soft::Access::kStore, SOFT_CALLER);         \
  }
SOFT_ACCESS(1)
SOFT_ACCESS(2)
SOFT_ACCESS(4)
SOFT_ACCESS(8)
SOFT_ACCESS(16)

SOFT_EXPORT void __tsan_init() {}
SOFT_EXPORT void __tsan_func_entry(void* caller) {
  if (soft::current_worker) soft::current_worker->enter_function(reinterpret_cast<uintptr_t>(caller));
}
SOFT_EXPORT void __tsan_func_exit() {
  if (soft::current_worker) soft::current_worker->leave_function();
}
SOFT_EXPORT void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  soft::seen(from, bytes, soft::Access::kLoad, SOFT_CALLER);
  soft::seen(to, bytes, soft::Access::kStore, SOFT_CALLER);
  return std::memcpy(to, from, bytes);
}
SOFT_EXPORT void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  soft::seen(from, bytes, soft::Access::kLoad, SOFT_CALLER);
  soft::seen(to, bytes, soft::Access::kStore, SOFT_CALLER);
  return std::memmove(to, from, bytes);
}
SOFT_EXPORT void* __tsan_memset(void* to, int value, size_t bytes) {
  soft::seen(to, bytes, soft::Access::kStore, SOFT_CALLER);
  return std::memset(to, value, bytes);
}

// ---- undefined behaviour
// -----------------------------------------------------------------------------------

// A fatal one would crash in the next instruction.
#define SOFT_UNDEFINED(name, what, fatal)                        \
  SOFT_EXPORT void __ubsan_handle_##name(void* record) {         \
    soft::undefined_behaviour(what, fatal, record, SOFT_CALLER); \
  }                                                              \
  SOFT_EXPORT void __ubsan_handle_##name##_abort(void* record) { \
    soft::undefined_behaviour(what, true, record, SOFT_CALLER);  \
  }
SOFT_UNDEFINED(type_mismatch_v1, "misaligned or null access", true)
SOFT_UNDEFINED(alignment_assumption, "misaligned pointer", true)
SOFT_UNDEFINED(out_of_bounds, "array index out of bounds", false)
SOFT_UNDEFINED(shift_out_of_bounds, "shift count out of range", false)
SOFT_UNDEFINED(float_cast_overflow, "float to integer conversion out of range", false)
SOFT_UNDEFINED(divrem_overflow, "integer division by zero or overflow", true)
SOFT_UNDEFINED(add_overflow, "signed overflow in an addition", false)
SOFT_UNDEFINED(sub_overflow, "signed overflow in a subtraction", false)
SOFT_UNDEFINED(mul_overflow, "signed overflow in a multiplication", false)
SOFT_UNDEFINED(negate_overflow, "signed overflow in a negation", false)
SOFT_UNDEFINED(load_invalid_value, "invalid bool or enum value", false)
SOFT_UNDEFINED(pointer_overflow, "pointer overflow", false)
SOFT_UNDEFINED(invalid_builtin, "invalid argument of a builtin function", false)
SOFT_UNDEFINED(vla_bound_not_positive, "array bound not positive", true)
SOFT_EXPORT void __ubsan_handle_missing_return(void* record) {
  soft::undefined_behaviour("missing return", true, record, SOFT_CALLER);
}
SOFT_EXPORT void __ubsan_handle_builtin_unreachable(void* record) {
  soft::undefined_behaviour("unreachable code reached", true, record, SOFT_CALLER);
}
