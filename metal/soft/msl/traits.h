// <metal_type_traits>, <metal_limits> and what this library asks of types itself.
namespace metal {
typedef ::size_t size_t;

template <class A, class B>
constexpr constant bool is_same_v = false;
template <class A>
constexpr constant bool is_same_v<A, A> = true;
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F>
struct conditional {
  using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
  using type = F;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;
template <class T>
constexpr constant bool is_floating_point_v =
    is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>;
template <class T>
constexpr constant bool is_integral_v = __is_integral(T);

template <class T>
struct __identity {
  using type = T;
};

// Element and number of elements of a scalar or vector.
template <class T>
struct __shape {
  using element = T;
  enum { count = 1 };
};
#define SOFT_SHAPE(T)    \
  template <>            \
  struct __shape<T##2> { \
    using element = T;   \
    enum { count = 2 };  \
  };                     \
  template <>            \
  struct __shape<T##3> { \
    using element = T;   \
    enum { count = 3 };  \
  };                     \
  template <>            \
  struct __shape<T##4> { \
    using element = T;   \
    enum { count = 4 };  \
  };
SOFT_EACH_ELEMENT(SOFT_SHAPE)
#undef SOFT_SHAPE

// What the runtime calls a type.
template <class T>
struct __code;
#define SOFT_CODE(T, number) \
  template <>                \
  struct __code<T> {         \
    enum { value = number }; \
  };
SOFT_CODE(float, 0)
SOFT_CODE(int, 1)
SOFT_CODE(uint, 2)
SOFT_CODE(half, 3)
SOFT_CODE(bfloat, 4)
SOFT_CODE(short, 5)
SOFT_CODE(ushort, 6)
SOFT_CODE(char, 7)
SOFT_CODE(uchar, 8)
SOFT_CODE(bool, 9)
#undef SOFT_CODE

template <class T>
struct numeric_limits;
#define SOFT_FLOAT_LIMITS(T, largest, smallest, eps)        \
  template <>                                               \
  struct numeric_limits<T> {                                \
    static constexpr T max() { return (T)(largest); }       \
    static constexpr T lowest() { return (T)(-(largest)); } \
    static constexpr T min() { return (T)(smallest); }      \
    static constexpr T epsilon() { return (T)(eps); }       \
    static constexpr T infinity() { return (T)INFINITY; }   \
    static constexpr T quiet_NaN() { return (T)NAN; }       \
  };
SOFT_FLOAT_LIMITS(float, FLT_MAX, FLT_MIN, FLT_EPSILON)
SOFT_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-05f, 9.765625e-4f)
SOFT_FLOAT_LIMITS(bfloat, 3.38953139e38f, FLT_MIN, 7.8125e-3f)
#undef SOFT_FLOAT_LIMITS
#define SOFT_INTEGER_LIMITS(T, low, high)            \
  template <>                                        \
  struct numeric_limits<T> {                         \
    static constexpr T max() { return (T)(high); }   \
    static constexpr T lowest() { return (T)(low); } \
    static constexpr T min() { return (T)(low); }    \
  };
SOFT_INTEGER_LIMITS(int, -0x7fffffff - 1, 0x7fffffff)
SOFT_INTEGER_LIMITS(uint, 0, 0xffffffffu)
SOFT_INTEGER_LIMITS(short, -32768, 32767)
SOFT_INTEGER_LIMITS(ushort, 0, 65535)
SOFT_INTEGER_LIMITS(uchar, 0, 255)
SOFT_INTEGER_LIMITS(long, -0x7fffffffffffffffl - 1, 0x7fffffffffffffffl)
SOFT_INTEGER_LIMITS(ulong, 0, ~0ul)
#undef SOFT_INTEGER_LIMITS
}  // namespace metal
