// What the prepared ops are made of: products of packed panels, GELU, Winograd's transforms.
#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/activation.h"
#include "cpu/panel.h"
#include "cpu/strassen.h"
#include "cpu/winograd.h"
#include "cpu/winograd_complex.h"

using namespace hifuse;

namespace {

float pattern(int64_t i) { return static_cast<float>((i * 37 + 11) % 17 - 8); }  // small integers, exact in every type

template <class S>
S stored(float value) {
  S to;
  narrow(value, to);
  return to;
}
template <>
int16_t stored(float value) {
  return static_cast<int16_t>(value);
}
float widen(int16_t value) { return value; }

template <class S>
void test_product(int64_t rows, int64_t chunks) {
  const int64_t depth = chunks * kChunk;
  std::vector<S> a(static_cast<size_t>(rows * depth)), panel(static_cast<size_t>(depth * kPanel));
  const auto a_at = [&](int64_t r, int64_t k) -> S& {
    return a[static_cast<size_t>((k / kChunk * rows + r) * kChunk + k % kChunk)];
  };
  const auto panel_at = [&](int64_t k, int64_t n) -> S& {
    return panel[static_cast<size_t>((k / kStep<S> * kPanel + n) * kStep<S> + k % kStep<S>)];
  };
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t r = 0; r < rows; ++r) a_at(r, k) = stored<S>(pattern(r * 5 + k));
    for (int64_t n = 0; n < kPanel; ++n) panel_at(k, n) = stored<S>(pattern(n * 3 + k * 7));
  }
  const int64_t stride = kPanel + 4;
  std::vector<SumOf<S>> c(static_cast<size_t>(rows * stride), static_cast<SumOf<S>>(1234));
  for (const bool accumulate : {false, true})  // the second adds to the first
    product<S>(rows, chunks, {a.data(), rows * kChunk}, panel.data(), {c.data(), stride, accumulate}, {panel.data(), a.data()});
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < kPanel; ++n) {
      float expected = 0;
      for (int64_t k = 0; k < depth; ++k) expected += widen(a_at(r, k)) * widen(panel_at(k, n));
      CHECK(static_cast<float>(c[static_cast<size_t>(r * stride + n)]) == 2 * expected);
    }
}

// A row's sums have the same bits whatever rows are multiplied with it: they are those of the row alone.
template <class S>
void test_rows_apart(int64_t rows, int64_t chunks, int64_t run) {
  const int64_t depth = chunks * kChunk;
  std::vector<S> a(static_cast<size_t>(rows * depth)), alone(static_cast<size_t>(depth));
  std::vector<S> panel(static_cast<size_t>(depth * kPanel));
  const auto uneven = [](size_t i) { return stored<S>(std::sin(static_cast<float>(i * i % 8191))); };
  for (size_t i = 0; i < a.size(); ++i) a[i] = uneven(i);
  for (size_t i = 0; i < panel.size(); ++i) panel[i] = uneven(i + 5);
  const auto multiply = [&](const std::vector<S>& from, int64_t count, float* to) {
    for (const bool accumulate : {false, true})
      product<S>(count, chunks, {from.data(), count * kChunk}, panel.data(), {to, kPanel, accumulate, run},
                 {panel.data(), from.data()});
  };
  std::vector<float> c(static_cast<size_t>(rows * kPanel)), expected(kPanel);
  multiply(a, rows, c.data());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; ++k)
      alone[static_cast<size_t>(k)] = a[static_cast<size_t>((k / kChunk * rows + r) * kChunk + k % kChunk)];
    multiply(alone, 1, expected.data());
    for (int64_t n = 0; n < kPanel; ++n)
      CHECK(to_bits(c[static_cast<size_t>(r * kPanel + n)]) == to_bits(expected[static_cast<size_t>(n)]));
  }
}

