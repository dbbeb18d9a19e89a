// GELU as the network has it, x Phi(x) with the normal distribution's Phi, on vectors.
//
// It is max(x, 0) - h(|x|), where h(t) = t Phi(-t) is a bump that has vanished at t = 5. In float32, where 16 numbers can be
// looked up in a vector, Phi(-t) is a polynomial of its own about each of 16 points; elsewhere one formula serves all t.
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
inline Vec<float> exact_bump(Vec<float> size) {
#if defined(__AVX512F__)
  // Phi(-t) about t = i / kScale, whose last one is the end: coefficients, the constant one first. Errors of 2e-7, both.
  constexpr float kEnd = 5.625f, kScale = 8 / 3.0f, kRounds = 1 << 23;  // added, that leaves an integer in the last bits
  constexpr int kDegree = 5;
  static constexpr float kCoefficients[kDegree + 1][16] = {
      {0.5f, 0.353830248f, 0.22662735f, 0.130294517f, 0.066807203f, 0.030396359f, 0.0122244712f, 0.00433244789f, 0.00134989817f,
       0.000369078713f, 8.8417466e-05f, 1.85368226e-05f, 3.39770349e-06f, 5.44051034e-07f, 7.6051677e-08f, 0},
      {-0.149603352f, -0.139445662f, -0.112926535f, -0.079453744f, -0.0485690981f, -0.0257948544f, -0.0119023686f,
       -0.00477156788f, -0.00166194304f, -0.000502919604f, -0.000132223431f, -3.02027056e-05f, -5.99392024e-06f,
       -1.03348441e-06f, -1.54819247e-07f, -2.01509494e-08f},
      {-4.76488395e-08f, 0.00980451703f, 0.015879998f, 0.0167596471f, 0.0136601226f, 0.00906863902f, 0.00502140867f,
       0.00234853546f, 0.000934832438f, 0.000318234932f, 9.29566158e-05f, 2.33537903e-05f, 5.05516573e-06f, 9.44032649e-07f,
       1.52249513e-07f, 2.12210676e-08f},
      {0.00350671005f, 0.00280862139f, 0.00115795748f, -0.000494598527f, -0.00142289104f, -0.00152086245f, -0.00113329722f,
       -0.000658782898f, -0.000311619166f, -0.000122475729f, -4.04787825e-05f, -1.13358456e-05f, -2.70372698e-06f,
       -5.51243772e-07f, -9.63322151e-08f, -1.47247068e-08f},
      {-1.30909189e-06f, -0.0003258051f, -0.000450454158f, -0.000339276274f, -0.000120737539f, 5.33463608e-05f, 0.000120332144f,
       0.000106763393f, 6.58448334e-05f, 3.14945755e-05f, 1.21905841e-05f, 3.90160358e-06f, 1.04565345e-06f, 2.36595781e-07f,
       4.54513724e-08f, 6.18675422e-09f},
      {-7.22136538e-05f, -4.97041765e-05f, 9.35006938e-07f, 3.87942564e-05f, 4.3267486e-05f, 2.43665199e-05f, 3.54449844e-06f,
       -7.08124799e-06f, -8.17775071e-06f, -5.34099945e-06f, -2.54960764e-06f, -9.5758196e-07f, -2.92419031e-07f,
       -7.39249089e-08f, -1.56451634e-08f, -4.26477964e-09f},
  };
  const Vec<float> t = smaller<float>(splat(kEnd), size);  // this order keeps NaN
  const Vec<float> shifted = t * kScale + kRounds, r = t * kScale - (shifted - kRounds);
  const auto coefficient = [&](int degree) {
    return (Vec<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)shifted, (__m512)load(kCoefficients[degree]));
  };
  Vec<float> sum = coefficient(kDegree);
#pragma GCC unroll 8
  for (int degree = kDegree - 1; degree >= 0; --degree) sum = sum * r + coefficient(degree);
  return t * sum;
#else
  // Phi(-t) = exp(-t^2 / 2) u P(u) with u = 1 / (1 + 0.4 t), with a relative error of 4e-7 for all t.
  constexpr float kTail[] = {-0.0385610089f,  0.195187151f, -0.361745685f, 0.236442968f,
                             -0.00173020631f, 0.153606564f, 0.157089129f,  0.159711063f};
  constexpr float kHalfLog2E = 0.72134752f;
  const Vec<float> t = smaller<float>(splat(20.0f), size);  // this order keeps NaN
  const Vec<float> u = 1.0f / (1.0f + 0.4f * t);
  const Vec<float> gauss = exp2_nonpositive(t * -kHalfLog2E * t);
  return t * gauss * (polynomial(kTail, u) * u);
#endif
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
