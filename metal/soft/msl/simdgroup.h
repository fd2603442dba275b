// Barriers and functions of a simdgroup. The line of the caller travels along: all lanes must come from the
// same one.
namespace metal {
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }
// Inlined, so that the runtime sees the place in the kernel as the caller.
#define SOFT_INLINE inline __attribute__((always_inline))
SOFT_INLINE void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  soft_barrier(0, (uint)flags, line);
}
SOFT_INLINE void simdgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  soft_barrier(1, (uint)flags, line);
}

template <class T>
SOFT_INLINE T __simd(T x, int op, uint argument, int line) {
  if constexpr (__shape<T>::count == 1) {
    return __bits_as<T>(soft_simd(__bits_of(x), op, __code<T>::value, argument, line));
  } else {
    using E = typename __shape<T>::element;
    T r;
    for (int i = 0; i < __shape<T>::count; i++) {
      E e = x[i];
      r[i] = __bits_as<E>(soft_simd(__bits_of(e), op, __code<E>::value, argument, line));
    }
    return r;
  }
}
#define SOFT_SIMD(name, op)                              \
  template <class T>                                     \
  SOFT_INLINE T name(T x, int line = __builtin_LINE()) { \
    return __simd(x, op, 0, line);                       \
  }
SOFT_SIMD(simd_sum, 0)
SOFT_SIMD(simd_max, 1)
SOFT_SIMD(simd_min, 2)
SOFT_SIMD(simd_product, 3)
SOFT_SIMD(simd_and, 4)
SOFT_SIMD(simd_or, 5)
SOFT_SIMD(simd_xor, 6)
SOFT_SIMD(simd_prefix_inclusive_sum, 7)
SOFT_SIMD(simd_prefix_exclusive_sum, 8)
SOFT_SIMD(simd_broadcast_first, 9)
#undef SOFT_SIMD
#define SOFT_SIMD_LANE(name, op)                                      \
  template <class T>                                                  \
  SOFT_INLINE T name(T x, ushort lane, int line = __builtin_LINE()) { \
    return __simd(x, op, lane, line);                                 \
  }
SOFT_SIMD_LANE(simd_shuffle, 16)
SOFT_SIMD_LANE(simd_shuffle_xor, 17)
SOFT_SIMD_LANE(simd_shuffle_down, 18)
SOFT_SIMD_LANE(simd_shuffle_up, 19)
SOFT_SIMD_LANE(simd_broadcast, 20)
SOFT_SIMD_LANE(simd_shuffle_rotate_down, 21)
SOFT_SIMD_LANE(simd_shuffle_rotate_up, 22)
#undef SOFT_SIMD_LANE
SOFT_INLINE bool simd_any(bool x, int line = __builtin_LINE()) { return soft_simd(x, 5, 2, 0, line) != 0; }
SOFT_INLINE bool simd_all(bool x, int line = __builtin_LINE()) {
  return soft_simd(x ? ~0u : 0u, 4, 2, 0, line) != 0;
}
inline bool simd_is_first() { return soft_lane() == 0; }
}  // namespace metal
