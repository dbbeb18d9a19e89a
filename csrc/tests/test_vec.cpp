// The vector code of the instruction set that this file is compiled for.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/gemm.h"
#include "cpu/storage.h"
#include "cpu/vec.h"

using namespace hifuse;

namespace {

template <class T>
T pattern(int64_t i) {  // small integers, exact in every type
  return static_cast<T>((i * 37 + 11) % 17 - 8);
}

template <class T>
void test_reductions() {
  T values[kLanes<T>];
  T expected_sum = 0, expected_largest = -100;
  for (int i = 0; i < kLanes<T>; ++i) {
    values[i] = pattern<T>(i);
    expected_sum += values[i];
    expected_largest = std::max(expected_largest, values[i]);
  }
  CHECK(sum<T>(load(values)) == expected_sum);
  CHECK(largest<T>(load(values)) == expected_largest);
}

template <class T>
void test_transpose() {
  constexpr int64_t kSide = kLanes<T>;
  std::vector<T> from(kSide * (kSide + 3)), to(kSide * (kSide + 5));
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<T>(i);
  transpose_square(from.data(), kSide + 3, to.data(), kSide + 5);
  for (int64_t i = 0; i < kSide; ++i)
    for (int64_t j = 0; j < kSide; ++j)
      CHECK(to[static_cast<size_t>(j * (kSide + 5) + i)] == from[static_cast<size_t>(i * (kSide + 3) + j)]);
}

void test_exp2() {
  double worst = 0;
  for (float x = 0; x > -125.5f; x -= 0.00371f) {
    const double exact = std::exp2(static_cast<double>(x));
    worst = std::max(worst, std::abs(exp2_nonpositive(splat(x))[0] - exact) / exact);
  }
  CHECK(worst < 2e-7);
  CHECK(exp2_nonpositive(splat(0.0f))[0] == 1.0f);
  CHECK(exp2_nonpositive(splat(-126.0f))[0] == 0x1p-126f);
  CHECK(exp2_nonpositive(splat(-126.1f))[0] == 0);
  CHECK(exp2_nonpositive(splat(-1e30f))[0] == 0);
  CHECK(exp2_nonpositive(splat(-std::numeric_limits<float>::infinity()))[0] == 0);
  CHECK(std::isnan(exp2_nonpositive(splat(std::numeric_limits<float>::quiet_NaN()))[0]));
  CHECK(std::isnan(exp2_nonpositive(splat(std::numeric_limits<double>::quiet_NaN()))[0]));
}

template <class T>
void test_gemm(int64_t rows, int64_t vectors, int64_t depth, bool turned) {
  const int64_t columns = vectors * kLanes<T>;
  std::vector<T> a(static_cast<size_t>(rows * depth)), b(static_cast<size_t>(depth * columns));
  std::vector<T> c(static_cast<size_t>((rows + 1) * columns), T(-7));
  for (size_t i = 0; i < a.size(); ++i) a[i] = pattern<T>(static_cast<int64_t>(i));
  for (size_t i = 0; i < b.size(); ++i) b[i] = pattern<T>(static_cast<int64_t>(3 * i + 1));
  const Strided<T> left = turned ? Strided<T>{a.data(), 1, rows} : Strided<T>{a.data(), depth, 1};
  gemm<T>(rows, columns, depth, left, b.data(), columns, c.data(), columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      T expected = 0;
      for (int64_t k = 0; k < depth; ++k)
        expected += left.at[i * left.row + k * left.column] * b[static_cast<size_t>(k * columns + j)];
      CHECK(c[static_cast<size_t>(i * columns + j)] == expected);
    }
  for (int64_t j = 0; j < columns; ++j)
    CHECK(c[static_cast<size_t>(rows * columns + j)] == T(-7));  // nothing written past the end
}

// All 65536 bit patterns through widen, and back through narrow; then rounding at and next to the midpoints.
template <class Stored>
void test_storage(float smallest_step) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Stored stored{static_cast<uint16_t>(bits)};
    Stored back{};
    narrow(widen(stored), back);
    CHECK(std::isnan(widen(stored)) ? std::isnan(widen(back)) : back.bits == stored.bits);
    float row = 0;
    widen_row(&stored, &row, 1);
    CHECK(std::isnan(row) ? std::isnan(widen(stored)) : row == widen(stored));
  }
  for (float base : {1.0f, 1.0f + smallest_step}) {
    const float middle = base + smallest_step / 2;
    Stored to{};
    narrow(middle, to);
    CHECK(widen(to) == (base == 1.0f ? 1.0f : 1.0f + 2 * smallest_step));  // ties go to even
    narrow(std::nextafter(middle, 2.0f), to);
    CHECK(widen(to) == base + smallest_step);
    narrow(std::nextafter(middle, 0.0f), to);
    CHECK(widen(to) == base);
  }
}

template <class Stored>
void test_rows() {
  constexpr int64_t kCount = 45;  // whole vectors and a rest
  float wide[kCount], back[kCount];
  Stored narrowed[kCount + 1];
  narrowed[kCount] = Stored{77};
  for (int64_t i = 0; i < kCount; ++i) wide[i] = pattern<float>(i);
  narrow_row(wide, 0.5f, narrowed, kCount);
  widen_row(narrowed, back, kCount);
  for (int64_t i = 0; i < kCount; ++i) CHECK(back[i] == 0.5f * wide[i]);
  CHECK(narrowed[kCount].bits == 77);
}

template <class T>
void test_type() {
  test_reductions<T>();
  test_transpose<T>();
  for (int64_t rows : {1, 2, 5, 6, 7, 8, 49})
    for (int64_t vectors : {1, 2, 3, 4, 5})
      for (int64_t depth : {1, 31, 32, 33, 100}) {
        test_gemm<T>(rows, vectors, depth, false);
        test_gemm<T>(rows, vectors, depth, true);
      }
}

}  // namespace

void test_vec() {
  test_type<float>();
  test_type<double>();
  test_exp2();
  test_storage<BFloat16>(0x1p-7f);
  test_storage<Float16>(0x1p-10f);
  test_rows<BFloat16>();
  test_rows<Float16>();
}
