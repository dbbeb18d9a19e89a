// out = residual + pool(act(norm(rows) W^T + b)), rows gathered from maps on their way into the product.
//
// A task is a block of rows times a range of panels: the block's operand is made once and stays in L2; each panel gives 32
// columns, which are finished before the next panel is read. Small maps have few blocks: then the panels are divided as well.
#include <initializer_list>

#include "cpu/activation.h"
#include "cpu/depthwise.h"
#include "cpu/int8.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"
#include "cpu/strassen.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kMostRows = 8 * 14;
constexpr int64_t kOperandBytes = 256 * 1024;  // a quarter of a usual L2

template <class S, Algorithm kAlgorithm = Algorithm::direct, class Arithmetic = Int8>
class LinearKernel {
  using Quantised = typename Arithmetic::Element;
  static constexpr bool kStrassen = kAlgorithm == Algorithm::strassen, kInt8 = kAlgorithm == Algorithm::int8;
  using Element = std::conditional_t<kInt8, Quantised, S>;  // of the operand
  static constexpr int64_t kTogether = kStrassen ? 2 : 1;   // rows, and panels

 public:
  explicit LinearKernel(const Linear& args)
      : args_(args),
        depth_((args.channels[0] + args.channels[1] + args.channels[2]) * (args.rows == Rows::patches ? 4 : 1)),
        padded_(padded_depth(depth_)),
        run_(args.height * args.width == 1 ? kChunk : kRun),
        slots_(args.batch, args.height * args.width, kTogether),
        panels_(divide_up(args.columns, kTogether * kPanel)) {}

  void run(const Parallel& parallel) const {
    if (slots_.count() == 0) return;
    const int64_t fitting = kOperandBytes / static_cast<int64_t>(sizeof(Element)) / padded_;
    const int64_t most = fitting < 28 ? 28 : fitting > kMostRows ? kMostRows : fitting;
    // A convolution is too dear to be made again for another range of panels.
    const int64_t least = args_.rows == Rows::depthwise ? 12 : 24;
    const Split split(slots_.count(), panels_, least, most, parallel.threads);
    parallel.each(split.blocks * split.ranges, [&](int64_t task) {
      const int64_t range = task / split.blocks, block = task % split.blocks;  // neighbours in time read the same weights
      const int64_t together = args_.pool ? 4 : kTogether, units = slots_.count() / together;
      run_block(units * block / split.blocks * together, units * (block + 1) / split.blocks * together,
                panels_ * range / split.ranges, panels_ * (range + 1) / split.ranges);
    });
  }

 private:
  int64_t group() const { return args_.pool ? 4 : 1; }  // rows that make one of the result

  void run_block(int64_t first, int64_t last, int64_t panel, int64_t end) const {
    const int64_t rows = last - first;
    if (rows == 0) return;
    if constexpr (kStrassen) return run_by_strassen(first, rows, panel, end);
    if constexpr (kInt8) return run_by_int8(first, rows, panel, end);
    Scratch scratch;
    const Operand<S> operand{scratch.take_dirty<S>(rows * padded_), rows * kChunk};
    float* const row = scratch.take<float>(padded_);
    float* const sums = scratch.take_dirty<float>(rows * kPanel);
    for (int64_t i = 0; i < rows; ++i) make_row(first + i, row, operand.rows_from(i));
    const S* const weight = static_cast<const S*>(args_.weight);
    for (; panel < end; ++panel) {
      const S* const at = weight + panel * padded_ * kPanel;
      product<S>(rows, padded_ / kChunk, {operand.at, operand.chunk}, at, {sums, kPanel, false, run_},
                 {panel + 1 < end ? at + padded_ * kPanel : at, operand.at});
      finish(first, rows, panel * kPanel, Finished{sums, rows});
    }
  }

