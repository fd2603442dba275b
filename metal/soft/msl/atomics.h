// <metal_atomic>: relaxed atomics on device and threadgroup memory. Types of their own, so that plain access
// does not compile.
namespace metal {
enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T __value;
};
typedef atomic<int> __metal_atomic_int;
typedef atomic<uint> __metal_atomic_uint;
typedef atomic<float> __metal_atomic_float;
// OpenCL has these names already.
#define atomic_int __metal_atomic_int
#define atomic_uint __metal_atomic_uint
#define atomic_float __metal_atomic_float

// Of floats there is no maximum, no bits, and no sum in threadgroup memory.
#define SOFT_FETCH(space, name, op, floats)                                                       \
  template <class T>                                                                              \
  SOFT_INLINE T name(volatile space atomic<T>* p, typename __identity<T>::type x, memory_order) { \
    static_assert(floats || !is_same_v<T, float>, #name " of atomic float in " #space " memory"); \
    return __bits_as<T>(soft_atomic((ulong)p, __bits_of(x), 0, op, __code<T>::value));            \
  }
#define SOFT_ATOMICS(space, in_device)                                                                    \
  template <class T>                                                                                      \
  SOFT_INLINE T atomic_load_explicit(const volatile space atomic<T>* p, memory_order) {                   \
    return __bits_as<T>(soft_atomic((ulong)p, 0, 0, 0, __code<T>::value));                                \
  }                                                                                                       \
  template <class T>                                                                                      \
  SOFT_INLINE void atomic_store_explicit(volatile space atomic<T>* p, typename __identity<T>::type x,     \
                                         memory_order) {                                                  \
    soft_atomic((ulong)p, __bits_of(x), 0, 1, __code<T>::value);                                          \
  }                                                                                                       \
  SOFT_FETCH(space, atomic_exchange_explicit, 2, true)                                                    \
  SOFT_FETCH(space, atomic_fetch_add_explicit, 3, in_device)                                              \
  SOFT_FETCH(space, atomic_fetch_sub_explicit, 4, in_device)                                              \
  SOFT_FETCH(space, atomic_fetch_max_explicit, 5, false)                                                  \
  SOFT_FETCH(space, atomic_fetch_min_explicit, 6, false)                                                  \
  SOFT_FETCH(space, atomic_fetch_and_explicit, 8, false)                                                  \
  SOFT_FETCH(space, atomic_fetch_or_explicit, 9, false)                                                   \
  SOFT_FETCH(space, atomic_fetch_xor_explicit, 10, false)                                                 \
  template <class T>                                                                                      \
  SOFT_INLINE bool atomic_compare_exchange_weak_explicit(volatile space atomic<T>* p, thread T* expected, \
                                                         typename __identity<T>::type x, memory_order,    \
                                                         memory_order) {                                  \
    const uint wanted = __bits_of(*expected);                                                             \
    const uint old = soft_atomic((ulong)p, __bits_of(x), wanted, 7, __code<T>::value);                    \
    *expected = __bits_as<T>(old);                                                                        \
    return old == wanted;                                                                                 \
  }
SOFT_ATOMICS(device, true)
SOFT_ATOMICS(threadgroup, false)
#undef SOFT_ATOMICS
#undef SOFT_FETCH
}  // namespace metal
