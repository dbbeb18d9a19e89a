// The transforms of Winograd's convolution F(m x m, 3 x 3): m outputs of a 3-tap filter from m + 2 products, along both axes.
//
// Filter, input and output are polynomials; their product is taken at m + 1 points and at infinity, and read off. Row i of the
// filter's matrix evaluates it at point i, so holds the powers of that point; row i of the input's holds the polynomial that
// vanishes at all points but i; column i of the output's the powers again, over what that polynomial is at point i.
// Points: 0, +-1 for m = 2, and 0, +-3/4, +-3/2 for m = 4, which keep the matrices' numbers near 1, and so rounding small
// (Barabasz et al. 2018).
//
// A tile at the edge of the map that has only r < m outputs needs r + 2 products: those of the first r + 1 points and of
// infinity, by matrices of its own for input and output; the transformed filters serve it as they are.
//
// A scheme is what the kernel of the mixer knows of all this, along one axis: Winograd2, Winograd4, and Complex4
// (winograd_complex.h).
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

template <int kOutputs>
struct WinogradPoints;
template <>
struct WinogradPoints<2> {
  static constexpr double kPoints[3] = {0, 1, -1};
};
template <>
struct WinogradPoints<4> {
  static constexpr double kPoints[5] = {0, 0.75, -0.75, 1.5, -1.5};
};

// The matrices of F(kOutputs, 3); and with r < kOutputs those of an edge tile.
template <int kOutputs>
struct WinogradMatrices {
  static constexpr const double* kPoints = WinogradPoints<kOutputs>::kPoints;
  static constexpr int kInfinity = kOutputs + 1;

  // Of the product with index k < r + 2, its place among those of a whole tile.
  static constexpr int product(int r, int k) { return k <= r ? k : kInfinity; }
  static constexpr bool uses(int r, int product) { return product <= r || product == kInfinity; }

  static constexpr double power(int i, int exponent) { return exponent == 0 ? 1 : kPoints[i] * power(i, exponent - 1); }

  static constexpr double filter(int i, int tap) { return i == kInfinity ? tap == 2 : power(i, tap); }

  // Coefficient `degree` of the product of (x - point j) over the first r + 1 points j but k; of all of them for infinity.
  static constexpr double input(int r, int k, int degree) {
    double coefficients[kOutputs + 2] = {1};
    for (int j = 0; j <= r; ++j) {
      if (j == k) continue;
      for (int d = kOutputs + 1; d > 0; --d) coefficients[d] = coefficients[d - 1] - kPoints[j] * coefficients[d];
      coefficients[0] *= -kPoints[j];
    }
    return coefficients[degree];
  }

  static constexpr double output(int r, int row, int k) {
    if (k > r) return row == r - 1;
    double vanishing = 1;
    for (int j = 0; j <= r; ++j)
      if (j != k) vanishing *= kPoints[k] - kPoints[j];
    return power(k, row) / vanishing;
  }
};

// x: r + 2 in and out, in place, by the matrix as it is: for the few tiles at the edge.
template <int kOutputs, int r>
inline void winograd_edge_input(Vec<float>* x) {
  Vec<float> from[r + 2];
  for (int i = 0; i < r + 2; ++i) from[i] = x[i];
  for (int k = 0; k < r + 2; ++k) {
    x[k] = Vec<float>{};
    for (int i = 0; i < r + 2; ++i) x[k] += static_cast<float>(WinogradMatrices<kOutputs>::input(r, k, i)) * from[i];
  }
}

// x: r + 2 in, r out.
template <int kOutputs, int r>
inline void winograd_edge_output(Vec<float>* x) {
  Vec<float> from[r + 2];
  for (int i = 0; i < r + 2; ++i) from[i] = x[i];
  for (int row = 0; row < r; ++row) {
    x[row] = Vec<float>{};
    for (int k = 0; k < r + 2; ++k) x[row] += static_cast<float>(WinogradMatrices<kOutputs>::output(r, row, k)) * from[k];
  }
}

// What both schemes over real points have in common. `input` and `output` are in place.
template <int m>
struct WinogradScheme {
  using Matrices = WinogradMatrices<m>;
  static constexpr int kOutputs = m;
  static constexpr int kInputs = m + 2;
  static constexpr int kProducts = m + 2;

  static constexpr double filter(int product, int tap) { return Matrices::filter(product, tap); }
  // Of a tile with r outputs: how many products it needs, which those are, and whether one is among them.
  static constexpr int products(int r) { return r + 2; }
  static constexpr int product(int r, int k) { return Matrices::product(r, k); }
  static constexpr bool uses(int r, int product) { return Matrices::uses(r, product); }
};

