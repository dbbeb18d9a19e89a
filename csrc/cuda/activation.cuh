// GELU as the network has it, x Phi(x), of numbers in registers.
//
// With maps of 16 bits the tail Phi(-a) of a = |x| is 2^P(a), P of degree 7 fitted to log2 Phi(-a): it errs by 2e-5 of Phi(-a)
// for a <= 4, by 1e-3 at a = 6, and below 2^-126 by anything. P falls without end, so that Phi(-inf) is 0. Near zero the error
// of GELU is relative, zero stays zero, and minus infinity gives NaN, all as in PyTorch.
#pragma once
#include <ptx.cuh>

#include "tiles.cuh"

namespace hifuse::cuda {

// Phi(-a) for a >= 0.
__device__ __forceinline__ float normal_tail(float a) {
  float p = 4.781600728165358e-5f - 1.1678304190354538e-6f * a;
  p = p * a - 8.216409478336573e-4f;
  p = p * a + 8.089057169854641e-3f;
  p = p * a - 5.3144317120313644e-2f;
  p = p * a - 0.4592086970806122f;
  p = p * a - 1.1510097980499268f;
  return exp2_fast(p * a - 1.0f);
}

// For maps of the type T.
template <class T>
__device__ __forceinline__ float gelu(float x) {
  if constexpr (kIsFloat32<T>) {
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  } else {
    const float tail = normal_tail(fabsf(x));
    return x * (x > 0.0f ? 1.0f - tail : tail);
  }
}

// Phi(x) + x phi(x), its derivative, as precise.
template <class T>
__device__ __forceinline__ float gelu_derivative(float x) {
  if constexpr (kIsFloat32<T>) {
    return 0.5f * (1.0f + erff(x * 0.7071067811865476f)) + x * 0.3989422804014327f * expf(-0.5f * x * x);
  } else {
    const float a = fabsf(x), falling = normal_tail(a) - a * 0.3989422804014327f * exp2_fast(-0.7213475204444817f * a * a);
    return x > 0.0f ? 1.0f - falling : falling;
  }
}

}  // namespace hifuse::cuda
