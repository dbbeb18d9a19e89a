// Windows, shift, regions and padding against the definition: pad, roll, slices, cut, done on arrays.
#include <vector>

#include "check.h"
#include "geometry.h"

using namespace hifuse;

namespace {

// The axis as the official code makes it: place numbers, -1 for padding, rolled by -shift.
std::vector<int64_t> rolled_axis(int64_t length, int64_t window, int64_t shift) {
  std::vector<int64_t> axis;
  for (int64_t i = 0; i < length; ++i) axis.push_back(i);
  while (axis.size() % static_cast<size_t>(window)) axis.push_back(-1);
  std::vector<int64_t> rolled;
  for (size_t i = 0; i < axis.size(); ++i) rolled.push_back(axis[(i + static_cast<size_t>(shift)) % axis.size()]);
  return rolled;
}

// Regions from slices (0, -window) (-window, -shift) (-shift, end), assigned in this order.
std::vector<int> sliced_regions(int64_t padded, int64_t window, int64_t shift) {
  std::vector<int> regions(static_cast<size_t>(padded), 0);
  for (int64_t i = padded - window; i < padded - shift; ++i) regions[static_cast<size_t>(i)] = 1;
  for (int64_t i = padded - shift; i < padded; ++i) regions[static_cast<size_t>(i)] = 2;
  return regions;
}

void test_axis(int64_t length, int64_t window, int64_t shift) {
  const Axis axis(length, window, shift);
  const auto rolled = rolled_axis(length, window, shift);
  CHECK(axis.padded == static_cast<int64_t>(rolled.size()));
  CHECK(axis.windows * window == axis.padded);
  const auto regions = sliced_regions(axis.padded, window, shift);
  for (int64_t i = 0; i < axis.padded; ++i) {
    const int64_t expected = rolled[static_cast<size_t>(i)];
    const int64_t source = axis.source(i);
    CHECK(expected < 0 ? source >= length && source < axis.padded : source == expected);
    if (shift > 0) CHECK(axis.region(i) == regions[static_cast<size_t>(i)]);
  }
  for (int64_t w = 0; w < axis.windows; ++w) {
    bool mixed = false;
    for (int64_t i = w * window; i < (w + 1) * window; ++i)
      mixed |= shift > 0 && regions[static_cast<size_t>(i)] != regions[static_cast<size_t>(w * window)];
    CHECK(axis.mixed(w) == mixed);
  }
}

void test_bias_rows(int64_t window) {
  for (int64_t query = 0; query < window * window; ++query)
    for (int64_t key = 0; key < window * window; ++key) {
      const int64_t dy = query / window - key / window, dx = query % window - key % window;
      const int64_t expected = (dy + window - 1) * (2 * window - 1) + dx + window - 1;
      CHECK(bias_row(window, query / window, query % window, key / window) - key % window == expected);
    }
}

}  // namespace

void test_geometry() {
  for (int64_t window = 1; window <= 16; ++window) {
    test_bias_rows(window);
    for (int64_t shift = 0; shift < window; ++shift)
      for (int64_t length = 1; length <= 40; ++length) test_axis(length, window, shift);
  }
  CHECK(Axis(3'000'000'000, 7, 3).source(2'999'999'000) == 2'999'999'003);  // offsets past 2^31
}
