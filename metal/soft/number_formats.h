// 16-bit floating point numbers as bits.
#pragma once
#include <cstdint>
#include <cstring>

namespace soft {

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float bfloat_to_float(uint16_t bits) { return bits_as<float>(uint32_t(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bfloat(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
  if (exponent == 31) return bits_as<float>(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) {  // zero or denormal: exact in float32
    const float magnitude = float(fraction) * 0x1p-24f;
    return bits_as<float>(sign | bits_as<uint32_t>(magnitude));
  }
  return bits_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = bits_as<uint32_t>(x), magnitude = bits & 0x7fffffff;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {  // denormal: adding 0.5 rounds at a unit of 2^-24
    const float sum = bits_as<float>(magnitude) + 0.5f;
    return uint16_t(sign | (bits_as<uint32_t>(sum) - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13));
}

}  // namespace soft
