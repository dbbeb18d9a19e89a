// GELU as the network has it, x Phi(x) with the normal distribution's Phi, on vectors.
//
// Both forms take it as max(x, 0) - h(|x|), where h(t) = t Phi(-t) is a bump that has vanished at t = 5.
#pragma once

#include "cpu/storage.h"
#include "cpu/vec.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

template <int kCount>
inline Vec<float> polynomial(const float (&coefficients)[kCount], Vec<float> x) {
  Vec<float> sum = splat(coefficients[0]);
  for (int i = 1; i < kCount; ++i) sum = sum * x + coefficients[i];
  return sum;
}

inline Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)
  const Vec<float> guess = (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  return guess * (2.0f - x * guess);  // Newton's step doubles the digits
#else
  return 1.0f / x;
#endif
}

// For float32: Phi(-t) = exp(-t^2 / 2) u P(u) with u = 1 / (1 + 0.4 t). Its relative error is 4e-7, also where x is small;
// PyTorch's own error is 2e-7 there, and 1.1e-6 absolute at most.
inline Vec<float> exact_bump(Vec<float> size) {
  constexpr float kTail[] = {-0.0385610089f,  0.195187151f, -0.361745685f, 0.236442968f,
                             -0.00173020631f, 0.153606564f, 0.157089129f,  0.159711063f};
  constexpr float kHalfLog2E = 0.72134752f;
  const Vec<float> t = smaller<float>(splat(20.0f), size);  // this order keeps NaN
  const Vec<float> u = reciprocal(1.0f + 0.4f * t);
  const Vec<float> gauss = exp2_nonpositive(t * -kHalfLog2E * t);
  return t * gauss * (polynomial(kTail, u) * u);
}

// For bfloat16: a polynomial in t, moved to [-1, 1], with an absolute error of 9e-6.
inline Vec<float> short_bump(Vec<float> size) {
  constexpr float kBump[] = {0.0454606265f, -0.0722590387f, -0.139017254f, 0.324347079f, 0.00671425089f, -0.481069148f,
                             0.440555722f,  -0.0193569902f, -0.259796351f, 0.232806116f, -0.0939162821f, 0.0155239953f};
  return polynomial(kBump, smaller<float>(splat(5.0f), size) * 0.4f - 1.0f);
}

// For maps of the type S.
template <class S>
inline Vec<float> gelu(Vec<float> x) {
  const Vec<float> size = (Vec<float>)((Vec<int32_t>)x & 0x7fffffff);
  const Vec<float> positive = larger<float>(Vec<float>{}, x);
  if constexpr (sizeof(S) == sizeof(float)) return positive - exact_bump(size);
  return positive - short_bump(size);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