  // The same with pairs of panels and of rows.
  void run_by_strassen(int64_t first, int64_t rows, int64_t pair, int64_t end) const {
    Scratch scratch;
    const int64_t half = rows / 2, depth = depth_ / 2, size = kFactors * padded_depth(depth) * kPanel;
    const StrassenRows operand{scratch.take_dirty<float>(StrassenRows::size(half, depth)), half, depth};
    float *const upper = scratch.take_dirty<float>(padded_), *const lower = scratch.take_dirty<float>(padded_);
    const float* const zeros = scratch.take<float>(padded_);
    float* const sums = scratch.take_dirty<float>(4 * half * kPanel);
    for (int64_t i = 0; i < half; ++i) {
      const int64_t second = slots_.row(first + 2 * i + 1);
      read_normed(slots_.row(first + 2 * i), upper);
      if (second != Slots::kSpare) read_normed(second, lower);
      operand.write(i, upper, second != Slots::kSpare ? lower : zeros);
    }
    for (; pair < end; ++pair) {
      const float* const at = static_cast<const float*>(args_.weight) + pair * size;
      strassen_product(operand, at, sums, pair + 1 < end ? at + size : at);
      for (int64_t p = 0; p < 2; ++p)
        finish(first, rows, (2 * pair + p) * kPanel, Finished{sums + p * 2 * half * kPanel, half});
    }
  }

  // The same with rows that are quantised, and exact sums.
  void run_by_int8(int64_t first, int64_t rows, int64_t panel, int64_t end) const {
    Scratch scratch;
    const auto operand = int8_operand<Arithmetic>(rows, padded_, scratch);
    float *const row = scratch.take<float>(padded_), *const lost = scratch.take_dirty<float>(rows);
    int32_t* const sums = scratch.take_dirty<int32_t>(rows * kPanel);
    for (int64_t i = 0; i < rows; ++i) {
      read_normed(first + i, row);
      lost[i] = quantise_row<Arithmetic>(row, depth_, args_.inverse, operand.rows_from(i));
    }
    const int64_t size = int8_panel_size(depth_);
    for (; panel < end; ++panel) {
      const int8_t* const at = static_cast<const int8_t*>(args_.weight) + panel * size;
      int8_product<Arithmetic>(rows, padded_ / kChunk, {operand.at, operand.chunk}, at, sums, false,
                               panel + 1 < end ? at + size : at);
      const int64_t column = panel * kPanel, count = args_.columns - column < kPanel ? args_.columns - column : kPanel;
      float scale[kPanel] = {};
      for (int64_t i = 0; i < count; ++i) scale[i] = args_.scale[column + i];
      finish(first, rows, column, Rescaled{sums, scale, lost});
    }
  }

  // Pixel of row `row`: with pooling the four pixels of a patch follow one another.
  int64_t pixel_of(int64_t row) const {
    if (!args_.pool) return row;
    const int64_t patch = row / 4, columns = args_.width / 2;
    return (patch / columns * 2 + row % 4 / 2) * args_.width + patch % columns * 2 + row % 2;
  }

  void make_row(int64_t row, float* wide, Operand<S> to) const {
    if (args_.rows == Rows::pixels && args_.norm == Norm::none && copies()) return copy_pixel(pixel_of(row), to);
    read_normed(row, wide);
    write_row(wide, depth_, to);
  }

  void read_normed(int64_t row, float* wide) const {
    switch (args_.rows) {
      case Rows::pixels: read_pixel(pixel_of(row), wide); break;
      case Rows::patches: read_patch(row, wide); break;
      case Rows::depthwise: convolve(row, wide); break;
    }
    if (args_.norm == Norm::row) normalise(wide, depth_, args_.eps);
  }

  bool copies() const { return (args_.channels[0] | args_.channels[1] | args_.channels[2]) % kChunk == 0; }

  void copy_pixel(int64_t pixel, Operand<S> to) const {
    for (int i = 0; i < 3; ++i) {
      const int64_t count = args_.channels[i];
      copy_row(static_cast<const S*>(args_.maps[i]) + pixel * count, count, to);
      to.at += count / kChunk * to.chunk;
    }
  }

  void read_pixel(int64_t pixel, float* to) const {
    for (int i = 0; i < 3; ++i) {
      const int64_t count = args_.channels[i];
      if (count) read_row(static_cast<const S*>(args_.maps[i]) + pixel * count, to, count);
      to += count;
    }
  }

