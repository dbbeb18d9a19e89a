// Products in int8: every arithmetic against plain sums, also those whose instruction this set has not.
#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/int8.h"

using namespace hifuse;

namespace {

// From -127 to 127, the ends among them.
int32_t value(int64_t i) { return i % 5 == 0 ? (i % 2 ? 127 : -127) : static_cast<int32_t>((i * 37 + 11) % 255 - 127); }

// `extreme`: all products are of the largest magnitude, where instructions that saturate would.
template <class Arithmetic>
void test_product(int64_t rows, int64_t chunks, bool extreme) {
  using Element = typename Arithmetic::Element;
  const int64_t depth = chunks * kChunk, size = int8_panel_size(depth);
  const auto a = [&](int64_t r, int64_t k) { return extreme ? 127 : value(r * 5 + k); };
  const auto b = [&](int64_t k, int64_t n) { return extreme ? (n % 2 ? -127 : 127) : value(n * 3 + k * 7); };
  constexpr int64_t kWidth = Arithmetic::kWidth, kRead = 16 * 64;  // a tile may read as many bytes behind the last row
  std::vector<Element> left(static_cast<size_t>(rows * round_up(depth, kWidth) + kRead), 77);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < depth; ++k)
      left[static_cast<size_t>((k / kWidth * rows + r) * kWidth + k % kWidth)] =
          static_cast<Element>(a(r, k) + Arithmetic::kAdded);
  std::vector<int8_t> panel(static_cast<size_t>(size));
  int32_t begin[kPanel] = {};
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t n = 0; n < kPanel; ++n) {
      panel[static_cast<size_t>((k / kQuad * kPanel + n) * kQuad + k % kQuad)] = static_cast<int8_t>(b(k, n));
      begin[n] -= 128 * b(k, n);
    }
  __builtin_memcpy(panel.data() + depth * kPanel, begin, sizeof begin);
  std::vector<int32_t> c(static_cast<size_t>(rows * kPanel), 12345);
  for (const bool accumulate : {false, true})  // the second adds to the first
    int8_product<Arithmetic>(rows, chunks, {left.data(), rows * kWidth}, panel.data(), c.data(), accumulate, panel.data());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < kPanel; ++n) {
      int64_t expected = 0;
      for (int64_t k = 0; k < depth; ++k) expected += a(r, k) * b(k, n);
      CHECK(c[static_cast<size_t>(r * kPanel + n)] == 2 * expected);
    }
}

// The instruction and the plain arithmetic that stands for it elsewhere.
template <class Arithmetic>
void test_instruction() {
  using Element = typename Arithmetic::Element;
  for (int64_t i = 0; i < 1000; ++i) {
    Element quad[4];
    int8_t weights[kVectorBytes];
    for (int64_t k = 0; k < 4; ++k) quad[k] = static_cast<Element>(value(i * 13 + k) + Arithmetic::kAdded);
    for (int64_t k = 0; k < kVectorBytes; ++k) weights[k] = static_cast<int8_t>(value(i + k * 3));
    Vec<int32_t> sum = splat(static_cast<int32_t>(i));
    Arithmetic::add(sum, Arithmetic::quad(quad), Arithmetic::weights(weights));
    const Vec<int32_t> plain =
        splat(static_cast<int32_t>(i)) + Arithmetic::plain(Arithmetic::quad(quad), Arithmetic::weights(weights));
    for (int lane = 0; lane < kLanes<int32_t>; ++lane) CHECK(sum[lane] == plain[lane]);
  }
}

void test_rounding() {
  const struct {
    float from;
    int32_t to;
  } cases[] = {{0.5f, 0},    {1.5f, 2},      {-0.5f, 0},      {-1.5f, -2},       {2.4999f, 2}, {126.5f, 126}, {127.5f, 127},
               {1e30f, 127}, {-1e30f, -127}, {INFINITY, 127}, {-INFINITY, -127}, {NAN, -127},  {-0.0f, 0}};
  for (const auto& each : cases) CHECK(quantise(splat(each.from), 1)[0] == each.to);
}

void test_rows() {
  for (const float spoilt : {0.0f, 1e38f, INFINITY, -INFINITY, NAN}) {
    float row[2 * kChunk] = {};
    row[0] = 3, row[40] = -200, row[41] = spoilt;
    Scratch scratch;
    const auto to = int8_operand<Int8>(3, 64, scratch).rows_from(1);
    const float lost = quantise_row(row, 42, 1, to);
    CHECK(std::isfinite(spoilt) ? lost == 0 : std::isnan(lost));
    CHECK(*element(to, 0) - Int8::kAdded == 3);
    CHECK(element(to, 32)[8] - Int8::kAdded == -127);
    CHECK(element(to, 32)[31] - Int8::kAdded == 0);
  }
}

template <class Arithmetic>
void test_products_of() {
  for (const int64_t rows : {1, 2, 5, 6, 7, 13, 14, 15, 16, 29, 33, 100})
    for (const int64_t chunks : {1, 2, 16, 17, 40})
      for (const bool extreme : {false, true}) test_product<Arithmetic>(rows, chunks, extreme);
}

template <class Arithmetic>
void test_arithmetic() {
  test_instruction<Arithmetic>();
  test_products_of<Arithmetic>();
}

}  // namespace

void test_int8() {
  test_arithmetic<PairsOfInt16>();
  test_arithmetic<QuadsOfUint8>();
#if defined(HIFUSE_AVX_VNNI)
  if (has_avx_vnni()) test_arithmetic<QuadsByAvxVnni>();
#endif
#if defined(__AMX_INT8__)
  const AmxTiles tiles;
  test_products_of<TilesOfInt8>();
#endif
  test_rounding();
  test_rows();
}
