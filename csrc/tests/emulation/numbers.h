// Numbers of 16 bits, widened to float32 and rounded from it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <storage.cuh>

namespace hifuse::emulation {

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float widen(cuda::bf16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

inline float widen(cuda::f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -small : small;
}

// To the nearest, ties to even. Every NaN becomes 0x7fff, as cvt gives it.
template <class T>
uint16_t narrow(float x);

template <>
inline uint16_t narrow<cuda::bf16>(float x) {
  const uint32_t bits = to_bits(x);
  if (std::isnan(x)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <>
inline uint16_t narrow<cuda::f16>(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint16_t sign = static_cast<uint16_t>(to_bits(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f));  // subnormal, or the least normal
  const uint32_t bits = to_bits(size) - (112u << 23);
  return sign | static_cast<uint16_t>((bits + 0xfff + (bits >> 13 & 1)) >> 13);
}

}  // namespace hifuse::emulation
