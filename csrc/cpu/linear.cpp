// out = residual + pool(act(norm(rows) W^T + b)), rows gathered from maps on their way into the product.
//
// A task is a block of rows times a range of panels: the block's operand is made once and stays in L2; each panel gives 32 columns,
// which are finished before the next panel is read. Small maps have few blocks: then the panels are divided as well.
#include "cpu/activation.h"
#include "cpu/depthwise.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kMostRows = 8 * 14;
constexpr int64_t kOperandBytes = 256 * 1024;  // a quarter of a usual L2
constexpr int64_t kTasksPerThread = 4;

template <class S>
class LinearKernel {
 public:
  explicit LinearKernel(const Linear& args)
      : args_(args),
        depth_((args.channels[0] + args.channels[1] + args.channels[2]) * (args.rows == Rows::patches ? 4 : 1)),
        padded_(padded_depth(depth_)),
        rows_(args.batch * args.height * args.width),
        panels_(divide_up(args.columns, kPanel)) {}

  void run(const Parallel& parallel) const {
    if (rows_ == 0) return;
    int64_t most = kOperandBytes / static_cast<int64_t>(sizeof(S)) / padded_ / 4 * 4;
    most = most < 28 ? 28 : most > kMostRows ? kMostRows : most;
    const int64_t blocks = divide_up(rows_ / group(), most / group());
    int64_t ranges = divide_up(kTasksPerThread * parallel.threads(), blocks);
    if (ranges > panels_) ranges = panels_;
    parallel.each(blocks * ranges, [&](int64_t task) {
      const int64_t range = task / blocks, block = task % blocks;  // neighbours in time read the same weights
      const int64_t units = rows_ / group();
      run_block(units * block / blocks * group(), units * (block + 1) / blocks * group(), panels_ * range / ranges,
                panels_ * (range + 1) / ranges);
    });
  }

 private:
  int64_t group() const { return args_.pool ? 4 : 1; }  // rows that belong together

  void run_block(int64_t first, int64_t last, int64_t panel, int64_t end) const {
    Scratch scratch;
    const int64_t rows = last - first;
    const Operand<S> operand{scratch.take_dirty<S>(rows * padded_), rows * kChunk};
    float* const row = scratch.take<float>(padded_);
    float* const sums = scratch.take_dirty<float>(rows * kPanel);
    for (int64_t i = 0; i < rows; ++i) {
      read(first + i, row);
      write_row(row, depth_, operand.rows_from(i));
    }
    const S* const weight = static_cast<const S*>(args_.weight);
    const Operand<const S> a{operand.at, operand.chunk};
    for (; panel < end; ++panel) {
      const S* const at = weight + panel * padded_ * kPanel;
      product<S>(rows, padded_ / kChunk, a, at, sums, kPanel, false, panel + 1 < end ? at + padded_ * kPanel : at);
      finish(first, rows, panel * kPanel, sums);
    }
  }

  // Pixel of row `row`: with pooling the four pixels of a patch follow one another.
  int64_t pixel_of(int64_t row) const {
    if (!args_.pool) return row;
    const int64_t patch = row / 4, columns = args_.width / 2;
    return (patch / columns * 2 + row % 4 / 2) * args_.width + patch % columns * 2 + row % 2;
  }

  void read(int64_t row, float* to) const {
    switch (args_.rows) {
      case Rows::pixels: read_pixel(pixel_of(row), to); break;
      case Rows::patches: read_patch(row, to); break;
      case Rows::depthwise: convolve(row, to); break;
    }
    if (args_.norm == Norm::row) normalise(to, depth_, args_.eps);
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

  // Bias, activation, pooling, residual and the way to memory for 32 columns from `column` on.
  void finish(int64_t first, int64_t rows, int64_t column, float* sums) const {
    const int64_t count = args_.columns - column < kPanel ? args_.columns - column : kPanel;
    activate(rows, column, count, sums);
    int64_t pixel = first / group();
    for (int64_t i = 0; i < rows; i += group(), ++pixel) {
      float* const row = sums + i * kPanel;
      if (args_.pool) average(row);
      const int64_t at = pixel * args_.columns + column;
      if (args_.residual) add_columns(static_cast<const S*>(args_.residual) + at, row, count);
      write_columns(row, static_cast<S*>(args_.out) + at, count);
    }
  }

  void activate(int64_t rows, int64_t column, int64_t count, float* sums) const {
    float bias[kPanel] = {};
    for (int64_t i = 0; i < count; ++i) bias[i] = args_.bias[column + i];
    const auto apply = [&](auto function) {
      for (int64_t i = 0; i < rows * kPanel; i += kPanel)
        for (int64_t j = 0; j < kPanel; j += kLanes<float>) store(sums + i + j, function(load(sums + i + j) + load(bias + j)));
    };
    if (args_.activation == Activation::gelu) return apply([](Vec<float> x) { return gelu<S>(x); });
    if (args_.activation == Activation::relu) return apply([](Vec<float> x) { return larger<float>(Vec<float>{}, x); });
    apply([](Vec<float> x) { return x; });
  }

  static void average(float* row) {
    for (int64_t j = 0; j < kPanel; j += kLanes<float>) {
      const Vec<float> top = load(row + j) + load(row + kPanel + j);
      const Vec<float> bottom = load(row + 2 * kPanel + j) + load(row + 3 * kPanel + j);
      store(row + j, (top + bottom) * 0.25f);
    }
  }

  const Linear& args_;
  int64_t depth_;
  int64_t padded_;
  int64_t rows_;
  int64_t panels_;
};

}  // namespace

void linear(const Linear& args, const Parallel& parallel) { run_prepared<LinearKernel>(args.dtype, args, parallel); }

}  // namespace HIFUSE_ISA
}  // namespace hifuse
