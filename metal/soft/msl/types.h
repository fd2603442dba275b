// Address spaces, scalar and vector types, and the runtime's functions.
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#define __METAL__ 1
#define __METAL_VERSION__ 310

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __bf16 bfloat;

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define M_PI_F 3.14159265358979323846f
#define M_LN2_F 0.693147180559945309417f
#define M_LOG2E_F 1.44269504088896340736f

#define SOFT_EACH_ELEMENT(X) \
  X(float) X(half) X(int) X(uint) X(short) X(ushort) X(char) X(uchar) X(long) X(ulong) X(bfloat)

namespace metal {
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));
}
#define SOFT_VECTORS(T)                               \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
SOFT_EACH_ELEMENT(SOFT_VECTORS)
#undef SOFT_VECTORS
typedef int2 bool2;
typedef int3 bool3;
typedef int4 bool4;
typedef float packed_float2 __attribute__((ext_vector_type(2), aligned(4)));
typedef float packed_float4 __attribute__((ext_vector_type(4), aligned(4)));
typedef half packed_half4 __attribute__((ext_vector_type(4), aligned(2)));

// metal/soft/kernel_calls.cpp.
extern "C" {
void soft_barrier(int kind, uint flags, int line);
ulong soft_threadgroup_variable(int id, ulong size, int line);
uint soft_simd(uint bits, int op, int type, uint argument, int line);
void soft_matrix_multiply(ulong d, ulong a, ulong b, ulong c, int types, int line);
uint soft_atomic(ulong address, uint value, uint expected, int op, int type);
ulong soft_function_constant(int index);
int soft_function_constant_defined(int index);
void soft_check_argument(int index, ulong size);
uint soft_lane(void);
float expf(float);
float exp2f(float);
float logf(float);
float log2f(float);
float sinf(float);
float cosf(float);
float tanhf(float);
float erff(float);
float powf(float, float);
float fmodf(float, float);
float atan2f(float, float);
}
