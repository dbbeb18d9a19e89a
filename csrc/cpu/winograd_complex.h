// F(4 x 4, 3 x 3) with the points 0, +-1, +-i and infinity (Meng and Brothers 2019), for bfloat16: a scheme as in winograd.h.
//
// All numbers of its matrices are 0 and +-1, and powers of 2 that the filters take, so that what is rounded to bfloat16 is
// hardly larger than what comes out: it errs as little as F(2x2), where F(4x4) over real points errs three times as much. The
// values at -i are the conjugates of those at i, and the product of two complex numbers takes three real ones,
// (a + bi)(c + di) = ac - bd + (ac + bd - (a - b)(c - d)) i. So there are seven products along an axis: at 0, 1, -1, then of
// the real parts, of the imaginary parts and of their differences at i, and at infinity.
//
// A tile of 16 outputs takes 49 products: 36 over real points, 64 by F(2x2).
#pragma once

#include "cpu/vec.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

struct Complex4 {
  static constexpr int kOutputs = 4;
  static constexpr int kInputs = 6;
  static constexpr int kProducts = 7;

  static constexpr double filter(int product, int tap) {
    constexpr double kRows[kProducts][3] = {{1, 0, 0},  {.25, .25, .25}, {.25, -.25, .25}, {.5, 0, -.5},
                                            {0, .5, 0}, {-.5, .5, .5},   {0, 0, 1}};
    return kRows[product][tap];
  }

  // Three outputs do without infinity, two without i, one without -1 as well.
  static constexpr int products(int r) { return r == 4 ? 7 : r == 3 ? 6 : r + 2; }
  static constexpr int product(int r, int k) { return r >= 3 || k <= r ? k : kProducts - 1; }
  static constexpr bool uses(int r, int product) {
    for (int k = 0; k < products(r); ++k)
      if (Complex4::product(r, k) == product) return true;
    return false;
  }

  static void input(Vec<float>* x) {
    const Vec<float> x1 = x[1], x5 = x[5];
    input_of_three(x);
    x[6] = x5 - x1;
  }
  static void output(Vec<float>* x) {
    const Vec<float> x6 = x[6];
    const Vec<float> odd = output_of_three(x);
    x[3] = odd + x6;
  }

  // The filters at 1 and -1 are a quarter of those that F(2, 3) and F(1, 3) want halved and whole.
  static void input(int r, Vec<float>* x) {
    switch (r) {
      case 1: return input_of_one(x);
      case 2: return input_of_two(x);
      case 3: return input_of_three(x);
      default: return input(x);
    }
  }
  static void output(int r, Vec<float>* x) {
    switch (r) {
      case 1: x[0] += x[1] + x[2]; return;
      case 2: return output_of_two(x);
      case 3: output_of_three(x); return;
      default: return output(x);
    }
  }

 private:
  static void input_of_one(Vec<float>* x) {
    const Vec<float> x1 = x[1];
    x[0] -= x1;
    x[1] = 4 * x1;
    x[2] -= x1;
  }
  static void input_of_two(Vec<float>* x) {
    const Vec<float> x1 = x[1], x2 = x[2];
    x[0] -= x2;
    x[1] = 2 * (x2 + x1);
    x[2] = 2 * (x2 - x1);
    x[3] -= x1;
  }
  static void output_of_two(Vec<float>* x) {
    const Vec<float> plus = x[1], minus = x[2];
    x[0] += plus + minus;
    x[1] = (plus - minus) + x[3];
  }
  // The six products but that at infinity, of which the first three outputs have nothing.
  static void input_of_three(Vec<float>* x) {
    const Vec<float> even = x[2] + x[4], odd = x[1] + x[3], real = x[4] - x[2], imaginary = x[1] - x[3];
    x[0] = x[0] - x[4];
    x[1] = even + odd;
    x[2] = even - odd;
    x[3] = imaginary + real;
    x[4] = imaginary - real;
    x[5] = imaginary;
  }
  // Returns what these products give the fourth output.
  static Vec<float> output_of_three(Vec<float>* x) {
    const Vec<float> even = x[1] + x[2], odd = x[1] - x[2], real = x[3] + x[5], imaginary = x[4] - x[5];
    x[0] = x[0] + even + real;
    x[1] = odd + imaginary;
    x[2] = even - real;
    return odd - imaginary;
  }
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