// The transforms of whole tiles, with what their matrices' rows have in common computed once.
struct Winograd2 : WinogradScheme<2> {
  // Of vectors of any number: it has no fractions.
  template <class V>
  static void input(V* x) {
    const V x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
    x[0] = x2 - x0;
    x[1] = x2 + x1;
    x[2] = x2 - x1;
    x[3] = x3 - x1;
  }
  static void output(Vec<float>* x) {
    const Vec<float> x0 = x[0], plus = x[1], minus = x[2], x3 = x[3];
    x[0] = 0.5f * (plus + minus) - x0;
    x[1] = 0.5f * (plus - minus) + x3;
  }

  static void input(int r, Vec<float>* x) { r == 2 ? input(x) : winograd_edge_input<2, 1>(x); }
  static void output(int r, Vec<float>* x) { r == 2 ? output(x) : winograd_edge_output<2, 1>(x); }
};

struct Winograd4 : WinogradScheme<4> {
  static constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b;

  // x: 3 taps in, 6 numbers out. Points come in opposite pairs, in which the odd tap alone changes its sign.
  static void transform_filter(Vec<float>* x) {
    const Vec<float> x1 = x[1], x2 = x[2], even_a = x[0] + a2 * x2, even_b = x[0] + b2 * x2;
    x[1] = even_a + a * x1;
    x[2] = even_a - a * x1;
    x[3] = even_b + b * x1;
    x[4] = even_b - b * x1;
    x[5] = x2;
  }
  // One of these numbers alone, to the same bits.
  template <int product>
  static Vec<float> transform_filter(Vec<float> x0, Vec<float> x1, Vec<float> x2) {
    if constexpr (product == 0) return x0;
    if constexpr (product == 5) return x2;
    return x0 + static_cast<float>(filter(product, 2)) * x2 + static_cast<float>(filter(product, 1)) * x1;
  }
  static void input(Vec<float>* x) {
    const Vec<float> x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], x4 = x[4], x5 = x[5];
    const Vec<float> even_a = x4 - b2 * x2, odd_a = x3 - b2 * x1;
    const Vec<float> even_b = x4 - a2 * x2, odd_b = x3 - a2 * x1;
    x[0] = x4 - (a2 + b2) * x2 + (a2 * b2) * x0;
    x[1] = even_a + a * odd_a;
    x[2] = even_a - a * odd_a;
    x[3] = even_b + b * odd_b;
    x[4] = even_b - b * odd_b;
    x[5] = x5 - (a2 + b2) * x3 + (a2 * b2) * x1;
  }
  static void output(Vec<float>* x) {
    const Vec<float> sum_a = x[1] + x[2], minus_a = x[1] - x[2], sum_b = x[3] + x[4], minus_b = x[3] - x[4];
    const Vec<float> x0 = x[0], x5 = x[5];
    x[0] = weigh(0, 0) * x0 + weigh(0, 1) * sum_a + weigh(0, 3) * sum_b;
    x[1] = weigh(1, 1) * minus_a + weigh(1, 3) * minus_b;
    x[2] = weigh(2, 1) * sum_a + weigh(2, 3) * sum_b;
    x[3] = x5 + weigh(3, 1) * minus_a + weigh(3, 3) * minus_b;
  }

  static void input(int r, Vec<float>* x) {
    switch (r) {
      case 1: return winograd_edge_input<4, 1>(x);
      case 2: return winograd_edge_input<4, 2>(x);
      case 3: return winograd_edge_input<4, 3>(x);
      default: return input(x);
    }
  }
  static void output(int r, Vec<float>* x) {
    switch (r) {
      case 1: return winograd_edge_output<4, 1>(x);
      case 2: return winograd_edge_output<4, 2>(x);
      case 3: return winograd_edge_output<4, 3>(x);
      default: return output(x);
    }
  }

 private:
  static constexpr float weigh(int row, int product) { return static_cast<float>(Matrices::output(4, row, product)); }
};

// f(block, panel) of all blocks of tiles and panels of filters, whose bytes are `filters`, in parallel. The order decides what
// a thread reads most of: filters that stay in L3 all of them, with the tiles that it transformed itself; larger ones its part
// of, with all tiles.
template <class Function>
inline void each_block(const Parallel& parallel, int64_t blocks, int64_t panels, int64_t filters, const Function& f) {
  constexpr int64_t kCached = 16 << 20;
  parallel.each(blocks * panels,
                [&](int64_t task) { filters <= kCached ? f(task / panels, task % panels) : f(task % blocks, task / blocks); });
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