  void read_patch(int64_t row, float* to) const {
    const int64_t channels = args_.channels[0], width = 2 * args_.width;
    const int64_t corner = row / args_.width * 2 * width + row % args_.width * 2;
    const S* const map = static_cast<const S*>(args_.maps[0]);
    for (const int64_t offset : {int64_t{0}, width, int64_t{1}, width + 1}) {
      read_row(map + (corner + offset) * channels, to, channels);
      if (args_.norm == Norm::pixel) normalise(to, channels, args_.eps);
      to += channels;
    }
  }

  void convolve(int64_t row, float* to) const {
    const S* const map = static_cast<const S*>(args_.maps[0]);
    DepthwiseMap<S>{map, args_.height, args_.width, args_.channels[0], args_.filters, args_.filter_bias}.convolve(row, to);
  }

  // 32 columns of a block: those from `j` on of slot `i`.
  struct Finished {
    const float* sums;
    int64_t half;  // of the rows

    Vec<float> at(int64_t i, int64_t j) const { return load(sums + (kStrassen ? i % 2 * half + i / 2 : i) * kPanel + j); }
  };
  struct Rescaled {
    const int32_t* sums;
    const float* scale;
    const float* lost;  // of each row: see quantise_row

    Vec<float> at(int64_t i, int64_t j) const { return dequantise(sums + i * kPanel + j, scale + j) + lost[i]; }
  };

  // Bias, activation, pooling, residual and the way to memory for 32 columns from `column` on.
  template <class Sums>
  void finish(int64_t first, int64_t rows, int64_t column, const Sums& sums) const {
    using Exactness = std::conditional_t<kInt8, BFloat16, S>;
    switch (args_.activation) {
      case Activation::none: return finish_with(first, rows, column, sums, [](Vec<float> x) { return x; });
      case Activation::gelu: return finish_with(first, rows, column, sums, [](Vec<float> x) { return gelu<Exactness>(x); });
      case Activation::relu:
        return finish_with(first, rows, column, sums, [](Vec<float> x) { return larger<float>(Vec<float>{}, x); });
    }
  }

  template <class Sums, class Function>
  void finish_with(int64_t first, int64_t rows, int64_t column, const Sums& sums, Function act) const {
    const int64_t count = args_.columns - column < kPanel ? args_.columns - column : kPanel;
    float bias[kPanel] = {};
    for (int64_t i = 0; i < count; ++i) bias[i] = args_.bias[column + i];
    const S* const residual = static_cast<const S*>(args_.residual);
    for (int64_t i = 0; i < rows; i += group()) {
      const int64_t place = slots_.row(first + i);
      if (place == Slots::kSpare) continue;
      const int64_t at = (args_.pool ? place / 4 : place) * args_.columns + column;
      float row[kPanel];
      for (int64_t j = 0; j < kPanel; j += kLanes<float>) {
        const auto value = [&](int64_t r) { return act(sums.at(i + r, j) + load(bias + j)); };
        store(row + j, args_.pool ? (value(0) + value(1) + (value(2) + value(3))) * 0.25f : value(0));
      }
      if (residual) add_columns(residual + at, row, count);
      write_columns(row, static_cast<S*>(args_.out) + at, count);
    }
  }

  const Linear& args_;
  int64_t depth_;
  int64_t padded_;
  int64_t run_;  // of a product; a library multiplies one row, as a classifier has of each image, in many short sums
  Slots slots_;
  int64_t panels_;
};

}  // namespace

template <class S>
using DirectLinear = LinearKernel<S>;
template <class Arithmetic>
struct LinearBy {
  template <class S>
  using Kernel = LinearKernel<S, Algorithm::int8, Arithmetic>;
};

void linear(const Linear& args, const Parallel& parallel) {
  if (args.algorithm == Algorithm::strassen)
    return run<float, LinearKernel<float, Algorithm::strassen>>(&KernelTable::linear, args, parallel);
  if (args.algorithm == Algorithm::int8)
    return by_fastest_int8(
        [&](auto arithmetic) { run_int8<LinearBy<decltype(arithmetic)>::template Kernel>(args.dtype, args, parallel); });
  run_prepared<DirectLinear>(args.dtype, &KernelTable::linear, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
