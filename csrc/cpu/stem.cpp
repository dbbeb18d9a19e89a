// The first maps of both branches, norm(conv4x4/4(images) + bias) scale + shift each, in one product over the patches they
// share.
#include "cpu/prepared.h"
#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kRows = 4 * 14;

// Images may be of another type than the maps; they are rounded to it.
template <class S, class Image>
class StemKernel {
 public:
  explicit StemKernel(const Stem& args)
      : args_(args), depth_(args.in_chans * 16), padded_(padded_depth(depth_)), columns_(2 * args.channels) {}

  void run(const Parallel& parallel) const {
    const int64_t rows = args_.batch * args_.height * args_.width, blocks = divide_up(rows, kRows);
    parallel.each(blocks, [&](int64_t block) { run_block(rows * block / blocks, rows * (block + 1) / blocks); });
  }

 private:
  void run_block(int64_t first, int64_t last) const {
    Scratch scratch;
    const int64_t rows = last - first, width = round_up(columns_, kPanel);
    const Operand<S> patches{scratch.take_dirty<S>(rows * padded_), rows * kChunk};
    float* const row = scratch.take<float>(padded_);
    float* const maps = scratch.take_dirty<float>(rows * width);
    for (int64_t i = 0; i < rows; ++i) {
      read_patch(first + i, row);
      write_row(row, depth_, patches.rows_from(i));
    }
    const S* weight = static_cast<const S*>(args_.weight);
    for (int64_t column = 0; column < columns_; column += kPanel, weight += padded_ * kPanel)
      product<S>(rows, padded_ / kChunk, {patches.at, patches.chunk}, weight, {maps + column, width}, {weight, patches.at});
    for (int64_t i = 0; i < rows; ++i)
      for (int branch = 0; branch < 2; ++branch) finish(first + i, branch, maps + i * width + branch * args_.channels);
  }

  void read_patch(int64_t pixel, float* to) const {
    const int64_t x = pixel % args_.width, y = pixel / args_.width % args_.height, image = pixel / args_.width / args_.height;
    const int64_t *const s = args_.strides, corner = image * s[0] + 4 * y * s[2] + 4 * x * s[3];
    const Image* const from = static_cast<const Image*>(args_.images) + corner;
    const int64_t rows = args_.image_height - 4 * y, columns = args_.image_width - 4 * x;  // that there are from the corner on
    for (int64_t channel = 0; channel < args_.in_chans; ++channel)
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t j = 0; j < 4; ++j)
          *to++ = i < rows && j < columns ? widen(from[channel * s[1] + i * s[2] + j * s[3]]) : 0.0f;
  }

  void finish(int64_t pixel, int branch, float* row) const {
    const int64_t channels = args_.channels;
    const float *const bias = args_.bias + branch * channels, *const scale = args_.scale + branch * channels;
    const float* const shift = args_.shift + branch * channels;
    for (int64_t i = 0; i < channels; ++i) row[i] += bias[i];
    normalise(row, channels, args_.eps[branch]);
    for (int64_t i = 0; i < channels; ++i) row[i] = row[i] * scale[i] + shift[i];
    S* const to = static_cast<S*>(args_.out[branch]) + pixel * channels;
    for (int64_t i = 0; i < channels; i += kPanel) write_columns(row + i, to + i, channels - i);
  }

  const Stem& args_;
  int64_t depth_;
  int64_t padded_;
  int64_t columns_;
};

}  // namespace

void stem(const Stem& args, const Parallel& parallel) {
  if (args.dtype == DType::float32) return run<float, StemKernel<float, float>>(&KernelTable::stem, args, parallel);
  if (args.image_dtype == DType::float32) return StemKernel<BFloat16, float>(args).run(parallel);
  StemKernel<BFloat16, BFloat16>(args).run(parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
