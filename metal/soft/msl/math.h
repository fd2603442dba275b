// <metal_math>, <metal_common>, <metal_integer>, <metal_geometric> and <metal_relational>. float functions
// are the C library's: as `precise` as Metal's are without fast math.
namespace metal {
#define SOFT_ELEMENTWISE(f)              \
  template <class T>                     \
  inline T f(T x) {                      \
    return __builtin_elementwise_##f(x); \
  }
SOFT_ELEMENTWISE(exp)
SOFT_ELEMENTWISE(exp2)
SOFT_ELEMENTWISE(log)
SOFT_ELEMENTWISE(log2)
SOFT_ELEMENTWISE(log10)
SOFT_ELEMENTWISE(sin)
SOFT_ELEMENTWISE(cos)
SOFT_ELEMENTWISE(tan)
SOFT_ELEMENTWISE(tanh)
SOFT_ELEMENTWISE(floor)
SOFT_ELEMENTWISE(ceil)
SOFT_ELEMENTWISE(trunc)
SOFT_ELEMENTWISE(rint)
SOFT_ELEMENTWISE(round)
SOFT_ELEMENTWISE(sqrt)
SOFT_ELEMENTWISE(abs)
#undef SOFT_ELEMENTWISE
template <class T>
inline T fabs(T x) {
  return __builtin_elementwise_abs(x);
}
template <class T>
inline T rsqrt(T x) {
  return T(1) / __builtin_elementwise_sqrt(x);
}
template <class T>
inline T max(T a, T b) {
  return __builtin_elementwise_max(a, b);
}
template <class T>
inline T min(T a, T b) {
  return __builtin_elementwise_min(a, b);
}
template <class T>
inline T fmax(T a, T b) {
  return __builtin_elementwise_max(a, b);
}
template <class T>
inline T fmin(T a, T b) {
  return __builtin_elementwise_min(a, b);
}
template <class T>
inline T fma(T a, T b, T c) {
  return __builtin_elementwise_fma(a, b, c);
}
template <class T>
inline T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
template <class T>
inline T saturate(T x) {
  return clamp(x, T(0), T(1));
}
template <class T>
inline T pow(T a, T b) {
  return __builtin_elementwise_pow(a, b);
}
template <class T>
inline T copysign(T a, T b) {
  return __builtin_elementwise_copysign(a, b);
}
template <class T>
inline T mix(T a, T b, T t) {
  return a + (b - a) * t;
}
template <class T>
inline T sign(T x) {
  return T(x > T(0)) - T(x < T(0));
}
template <class T>
inline T fract(T x) {
  return x - floor(x);
}
template <class T>
inline T step(T edge, T x) {
  return x < edge ? T(0) : T(1);
}
template <class T>
inline T select(T a, T b, bool c) {
  return c ? b : a;
}
template <class T, int N, class M>
inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<M, N> mask) {
  return mask ? b : a;
}
template <class T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = 0;
  for (int i = 0; i < N; i++) sum += a[i] * b[i];
  return sum;
}
template <class T, int N>
inline bool any(vec<T, N> a) {
  for (int i = 0; i < N; i++)
    if (a[i]) return true;
  return false;
}
template <class T, int N>
inline bool all(vec<T, N> a) {
  for (int i = 0; i < N; i++)
    if (!a[i]) return false;
  return true;
}
inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return __builtin_elementwise_abs(x) == INFINITY; }
inline bool isfinite(float x) { return __builtin_elementwise_abs(x) < INFINITY; }
inline bool signbit(float x) { return __builtin_bit_cast(uint, x) >> 31; }
inline float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
inline float atan2(float y, float x) { return atan2f(y, x); }
inline float fmod(float x, float y) { return fmodf(x, y); }
inline float divide(float a, float b) { return a / b; }

template <class T>
inline T popcount(T x) {
  T n = 0;
  for (; x; x &= x - 1) n++;
  return n;
}
inline uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
inline ulong clz(ulong x) { return x ? __builtin_clzl(x) : 64; }
inline ulong ctz(ulong x) { return x ? __builtin_ctzl(x) : 64; }
inline uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
inline uint extract_bits(uint v, uint offset, uint bits) {
  return (v >> offset) & (bits >= 32 ? ~0u : (1u << bits) - 1);
}
inline uint rotate(uint x, uint n) { return (x << (n & 31)) | (x >> (-n & 31)); }

#define SOFT_USING     \
  using metal::cos;    \
  using metal::divide; \
  using metal::exp;    \
  using metal::exp2;   \
  using metal::fma;    \
  using metal::log;    \
  using metal::log2;   \
  using metal::pow;    \
  using metal::rsqrt;  \
  using metal::sin;    \
  using metal::sqrt;   \
  using metal::tanh;
namespace precise {
SOFT_USING
}
namespace fast {
SOFT_USING
}
#undef SOFT_USING
}  // namespace metal
