// GELU as the network has it, x Phi(x) with the normal distribution's Phi, on vectors.
//
// What is approximated is the tail Phi(-t) of t = |x|, with a relative error, and x is multiplied by it or by 1 - Phi(-t). So
// GELU's own error is relative, near zero and in the tail: a norm behind it may amplify the smallest values to any size. Zero
// stays zero. Where the tail ends it is exactly zero, so that minus infinity gives NaN, as it does in PyTorch.
//
// In float32, where 16 numbers can be looked up in a vector, the tail is a polynomial of its own about each of 16 points;
// elsewhere one formula serves all t.
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

// For float32. PyTorch's errors are 1.2e-6 absolute, and 2e-7 relative to GELU from -1 to 1.
inline Vec<float> exact_tail(Vec<float> t) {
#if defined(__AVX512F__)
  // Phi(-t) about t = i kStep, whose last one is the end: coefficients, the constant one first. Errors of 2e-7, both.
  constexpr float kStep = 0.375f, kEnd = 15 * kStep, kRounds = 1 << 23;  // added, that leaves an integer in the last bits
  constexpr int kDegree = 5;
  static constexpr float kCoefficients[kDegree + 1][16] = {
      {0.5f, 0.35383025f, 0.22662735f, 0.13029452f, 0.0668072f, 0.030396359f, 0.012224471f, 0.004332448f, 0.0013498982f,
       0.0003690787f, 8.8417466e-05f, 1.8536823e-05f, 3.3977035e-06f, 5.4405103e-07f, 7.605168e-08f, 0},
      {-0.39894226f, -0.3718551f, -0.30113742f, -0.21187665f, -0.1295176f, -0.06878628f, -0.03173965f, -0.012724181f,
       -0.004431848f, -0.001341119f, -0.00035259582f, -8.054055e-05f, -1.5983787e-05f, -2.7559583e-06f, -4.1285134e-07f,
       -5.3735864e-08f},
      {-3.388362e-07f, 0.06972101f, 0.11292443f, 0.11917971f, 0.09713865f, 0.0644881f, 0.035707794f, 0.016700696f, 0.006647697f,
       0.002263004f, 0.0006610248f, 0.0001660714f, 3.5947844e-05f, 6.713121e-06f, 1.0826632e-06f, 1.5090536e-07f},
      {0.06649762f, 0.053259782f, 0.021958305f, -0.0093790535f, -0.026982231f, -0.028840058f, -0.021490673f, -0.012492476f,
       -0.0059092226f, -0.0023225027f, -0.00076759764f, -0.00021496123f, -5.1270676e-05f, -1.04532155e-05f, -1.8267442e-06f,
       -2.7922408e-07f},
      {-6.619803e-05f, -0.01647528f, -0.022778522f, -0.01715649f, -0.006105444f, 0.0026976136f, 0.006084944f, 0.0053988006f,
       0.0033296351f, 0.0015926146f, 0.00061645225f, 0.0001972959f, 5.28765e-05f, 1.1964152e-05f, 2.2983804e-06f,
       3.1285117e-07f},
      {-0.009737847f, -0.0067024957f, 0.00012608357f, 0.0052313176f, 0.0058345227f, 0.00328577f, 0.00047796758f, -0.0009548903f,
       -0.0011027511f, -0.00072022167f, -0.00034380882f, -0.00012912776f, -3.9432045e-05f, -9.968607e-06f, -2.1097148e-06f,
       -5.750959e-07f},
  };
  t = smaller<float>(splat(kEnd), t);
  const Vec<float> shifted = t * (1 / kStep) + kRounds, r = t - (shifted - kRounds) * kStep;  // exactly 0 at the end
  const auto coefficient = [&](int degree) {
    return (Vec<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)shifted, (__m512)load(kCoefficients[degree]));
  };
  Vec<float> sum = coefficient(kDegree);
#pragma GCC unroll 8
  for (int degree = kDegree - 1; degree >= 0; --degree) sum = sum * r + coefficient(degree);
  return sum;
#else
  // Phi(-t) = exp(-t^2 / 2) u P(u) with u = 1 / (1 + 0.4 t), with a relative error of 4e-7 for all t.
  constexpr float kTail[] = {-0.0385610089f,  0.195187151f, -0.361745685f, 0.236442968f,
                             -0.00173020631f, 0.153606564f, 0.157089129f,  0.159711063f};
  constexpr float kHalfLog2E = 0.72134752f;
  const Vec<float> u = 1.0f / (1.0f + 0.4f * t);
  const Vec<float> gauss = exp2_nonpositive(t * -kHalfLog2E * t);
  return gauss * (polynomial(kTail, u) * u);
#endif
}

// For bfloat16: the 16th power of a polynomial in kEnd - t, which is 0 from kEnd on. It errs by 9e-5 of the tail up to t = 4.5,
// by 1.4e-3 at 5.5, by all of it at the end, and by 1.4e-5 in all of GELU.
inline Vec<float> short_tail(Vec<float> t) {
  constexpr float kEnd = 9.25f;
  constexpr float kRoot[] = {1.4037309483683202e-06f, -1.3354100701690186e-05f, -0.00039923438453115523f,
                             0.005575310438871384f,   -0.015790972858667374f,   0.09123523533344269f};
  const Vec<float> left = larger<float>(Vec<float>{}, kEnd - t);
  Vec<float> power = left * polynomial(kRoot, left);
  for (int i = 0; i < 4; ++i) power = power * power;
  return power;
}

// For maps of the type S.
template <class S>
inline Vec<float> gelu(Vec<float> x) {
  const Vec<float> size = (Vec<float>)((Vec<int32_t>)x & 0x7fffffff);
  Vec<float> tail;
  if constexpr (sizeof(S) == sizeof(float))
    tail = exact_tail(size);
  else
    tail = short_tail(size);
  return x * (x > 0.0f ? 1.0f - tail : tail);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