// Odd rows, and half a depth that ends within 32.
void test_strassen(int64_t rows, int64_t half_depth) {
  const int64_t half = divide_up(rows, 2), size = round_up(half_depth, kChunk) * kPanel;
  const auto a = [&](int64_t r, int64_t k) { return r < rows ? pattern(r * 5 + k) : 0; };
  const auto b = [&](int64_t k, int64_t n) { return pattern(n * 3 + k * 7); };
  std::vector<float> operand(static_cast<size_t>(StrassenRows::size(half, half_depth)), NAN);
  const StrassenRows factors{operand.data(), half, half_depth};
  for (int64_t r = 0; r < half; ++r)
    for (int64_t k = 0; k < half_depth; k += kLanes<float>) {
      const auto from = [&](int64_t row, int64_t first) {
        float values[kLanes<float>];
        for (int64_t i = 0; i < kLanes<float>; ++i) values[i] = a(row, first + k + i);
        return load(values);
      };
      factors.write(r, k, from(r, 0), from(r, half_depth), from(half + r, 0), from(half + r, half_depth));
    }
  std::vector<float> panels(static_cast<size_t>(kFactors * size)), c(static_cast<size_t>(4 * half * kPanel), NAN);
  for (int64_t k = 0; k < half_depth; ++k)
    for (int64_t n = 0; n < kPanel; ++n) {
      const float b11 = b(k, n), b12 = b(k, kPanel + n), b21 = b(half_depth + k, n), b22 = b(half_depth + k, kPanel + n);
      const float each[kFactors] = {b11 + b22, b21 - b11, b22, b21 + b22, b12 - b22, b11, b11 + b12};
      for (int64_t i = 0; i < kFactors; ++i) panels[static_cast<size_t>(i * size + k * kPanel + n)] = each[i];
    }
  strassen_product(factors, panels.data(), c.data(), panels.data());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < 2 * kPanel; ++n) {
      float expected = 0;
      for (int64_t k = 0; k < 2 * half_depth; ++k) expected += a(r, k) * b(k, n);
      CHECK(c[static_cast<size_t>((n / kPanel * 2 * half + r) * kPanel + n % kPanel)] == expected);
    }
}

double exact_gelu(float x) { return 0.5 * x * std::erfc(-static_cast<double>(x) * std::sqrt(0.5)); }

// The largest error of GELU in [first, last), absolute and over the exact value, of both signs.
struct GeluErrors {
  double absolute = 0;
  double relative = 0;
};
template <class S>
GeluErrors gelu_errors(float first, float last) {
  GeluErrors worst;
  for (int i = 0; i < 2000; ++i)
    for (const float sign : {-1.0f, 1.0f}) {
      const float x = sign * (first + (last - first) * static_cast<float>(i) / 2000);
      const double exact = exact_gelu(x), error = std::abs(gelu<S>(splat(x))[0] - exact);
      worst.absolute = std::max(worst.absolute, error);
      if (exact != 0) worst.relative = std::max(worst.relative, error / std::abs(exact));
    }
  return worst;
}

// x on a scale of powers of 2, down to the smallest normal numbers: nothing absolute is left near zero.
template <class S>
double worst_small_gelu() {
  double worst = 0;
  for (float x = 0x1p-124f; x < 0.5f; x *= 1.37f)
    for (const float each : {x, -x}) worst = std::max(worst, std::abs(gelu<S>(splat(each))[0] / exact_gelu(each) - 1));
  return worst;
}

template <class S>
void test_ends_of_gelu() {
  for (const float zero : {0.0f, -0.0f}) CHECK(gelu<S>(splat(zero))[0] == 0);
  for (const float subnormal : {0x1p-130f, -0x1p-130f, 0x1p-149f}) CHECK(std::abs(gelu<S>(splat(subnormal))[0]) <= 0x1p-130f);
  for (const float large : {20.0f, 100.0f, 1e30f, 3e38f}) {
    CHECK(gelu<S>(splat(large))[0] == large);
    CHECK(gelu<S>(splat(-large))[0] == 0);
  }
  CHECK(gelu<S>(splat(INFINITY))[0] == INFINITY);
  CHECK(std::isnan(gelu<S>(splat(-INFINITY))[0]));  // as PyTorch has it
  for (const uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7fffffffu})
    CHECK(std::isnan(gelu<S>(splat(from_bits(bits)))[0]));
}

