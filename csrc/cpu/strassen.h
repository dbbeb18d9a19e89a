// Strassen's product (1969): [a11 a12; a21 a22] x [b11 b12; b21 b22] of quarters by seven of their products, where eight are
// usual. It saves an eighth of the multiply-adds for sums of quarters on the way in, which those of the weights were packed
// with, and on the way out, while a product's sums are in registers.
//
// a is a block of rows, in an upper and a lower half and two halves of the depth; b is a pair of panels. A row of the upper
// half and its partner in the lower one are neighbours: so no result depends on where blocks begin.
#pragma once

#include "cpu/panel.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

// The factors in the order in which they are multiplied, those of b as they are packed (pack.cpp), and where a product goes:
//
//   0  a11 + a22   b11 + b22   c11, c22
//   1  a22         b21 - b11   c11, c21
//   2  a11 + a12   b22         c12, -c11
//   3  a12 - a22   b21 + b22   c11
//   4  a11         b12 - b22   c12, c22
//   5  a21 + a22   b11         c21, -c22
//   6  a21 - a11   b11 + b12   c22
constexpr int kFactors = 7;

// The seven factors of a block of pairs of rows, each [pairs, depth / 2].
struct StrassenRows {
  static constexpr int64_t kWidth = 16;  // of chunks: half the depth need not be a multiple of 32

  float* at;
  int64_t half;   // of the rows, so the pairs
  int64_t depth;  // half of it

  static int64_t size(int64_t half, int64_t depth) { return kFactors * half * depth; }

  Operand<float, kWidth> factor(int i) const { return {at + i * half * depth, half * kWidth}; }

  // Pair `i`, of two rows of the whole depth.
  void write(int64_t i, const float* upper, const float* lower) const {
    for (int64_t k = 0; k < depth; k += kLanes<float>)
      write(i, k, load(upper + k), load(upper + depth + k), load(lower + k), load(lower + depth + k));
  }

  // A vector of each quarter, from element (row, k) of it on.
  void write(int64_t row, int64_t k, Vec<float> a11, Vec<float> a12, Vec<float> a21, Vec<float> a22) const {
    const Vec<float> factors[kFactors] = {a11 + a22, a22, a11 + a12, a12 - a22, a11, a21 + a22, a21 - a11};
    for (int i = 0; i < kFactors; ++i) {
      const Operand<float, kWidth> to = factor(i).rows_from(row);
      store(to.at + k / kWidth * to.chunk + k % kWidth, factors[i]);
    }
  }
};

// Where the sums of one of the seven go: as in `Sums`, to one place or two.
struct StrassenSums {
  enum How { kStore, kAdd, kSubtract };

  Sums first;
  float* second = nullptr;
  How how = kStore;
  int64_t run = 2 * kRun;  // a run that ends costs twice as much here

  StrassenSums from(int64_t row, int64_t column) const {
    return {first.from(row, column), second ? second + row * first.stride + column : nullptr, how};
  }
  StrassenSums again() const { return {first.again(), second, how == kStore ? kAdd : how}; }

  template <int kRows>
  [[gnu::always_inline]] void take(TileSums<kRows>& sums, bool again) const {
    if (second) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; ++v) {
          float* const at = second + r * first.stride + v * kLanes<float>;
          const bool fresh = how == kStore && !again;
          store(at, fresh ? sums[r][v] : how == kSubtract ? load(at) - sums[r][v] : load(at) + sums[r][v]);
        }
    }
    first.take<kRows>(sums, again);
  }
};

// c[panel][half][row][32] = a x b, the panels at `factors` being a pair's, each [depth / 2][32]. `next` is asked for.
inline void strassen_product(const StrassenRows& a, const float* factors, float* c, const float* next) {
  const int64_t size = a.half * kPanel, panel = round_up(a.depth, kChunk) * kPanel;
  const Sums c11{c, kPanel}, c21{c + size, kPanel}, c12{c + 2 * size, kPanel}, c22{c + 3 * size, kPanel};
  const StrassenSums to[kFactors] = {
      {c11, c22.at, StrassenSums::kStore},
      {c11.again(), c21.at, StrassenSums::kStore},
      {c12, c11.at, StrassenSums::kSubtract},
      {c11.again()},
      {c12.again(), c22.at, StrassenSums::kAdd},
      {c21.again(), c22.at, StrassenSums::kSubtract},
      {c22.again()},
  };
  for (int i = 0; i < kFactors; ++i) {
    const auto rows = a.factor(i);
    product<float, a.kWidth>(a.half, a.depth / a.kWidth, {rows.at, rows.chunk}, factors + i * panel, to[i],
                             {i + 1 < kFactors ? factors + (i + 1) * panel : next, a.factor((i + 1) % kFactors).at});
  }
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
