// out = z + gelu(conv3x3(z)), zeros around the map, dense and direct.
#include "cpu/activation.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

// Nine products, one for each tap, of the map moved by the tap: the weight is [tap][panel][depth][32].
template <class S>
class DirectKernel {
  static constexpr int64_t kMostRows = 7 * 14;
  static constexpr int64_t kOperandBytes = 256 * 1024;

 public:
  explicit DirectKernel(const Mixer& args)
      : args_(args),
        depth_(padded_depth(args.channels)),
        rows_(args.batch * args.height * args.width),
        panels_(divide_up(args.channels, kPanel)) {}

  void run(const Parallel& parallel) const {
    if (rows_ == 0) return;
    int64_t most = kOperandBytes / (depth_ * static_cast<int64_t>(sizeof(S)));
    most = most < 28 ? 28 : most > kMostRows ? kMostRows : most;
    const Split split(rows_, panels_, 24, most, parallel.threads);
    parallel.each(split.blocks * split.ranges, [&](int64_t task) {
      const int64_t range = task / split.blocks, block = task % split.blocks;
      run_block(rows_ * block / split.blocks, rows_ * (block + 1) / split.blocks, panels_ * range / split.ranges,
                panels_ * (range + 1) / split.ranges);
    });
  }

 private:
  void run_block(int64_t first, int64_t last, int64_t panel, int64_t end) const {
    const int64_t rows = last - first, size = depth_ * kPanel;
    if (rows == 0) return;
    Scratch scratch;
    const Operand<S> operand{scratch.take_dirty<S>(rows * depth_), rows * kChunk};
    float* const row = scratch.take<float>(depth_);
    float* const sums = scratch.take_dirty<float>((end - panel) * rows * kPanel);
    for (int64_t tap = 0; tap < 9; ++tap) {
      for (int64_t i = 0; i < rows; ++i) {
        read(first + i, tap, row);
        write_row(row, depth_, operand.rows_from(i));
      }
      const S* at = static_cast<const S*>(args_.weight) + (tap * panels_ + panel) * size;
      for (int64_t p = panel; p < end; ++p, at += size)
        product<S>(rows, depth_ / kChunk, {operand.at, operand.chunk}, at,
                   {sums + (p - panel) * rows * kPanel, kPanel, tap > 0}, {at + (p + 1 < end ? size : 0), operand.at});
    }
    for (int64_t p = panel; p < end; ++p) finish(first, rows, p * kPanel, sums + (p - panel) * rows * kPanel);
  }

  void read(int64_t pixel, int64_t tap, float* row) const {
    const int64_t y = pixel / args_.width % args_.height + tap / 3 - 1, x = pixel % args_.width + tap % 3 - 1;
    const bool inside = y >= 0 && y < args_.height && x >= 0 && x < args_.width;
    const int64_t at = (pixel + (tap / 3 - 1) * args_.width + tap % 3 - 1) * args_.channels;
    if (inside)
      read_row(static_cast<const S*>(args_.z) + at, row, args_.channels);
    else
      for (int64_t i = 0; i < args_.channels; ++i) row[i] = 0;
  }

  void finish(int64_t first, int64_t rows, int64_t column, float* sums) const {
    const int64_t count = args_.channels - column < kPanel ? args_.channels - column : kPanel;
    for (int64_t i = 0; i < rows; ++i) {
      float* const row = sums + i * kPanel;
      for (int64_t j = 0; j < kPanel; j += kLanes<float>) store(row + j, gelu<S>(load(row + j)));
      const int64_t at = (first + i) * args_.channels + column;
      add_columns(static_cast<const S*>(args_.z) + at, row, count);
      write_columns(row, static_cast<S*>(args_.out) + at, count);
    }
  }

  const Mixer& args_;
  int64_t depth_;
  int64_t rows_;
  int64_t panels_;
};

}  // namespace

void mix_directly(const Mixer& args, const Parallel& parallel) {
  run_prepared<DirectKernel>(args.dtype, &KernelTable::mixer, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