void test_gelu() {
  CHECK(gelu_errors<float>(0, 9).absolute < 6e-7);
  CHECK(gelu_errors<float>(0, 1).relative < 6e-7);
  CHECK(worst_small_gelu<float>() < 6e-7);
  CHECK(gelu_errors<BFloat16>(0, 9).absolute < 2e-5);
  CHECK(gelu_errors<BFloat16>(0, 4.5f).relative < 1e-4);
  CHECK(gelu_errors<BFloat16>(4.5f, 5.5f).relative < 2e-3);
  CHECK(worst_small_gelu<BFloat16>() < 1e-4);
  test_ends_of_gelu<float>();
  test_ends_of_gelu<BFloat16>();
}

// r outputs of a 3-tap filter along one axis, from r + 2 inputs.
template <class Scheme>
void test_scheme(int r) {
  const double filter[3] = {0.75, -2, 1.25};
  Vec<float> x[Scheme::kProducts];
  float inputs[Scheme::kInputs];
  for (int i = 0; i < r + 2; ++i) x[i] = splat(inputs[i] = pattern(i + 3));
  Scheme::input(r, x);
  int used = 0;
  for (int product = 0; product < Scheme::kProducts; ++product) used += Scheme::uses(r, product);
  CHECK(used == Scheme::products(r));
  for (int k = 0; k < Scheme::products(r); ++k) {
    const int product = Scheme::product(r, k);
    CHECK(Scheme::uses(r, product));
    double transformed = 0;
    for (int tap = 0; tap < 3; ++tap) transformed += Scheme::filter(product, tap) * filter[tap];
    x[k] *= static_cast<float>(transformed);
  }
  Scheme::output(r, x);
  for (int i = 0; i < r; ++i) {
    const double expected = inputs[i] * filter[0] + inputs[i + 1] * filter[1] + inputs[i + 2] * filter[2];
    CHECK(std::abs(x[i][0] - expected) < 1e-4);
  }
}

void test_transform_of_filters() {
  const double filter[3] = {0.75, -2, 1.25};
  Vec<float> x[Winograd4::kProducts] = {splat(0.75f), splat(-2.0f), splat(1.25f)};
  Winograd4::transform_filter(x);
  for (int i = 0; i < Winograd4::kProducts; ++i) {
    double expected = 0;
    for (int tap = 0; tap < 3; ++tap) expected += Winograd4::filter(i, tap) * filter[tap];
    for (int lane = 0; lane < kLanes<float>; ++lane) CHECK(std::abs(x[i][lane] - expected) < 1e-6);
  }
}

}  // namespace

void test_products() {
#if defined(__AMX_TILE__)
  const AmxTiles tiles;
#endif
  for (int64_t rows = 1; rows < 32; ++rows)
    for (const int64_t chunks : {1, 2, 7, 13}) {
      test_product<float>(rows, chunks);
      test_product<BFloat16>(rows, chunks);
      test_product<int16_t>(rows, chunks);
    }
  for (int64_t rows = 1; rows < 32; ++rows)
    for (const int64_t chunks : {1, 6, 7, 25}) {
      test_rows_apart<float>(rows, chunks, kRun);
      test_rows_apart<float>(rows, chunks, kChunk);
      test_rows_apart<BFloat16>(rows, chunks, kRun);
    }
  for (int64_t rows = 1; rows < 58; rows += 7)
    for (const int64_t half_depth : {16, 144, 400, 800}) test_strassen(rows, half_depth);
  test_gelu();
  for (int r = 1; r <= 2; ++r) test_scheme<Winograd2>(r);
  for (int r = 1; r <= 4; ++r) test_scheme<Winograd4>(r);
  for (int r = 1; r <= 4; ++r) test_scheme<Complex4>(r);
  test_transform_of_filters();
}
