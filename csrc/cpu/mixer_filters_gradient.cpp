// out[n, k, tap] = the sum over pixels p of grad[p, n] z[p + tap, k]: the gradient of the mixer's filters, in float32.
//
// A task has a block of k and a block of n, and keeps the sums of all nine taps. It takes some rows of an image at a time: what
// it needs of them is copied, z with zeros around, so that a tap is a distance in memory. A register tile of sums then runs
// over all their pixels.
#include "cpu/panel.h"
#include "cpu/prepared.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

// The most register tiles of a task. To copy z takes longer than to copy grad, so it is copied for more sums.
constexpr int64_t kInTiles = kRegisters == 32 ? 4 : 8;  // of k: 56 or 48 channels
constexpr int64_t kOutTiles = 96 / kTileColumns;        // of n
// Pixels of a run, after which the sums in registers are added to those in memory. What a tile reads of them stays in L1.
constexpr int64_t kPixels = 224;

// The register tiles of a task along k or n.
struct Tiles {
  int64_t first;
  int64_t count;
};

class FiltersGradient {
 public:
  explicit FiltersGradient(const MixerFiltersGradient& args) : args_(args), columns_(args.width + 2) {
    const int64_t fitting = kPixels / args.width;
    rows_ = fitting < 1 ? 1 : fitting < args.height ? fitting : args.height;
  }

  // Who computes a sum does not change it, so the threads may decide how the work is cut.
  void run(const Parallel& parallel) const {
    const int64_t ins = divide_up(args_.channels, kTileRows), outs = divide_up(args_.channels, kTileColumns);
    const int64_t columns = divide_up(outs, kOutTiles), wanted = divide_up(2 * parallel.threads, columns);
    int64_t rows = divide_up(ins, kInTiles);
    if (rows < wanted) rows = wanted < ins ? wanted : ins;
    const auto part = [](int64_t i, int64_t parts, int64_t all) {
      return Tiles{all * i / parts, all * (i + 1) / parts - all * i / parts};
    };
    parallel.each(rows * columns,
                  [&](int64_t task) { run_block(part(task % rows, rows, ins), part(task / rows, columns, outs)); });
  }

 private:
  void run_block(Tiles in, Tiles out) const {
    Scratch scratch;
    float* const sums = scratch.take<float>(out.count * in.count * kTileSums);  // [tile of n][k][tap][n]
    float* const z = scratch.take_dirty<float>((rows_ + 2) * columns_ * in.count * kTileRows);
    float* const grad = scratch.take_dirty<float>(rows_ * args_.width * out.count * kTileColumns);
    for (int64_t image = 0; image < args_.batch; ++image)
      for (int64_t row = 0; row < args_.height; row += rows_) {
        const int64_t rows = args_.height - row < rows_ ? args_.height - row : rows_;
        copy<kTileRows>(args_.z, in, image, row - 1, row + rows + 1, 1, z);
        copy<kTileColumns>(args_.grad, out, image, row, row + rows, 0, grad);
        for (int64_t n = 0; n < out.count; ++n)
          for (int64_t k = 0; k < in.count; ++k)
            multiply(rows, z + k * (rows + 2) * columns_ * kTileRows, grad + n * rows * args_.width * kTileColumns,
                     sums + (n * in.count + k) * kTileSums);
      }
    for (int64_t n = 0; n < out.count; ++n) write(in, out.first + n, sums + n * in.count * kTileSums);
  }

