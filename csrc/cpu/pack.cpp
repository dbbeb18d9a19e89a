// Weights into the layout of panel.h, once.
#include "cpu/int8.h"
#include "cpu/prepared.h"
#include "cpu/strassen.h"
#include "cpu/winograd_filters.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

// Where element (k, column) of a panel lies.
template <class S>
inline int64_t place(int64_t k, int64_t column) {
  return (k / kStep<S> * kPanel + column) * kStep<S> + k % kStep<S>;
}

template <class S>
class Linearly {
 public:
  explicit Linearly(const PackLinear& args) : args_(args) {}

  void run(const Parallel& parallel) const {
    const int64_t panels = divide_up(args_.columns, kPanel);
    parallel.each(panels, [this](int64_t panel) {
      for (int64_t start = 0; start < args_.depth; start += args_.block) pack(panel, start);
    });
  }

 private:
  void pack(int64_t panel, int64_t start) const {
    const int64_t depth = args_.depth - start < args_.block ? args_.depth - start : args_.block, taps = args_.taps;
    const int64_t padded = round_up(depth, kChunk);
    S* to = static_cast<S*>(args_.packed) + (packed_size(args_.columns, start) + panel * kPanel * padded) * taps;
    // Chunk by chunk: what one column after the other is written to stays in L1.
    for (int64_t chunk = 0; chunk < padded; chunk += kChunk)
      for (int64_t tap = 0; tap < taps; ++tap, to += kChunk * kPanel)
        for (int64_t column = 0; column < kPanel; ++column) {
          const int64_t n = panel * kPanel + column;
          const S* const from = static_cast<const S*>(args_.weight) + (n * args_.depth + start + chunk) * taps + tap;
          for (int64_t k = 0; k < kChunk; ++k)
            to[place<S>(k, column)] = n < args_.columns && chunk + k < depth ? from[k * taps] : S{};
        }
  }

  const PackLinear& args_;
};

// A panel in the layout of int8.h, of at(column, k).
template <class At>
void pack_int8_panel(int64_t depth, int8_t* to, const At& at) {
  const int64_t padded = round_up(depth, kChunk);
  int32_t begin[kPanel] = {};
  for (int64_t k = 0; k < padded; ++k)
    for (int64_t column = 0; column < kPanel; ++column) {
      const int8_t value = k < depth ? at(column, k) : int8_t{0};
      to[(k / kQuad * kPanel + column) * kQuad + k % kQuad] = value;
      begin[column] -= QuadsOfUint8::kAdded * value;
    }
  __builtin_memcpy(to + padded * kPanel, begin, sizeof begin);
}

class InInt8 {
 public:
  explicit InInt8(const PackInt8& args) : args_(args) {}

  void run(const Parallel& parallel) const {
    parallel.each(divide_up(args_.columns, kPanel), [this](int64_t panel) {
      int8_t* block = args_.packed;
      for (int64_t start = 0; start < args_.depth; start += args_.block) {
        const int64_t depth = args_.depth - start < args_.block ? args_.depth - start : args_.block;
        pack_int8_panel(depth, block + panel * int8_panel_size(depth), [&](int64_t column, int64_t k) {
          const int64_t n = panel * kPanel + column;
          return n < args_.columns ? args_.weight[n * args_.depth + start + k] : int8_t{0};
        });
        block += divide_up(args_.columns, kPanel) * int8_panel_size(depth);
      }
    });
  }

 private:
  const PackInt8& args_;
};

// The filters of a 3x3 convolution in int8: as int8_product_of_taps wants them, [panel][depth / 64][tap][64 / 4][32][4]; or in
// pairs of int16 by Winograd's algorithm in integers (mixer_int8_winograd.cpp), [panel][position][depth / 2][32][2].
class Int8Filters {
  static constexpr int kProducts = Winograd2::kProducts;

 public:
  explicit Int8Filters(const PackInt8Filters& args) : args_(args) {}

  void run(const Parallel& parallel) const {
    const bool winograd = args_.algorithm == Algorithm::int8_winograd2;
    parallel.each(divide_up(args_.channels, kPanel), [&](int64_t panel) { winograd ? transform(panel) : lay_out(panel); });
  }

 private:
  int8_t at(int64_t n, int64_t k, int64_t tap) const {
    return n < args_.channels && k < args_.channels ? args_.weight[(n * args_.channels + k) * kTaps + tap] : int8_t{0};
  }

  void lay_out(int64_t panel) const {
    const int64_t depth = round_up(args_.channels, kTapsChunk) * kTaps;
    pack_int8_panel(depth, static_cast<int8_t*>(args_.packed) + panel * int8_panel_size(depth), [&](int64_t column, int64_t k) {
      return at(panel * kPanel + column, k / (kTaps * kTapsChunk) * kTapsChunk + k % kTapsChunk, k / kTapsChunk % kTaps);
    });
  }

  void transform(int64_t panel) const {
    const int64_t size = round_up(args_.channels, kChunk) * kPanel;
    int16_t* const to = static_cast<int16_t*>(args_.packed) + panel * kProducts * kProducts * size;
    for (int64_t k = 0; k < size / kPanel; ++k)
      for (int64_t column = 0; column < kPanel; ++column)
        transform(panel * kPanel + column, k, to + place<int16_t>(k, column), size);
  }

