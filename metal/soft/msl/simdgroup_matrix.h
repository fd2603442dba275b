// <metal_simdgroup_matrix>: 8x8 matrices, two elements a lane as Apple's chips hold them: with q = lane/4,
// row (q & 4) + (lane/2)%4, columns (q & 2)*2 + (lane%2)*2 and the next.
namespace metal {
inline uint __fragment_row() {
  const uint lane = soft_lane();
  return ((lane / 4) & 4) + (lane / 2) % 4;
}
inline uint __fragment_col() {
  const uint lane = soft_lane();
  return ((lane / 4) & 2) * 2 + (lane % 2) * 2;
}

template <class T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "simdgroup matrices are 8x8");
  static_assert(is_floating_point_v<T>, "elements of simdgroup matrices are float, half or bfloat");
  vec<T, 2> __elements;
  simdgroup_matrix() = default;
  // The diagonal matrix, as in Metal.
  explicit simdgroup_matrix(T x) {
    const uint row = __fragment_row(), col = __fragment_col();
    __elements[0] = row == col ? x : (T)0;
    __elements[1] = row == col + 1 ? x : (T)0;
  }
  vec<T, 2>& thread_elements() { return __elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Columns, int Rows>
inline simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T x) {
  simdgroup_matrix<T, Columns, Rows> m;
  m.__elements[0] = m.__elements[1] = x;
  return m;
}

#define SOFT_MATRIX_MEMORY(space)                                                                           \
  template <class T>                                                                                        \
  SOFT_INLINE void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& d, const space T* p, ulong stride = 8,  \
                                  ulong2 origin = 0, bool transpose = false) {                              \
    const uint row = __fragment_row(), col = __fragment_col();                                              \
    p += origin.y * stride + origin.x;                                                                      \
    d.__elements[0] = transpose ? p[col * stride + row] : p[row * stride + col];                            \
    d.__elements[1] = transpose ? p[(col + 1) * stride + row] : p[row * stride + col + 1];                  \
  }                                                                                                         \
  template <class T>                                                                                        \
  SOFT_INLINE void simdgroup_store(thread const simdgroup_matrix<T, 8, 8>& s, space T* p, ulong stride = 8, \
                                   ulong2 origin = 0, bool transpose = false) {                             \
    const uint row = __fragment_row(), col = __fragment_col();                                              \
    p += origin.y * stride + origin.x;                                                                      \
    p[transpose ? col * stride + row : row * stride + col] = s.__elements[0];                               \
    p[transpose ? (col + 1) * stride + row : row * stride + col + 1] = s.__elements[1];                     \
  }
SOFT_MATRIX_MEMORY(device)
SOFT_MATRIX_MEMORY(threadgroup)
#undef SOFT_MATRIX_MEMORY

template <class D, class A, class B, class C>
SOFT_INLINE void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d,
                                               thread const simdgroup_matrix<A, 8, 8>& a,
                                               thread const simdgroup_matrix<B, 8, 8>& b,
                                               thread const simdgroup_matrix<C, 8, 8>& c,
                                               int line = __builtin_LINE()) {
  soft_matrix_multiply(
      (ulong)&d.__elements, (ulong)&a.__elements, (ulong)&b.__elements, (ulong)&c.__elements,
      __code<D>::value | __code<A>::value << 4 | __code<B>::value << 8 | __code<C>::value << 12, line);
}
template <class D, class A, class B>
SOFT_INLINE void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d,
                                    thread const simdgroup_matrix<A, 8, 8>& a,
                                    thread const simdgroup_matrix<B, 8, 8>& b, int line = __builtin_LINE()) {
  soft_matrix_multiply((ulong)&d.__elements, (ulong)&a.__elements, (ulong)&b.__elements, 0,
                       __code<D>::value | __code<A>::value << 4 | __code<B>::value << 8, line);
}
}  // namespace metal