  // Of the rows from `first` to `last`, with `border` columns of zeros at either side: to[tile][row][column][kWidth]. Rows
  // outside of the map are zeros, and so are channels behind the last one.
  template <int64_t kWidth>
  void copy(const float* from, Tiles tiles, int64_t image, int64_t first, int64_t last, int64_t border, float* to) const {
    const int64_t columns = args_.width + 2 * border, pixels = (last - first) * columns;
    for (int64_t y = first; y < last; ++y, to += columns * kWidth) {
      const bool inside = y >= 0 && y < args_.height;
      const float* const row = from + (image * args_.height + y) * args_.width * args_.channels;
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        const int64_t channel = (tiles.first + tile) * kWidth;
        copy_row<kWidth>(row + channel, inside ? args_.channels - channel : 0, border, to + tile * pixels * kWidth);
      }
    }
  }

  // The first `left` of kWidth channels of a row's pixels, side by side.
  template <int64_t kWidth>
  void copy_row(const float* pixel, int64_t left, int64_t border, float* to) const {
    for (int64_t i = 0; i < border * kWidth; ++i) to[i] = to[(border + args_.width) * kWidth + i] = 0;
    to += border * kWidth;
    if (left >= kWidth)
      for (int64_t x = 0; x < args_.width; ++x)
        __builtin_memcpy(to + x * kWidth, pixel + x * args_.channels, kWidth * sizeof *to);
    else
      for (int64_t x = 0; x < args_.width; ++x)
        for (int64_t i = 0; i < kWidth; ++i) to[x * kWidth + i] = i < left ? pixel[x * args_.channels + i] : 0;
  }

  void multiply(int64_t rows, const float* z, const float* grad, float* sums) const {
    for (int64_t x = 0; x < args_.width; x += kPixels)
      for (int64_t tap = 0; tap < kTaps; ++tap)
        multiply_tap(rows, smaller_of(kPixels, args_.width - x), z + (tap / 3 * columns_ + tap % 3 + x) * kTileRows,
                     grad + x * kTileColumns, sums + tap * kTileColumns);
  }

  [[gnu::noinline]] void multiply_tap(int64_t rows, int64_t columns, const float* z, const float* grad, float* to) const {
    TileSums<kTileRows> sums;
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) sums[r][0] = sums[r][1] = Vec<float>{};
    for (int64_t y = 0; y < rows; ++y, z += (columns_ - columns) * kTileRows, grad += (args_.width - columns) * kTileColumns)
      for (int64_t x = 0; x < columns; ++x, z += kTileRows, grad += kTileColumns) {
        const Vec<float> left = load(grad), right = load(grad + kLanes<float>);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
          const Vec<float> element = splat(z[r]);
          sums[r][0] += element * left;
          sums[r][1] += element * right;
        }
      }
    Sums{to, kTaps * kTileColumns, true}.take<kTileRows>(sums, false);
  }

  // The sums of a tile of n, [k][tap][n], to [n][k][tap]: a square of them after the other changes sides.
  void write(Tiles in, int64_t tile, const float* sums) const {
    const int64_t depth = args_.channels * kTaps, first = in.first * kTileRows * kTaps;
    const int64_t count = smaller_of(in.count * kTileRows * kTaps, depth - first);
    for (int64_t lane = 0; lane < kTileColumns; lane += kLanes<float>) {
      const int64_t n = tile * kTileColumns + lane, columns = smaller_of(kLanes<float>, args_.channels - n);
      const float* const from = sums + lane;
      float* const to = args_.out + n * depth + first;
      int64_t i = 0;
      if (columns == kLanes<float>)
        for (; i + kLanes<float> <= count; i += kLanes<float>)
          transpose_square(from + i * kTileColumns, kTileColumns, to + i, depth);
      for (int64_t column = 0; column < columns; ++column)
        for (int64_t j = i; j < count; ++j) to[column * depth + j] = from[j * kTileColumns + column];
    }
  }

  static constexpr int64_t kTileSums = kTileRows * kTaps * kTileColumns;
  const MixerFiltersGradient& args_;
  int64_t columns_;  // of the copy of z
  int64_t rows_;     // of a run
};

}  // namespace

void mixer_filters_gradient(const MixerFiltersGradient& args, const Parallel& parallel) {
  if (args.channels > 0 && args.width > 0) FiltersGradient(args).run(parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
