// Conversions that clang leaves to a runtime library; compiled kernels are linked without one.
#include "number_formats.h"

#define SOFT_EXPORT extern "C" __attribute__((visibility("default")))

SOFT_EXPORT __bf16 __truncsfbf2(float x) { return soft::bits_as<__bf16>(soft::float_to_bfloat(x)); }
SOFT_EXPORT __bf16 __truncdfbf2(double x) { return soft::bits_as<__bf16>(soft::float_to_bfloat(float(x))); }
SOFT_EXPORT _Float16 __truncsfhf2(float x) { return soft::bits_as<_Float16>(soft::float_to_half(x)); }
SOFT_EXPORT float __extendhfsf2(_Float16 x) { return soft::half_to_float(soft::bits_as<uint16_t>(x)); }
