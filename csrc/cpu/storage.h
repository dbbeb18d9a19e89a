// Element types as they lie in memory, widened to the type of the arithmetic and narrowed back (round to nearest even).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace hifuse {

// A set that adds instructions for bfloat16 alone has kernels for maps of bfloat16 alone. The others are those of the set below
// it, which CMakeLists.txt names: compiled again, they would be the same instructions.
#if defined(HIFUSE_BELOW)
namespace HIFUSE_BELOW {
extern const KernelTable table;
}
#endif

inline namespace HIFUSE_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class Stored>
struct Arithmetic {
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};

inline uint32_t to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline float widen(Float16 value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);  // infinity, NaN
  // Place the bits in a float whose exponent is 112 too small; the product makes subnormals right too.
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));
#endif
}

inline void narrow(float value, float& to) { to = value; }
inline void narrow(double value, double& to) { to = value; }

inline void narrow(float value, BFloat16& to) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline void narrow(float value, Float16& to) {
#if defined(__F16C__)
  to.bits = static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint32_t bits = to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    half = 0x7c00;  // rounds past the largest, 65504
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 1/2 lets the float unit round to multiples of 2^-24, which then are the low bits.
    half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | half);
#endif
}

// Rows of elements. The compiler vectorises the plain loops; float16 needs its own instructions.
template <class Stored, class T>
inline void widen_row(const Stored* from, T* to, int64_t count) {
  int64_t i = 0;
  if constexpr (std::is_same_v<Stored, T>)
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
#if defined(__F16C__)
  if constexpr (std::is_same_v<Stored, Float16>)
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < count; ++i) to[i] = widen(from[i]);
}

template <class T, class Stored>
inline void narrow_row(const T* from, T factor, Stored* to, int64_t count) {
  int64_t i = 0;
  if constexpr (std::is_same_v<Stored, T>)
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i) * factor);
#if defined(__F16C__)
  if constexpr (std::is_same_v<Stored, Float16>)
    for (; i + 8 <= count; i += 8) {
      const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(factor));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(scaled, _MM_FROUND_TO_NEAREST_INT));
    }
#endif
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<Stored, BFloat16>)
    for (; i + 16 <= count; i += 16) {
      const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_set1_ps(factor));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)_mm512_cvtneps_pbh(scaled));
    }
#endif
  for (; i < count; ++i) narrow(from[i] * factor, to[i]);
}

// A vector of elements, widened; and narrowed.
inline Vec<float> load_wide(const float* from) { return load(from); }
inline Vec<float> load_wide(const BFloat16* from) {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2)));
  Bits bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return (Vec<float>)(__builtin_convertvector(bits, Vec<int32_t>) << 16);
}

inline void store_narrow(float* to, Vec<float> v) { store(to, v); }
inline void store_narrow(BFloat16* to, Vec<float> v) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2)));
  const Wide bits = (Wide)v;
  const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Wide finite = (Wide)((bits & 0x7fffffff) <= 0x7f800000);
  const Bits narrowed = __builtin_convertvector((rounded & finite) | (0x7fc0 & ~finite), Bits);
  __builtin_memcpy(to, &narrowed, sizeof narrowed);
#endif
}

template <class Args>
using Entry = void (*KernelTable::*)(const Args&, const Parallel&);

// Kernel(args).run(parallel), a kernel for maps of `Stored`; or `entry` of the set below.
template <class Stored, class Kernel, class Args>
[[gnu::always_inline]] inline void run(Entry<Args> entry, const Args& args, const Parallel& parallel) {
#if defined(HIFUSE_BELOW)
  constexpr bool kOwn = std::is_same_v<Stored, BFloat16>;
  if constexpr (!kOwn) return (HIFUSE_BELOW::table.*entry)(args, parallel);
#else
  constexpr bool kOwn = true;
  static_cast<void>(entry);
#endif
  if constexpr (kOwn) Kernel(args).run(parallel);
}

// The same with Kernel<Stored>, for maps of the element type `dtype`.
template <template <class> class Kernel, class Args>
inline void run_stored(DType dtype, Entry<Args> entry, const Args& args, const Parallel& parallel) {
  switch (dtype) {
    case DType::float32: return run<float, Kernel<float>>(entry, args, parallel);
    case DType::bfloat16: return run<BFloat16, Kernel<BFloat16>>(entry, args, parallel);
    case DType::float16: return run<Float16, Kernel<Float16>>(entry, args, parallel);
    case DType::float64: return run<double, Kernel<double>>(entry, args, parallel);
  }
}

// The same for the prepared ops, which serve float32 and bfloat16.
template <template <class> class Kernel, class Args>
inline void run_prepared(DType dtype, Entry<Args> entry, const Args& args, const Parallel& parallel) {
  if (dtype == DType::bfloat16) return run<BFloat16, Kernel<BFloat16>>(entry, args, parallel);
  run<float, Kernel<float>>(entry, args, parallel);
}

// The same in INT8, whose instructions this set may have and the set below may not.
template <template <class> class Kernel, class Args>
inline void run_int8(DType dtype, const Args& args, const Parallel& parallel) {
  if (dtype == DType::bfloat16) return Kernel<BFloat16>(args).run(parallel);
  Kernel<float>(args).run(parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
