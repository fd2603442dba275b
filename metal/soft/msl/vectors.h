// Vector constructors (the rewriter turns float4(..) into metal::__make<float4>(..)) and reinterpretation of
// bits.
namespace metal {
template <class V, int I, class A>
inline void __put(thread V& v, A a) {
  if constexpr (__shape<A>::count == 1)
    v[I] = (typename __shape<V>::element)a;
  else
    for (int i = 0; i < __shape<A>::count; i++) v[I + i] = (typename __shape<V>::element)a[i];
}
template <class V, int I>
inline void __fill(thread V&) {
  static_assert(I == __shape<V>::count, "wrong number of components in vector constructor");
}
template <class V, int I, class A, class... Rest>
inline void __fill(thread V& v, A a, Rest... rest) {
  static_assert(I + __shape<A>::count <= __shape<V>::count, "too many components in vector constructor");
  __put<V, I>(v, a);
  __fill<V, I + __shape<A>::count>(v, rest...);
}
template <class V>
inline V __make() {
  return V(0);
}
template <class V, class A>
inline V __make(A a) {
  if constexpr (__shape<A>::count == 1)
    return V((typename __shape<V>::element)a);
  else {
    static_assert(__shape<A>::count == __shape<V>::count, "vector sizes differ");
    return __builtin_convertvector(a, V);
  }
}
template <class V, class A, class B, class... Rest>
inline V __make(A a, B b, Rest... rest) {
  V v;
  __fill<V, 0>(v, a, b, rest...);
  return v;
}

template <int BYTES>
struct __unsigned_of {
  using type = uint;
};
template <>
struct __unsigned_of<1> {
  using type = uchar;
};
template <>
struct __unsigned_of<2> {
  using type = ushort;
};
template <>
struct __unsigned_of<8> {
  using type = ulong;
};
// The low bits of a word as a scalar.
template <class T>
inline T __bits_as(ulong word) {
  return __builtin_bit_cast(T, (typename __unsigned_of<sizeof(T)>::type)word);
}
template <class T>
inline uint __bits_of(T x) {
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(uint, x);
  else if constexpr (sizeof(T) == 2)
    return __builtin_bit_cast(ushort, x);
  else
    return (uchar)x;
}
}  // namespace metal

template <class To, class From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type between types of different size");
  return __builtin_bit_cast(To, from);
}
