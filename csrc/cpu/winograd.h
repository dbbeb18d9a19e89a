// The transforms of Winograd's convolution F(m x m, 3 x 3): m outputs of a 3-tap filter from m + 2 products, along both axes.
//
// Filter, input and output are polynomials; their product is taken at m + 1 points and at infinity, and read off. Row i of the
// filter's matrix evaluates it at point i over the constant of that point; row i of the input's holds the polynomial that
// vanishes at all points but i; column i of the output's are the powers of point i.
// Points: 0, +-1 for m = 2, and 0, +-3/4, +-3/2 for m = 4, which keep the matrices' numbers near 1, and so rounding small
// (Barabasz et al. 2018).
#pragma once

#include "cpu/vec.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

template <int kOutputs>
struct WinogradPoints;

template <>
struct WinogradPoints<2> {
  static constexpr double kFilter[4][3] = {{-1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

  // x: 4 in and 4 out
  static void input(Vec<float>* x) {
    const Vec<float> x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
    x[0] = x2 - x0;
    x[1] = x2 + x1;
    x[2] = x2 - x1;
    x[3] = x3 - x1;
  }

  // x: 4 in, 2 out
  static void output(Vec<float>* x) {
    const Vec<float> x0 = x[0], plus = x[1], minus = x[2], x3 = x[3];
    x[0] = x0 + (plus + minus);
    x[1] = x3 + (plus - minus);
  }
};

template <>
struct WinogradPoints<4> {
  static constexpr double kA = 0.75, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;
  static constexpr double k0 = 1 / (kA2 * kB2), k1 = 1 / (2 * kA2 * (kA2 - kB2)), k2 = 1 / (2 * kB2 * (kB2 - kA2));
  static constexpr double kFilter[6][3] = {{k0, 0, 0},
                                           {k1, k1* kA, k1* kA2},
                                           {k1, -k1* kA, k1* kA2},
                                           {k2, k2* kB, k2* kB2},
                                           {k2, -k2* kB, k2* kB2},
                                           {0, 0, 1}};

  // x: 6 in and 6 out
  static void input(Vec<float>* x) {
    constexpr float a = kA, b = kB, a2 = kA2, b2 = kB2, both = kA2 * kB2, sum2 = kA2 + kB2;
    const Vec<float> x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], x4 = x[4], x5 = x[5];
    const Vec<float> even_a = x4 - b2 * x2, odd_a = x3 - b2 * x1;
    const Vec<float> even_b = x4 - a2 * x2, odd_b = x3 - a2 * x1;
    x[0] = x4 - sum2 * x2 + both * x0;
    x[1] = even_a + a * odd_a;
    x[2] = even_a - a * odd_a;
    x[3] = even_b + b * odd_b;
    x[4] = even_b - b * odd_b;
    x[5] = x5 - sum2 * x3 + both * x1;
  }

  // x: 6 in, 4 out
  static void output(Vec<float>* x) {
    constexpr float a = kA, b = kB, a2 = kA2, b2 = kB2, a3 = kA2 * kA, b3 = kB2 * kB;
    const Vec<float> sum_a = x[1] + x[2], minus_a = x[1] - x[2], sum_b = x[3] + x[4], minus_b = x[3] - x[4];
    const Vec<float> x0 = x[0], x5 = x[5];
    x[0] = x0 + sum_a + sum_b;
    x[1] = a * minus_a + b * minus_b;
    x[2] = a2 * sum_a + b2 * sum_b;
    x[3] = x5 + a3 * minus_a + b3 * minus_b;
  }
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