  // To each position, `stride` apart.
  void transform(int64_t n, int64_t k, int16_t* to, int64_t stride) const {
    int half[kProducts][3];
    for (int x = 0; x < 3; ++x)
      for (int i = 0; i < kProducts; ++i) half[i][x] = product(i, at(n, k, x), at(n, k, 3 + x), at(n, k, 6 + x));
    for (int i = 0; i < kProducts; ++i)
      for (int j = 0; j < kProducts; ++j)
        to[(i * kProducts + j) * stride] = static_cast<int16_t>(product(j, half[i][0], half[i][1], half[i][2]));
  }

  static int product(int i, int a, int b, int c) {
    const auto factor = [i](int tap) { return static_cast<int>(Winograd2::filter(i, tap)); };  // 0, 1 or -1
    return factor(0) * a + factor(1) * b + factor(2) * c;
  }

  const PackInt8Filters& args_;
};

// The factors of Strassen's product of a pair of panels, of quarters [b11 b12; b21 b22] of 32 columns and half the depth.
class StrassenFactors {
 public:
  explicit StrassenFactors(const PackStrassen& args) : args_(args), half_(args.depth / 2) {}

  void run(const Parallel& parallel) const {
    parallel.each(divide_up(args_.columns, 2 * kPanel), [this](int64_t pair) { pack(pair); });
  }

 private:
  void pack(int64_t pair) const {
    const int64_t padded = round_up(half_, kChunk), size = padded * kPanel;
    float* const to = args_.packed + pair * kFactors * size;
    for (int64_t k = 0; k < padded; ++k)
      for (int64_t column = 0; column < kPanel; ++column) {
        const int64_t left = 2 * pair * kPanel + column, right = left + kPanel;
        const float b11 = at(left, k, 0), b21 = at(left, k, 1), b12 = at(right, k, 0), b22 = at(right, k, 1);
        const float factors[kFactors] = {b11 + b22, b21 - b11, b22, b21 + b22, b12 - b22, b11, b11 + b12};
        for (int i = 0; i < kFactors; ++i) to[i * size + place<float>(k, column)] = factors[i];
      }
  }

  // Element `k` of a half of the depth of column `n`; 0 behind the last ones.
  float at(int64_t n, int64_t k, int64_t half) const {
    return n < args_.columns && k < half_ ? args_.weight[n * args_.depth + half * half_ + k] : 0.0f;
  }

  const PackStrassen& args_;
  int64_t half_;
};

// U = G g G^T of every filter g, [panel][position][depth][32], rounded once.
template <class S, class Scheme>
class WinogradFilters {
  static constexpr int kProducts = Scheme::kProducts;

 public:
  explicit WinogradFilters(const PackWinograd& args) : args_(args), depth_(round_up(args.depth, kChunk)) {}

  void run(const Parallel& parallel) const {
    const int64_t chunks = depth_ / kChunk;
    parallel.each(divide_up(args_.columns, kPanel) * chunks, [&](int64_t task) {
      for (int64_t k = 0; k < kChunk; ++k) pack(task / chunks, task % chunks * kChunk + k);
    });
  }

 private:
  void pack(int64_t panel, int64_t k) const {
    double filters[3][3][kPanel] = {};
    if (k < args_.depth)
      for (int64_t column = 0; column < kPanel && panel * kPanel + column < args_.columns; ++column) {
        const int64_t n = panel * kPanel + column;
        const float* const from = args_.weight + (args_.transposed ? k * args_.columns + n : n * args_.depth + k) * kTaps;
        for (int i = 0; i < kTaps; ++i) filters[i / 3][i % 3][column] = from[args_.transposed ? 8 - i : i];
      }
    double half[kProducts][3][kPanel];
    for (int i = 0; i < kProducts; ++i)
      for (int x = 0; x < 3; ++x) combine(i, filters[0][x], filters[1][x], filters[2][x], half[i][x]);
    S* const to = static_cast<S*>(args_.packed) + panel * kProducts * kProducts * depth_ * kPanel;
    for (int i = 0; i < kProducts; ++i)
      for (int j = 0; j < kProducts; ++j) {
        double values[kPanel];
        combine(j, half[i][0], half[i][1], half[i][2], values);
        S* const at = to + (i * kProducts + j) * depth_ * kPanel;
        for (int64_t column = 0; column < kPanel; ++column) narrow(static_cast<float>(values[column]), at[place<S>(k, column)]);
      }
  }

  static void combine(int row, const double* a, const double* b, const double* c, double* to) {
    const double g[3] = {Scheme::filter(row, 0), Scheme::filter(row, 1), Scheme::filter(row, 2)};
    for (int64_t i = 0; i < kPanel; ++i) to[i] = g[0] * a[i] + g[1] * b[i] + g[2] * c[i];
  }

  const PackWinograd& args_;
  int64_t depth_;
};

template <class S>
using Filters2 = WinogradFilters<S, Winograd2>;
template <class S>
using Filters4 = WinogradFilters<S, Scheme4<S>>;

}  // namespace

void pack_linear(const PackLinear& args, const Parallel& parallel) {
  run_prepared<Linearly>(args.dtype, &KernelTable::pack_linear, args, parallel);
}

void pack_int8(const PackInt8& args, const Parallel& parallel) { InInt8(args).run(parallel); }

void pack_int8_filters(const PackInt8Filters& args, const Parallel& parallel) { Int8Filters(args).run(parallel); }

void pack_strassen(const PackStrassen& args, const Parallel& parallel) { StrassenFactors(args).run(parallel); }

void pack_winograd(const PackWinograd& args, const Parallel& parallel) {
  if (args.tile == 2) return run_prepared<Filters2>(args.dtype, &KernelTable::pack_winograd, args, parallel);
  run_prepared<Filters4>(args.dtype, &KernelTable::pack_winograd, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
