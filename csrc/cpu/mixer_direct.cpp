// out = z + gelu(conv3x3(z)), zeros around the map, dense and direct.
//
// Nine products, one for each tap. A band of an image's lines is laid out with a border of zeros around it, so that a line has
// width + 2 places and the operand of a tap is that of the first one, moved by some places: nothing is copied for it. The sums
// of the two places behind each line are made and dropped.
//
// A task is one band times a range of panels; or where the weights do not stay in L3, several bands, which all take a panel
// before the next one is read.
#include "cpu/activation.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

// The weight is [panel][depth / 32][tap][32][32].
template <class S>
class DirectKernel {
  static constexpr int64_t kBandBytes = 640 * 1024;  // of the operand of a band
  static constexpr int64_t kTaskBytes = 1600 * 1024;
  static constexpr int64_t kCachedBytes = 4 << 20;  // of weights

 public:
  explicit DirectKernel(const Mixer& args)
      : args_(args),
        depth_(padded_depth(args.channels)),
        line_(args.width + 2),
        panels_(divide_up(args.channels, kPanel)),
        bands_(divide_up(args.height, lines_that_fit())) {}

  void run(const Parallel& parallel) const {
    const int64_t bands = args_.batch * bands_;
    if (bands * args_.height * args_.width == 0) return;
    const int64_t weight_bytes = kTaps * depth_ * depth_ * static_cast<int64_t>(sizeof(S));
    const int64_t together = weight_bytes <= kCachedBytes ? 1 : kTaskBytes / ((most_lines() + 2) * line_bytes());
    const int64_t blocks = divide_up(bands, together < 1 ? 1 : together);
    const int64_t wanted = divide_up(4 * parallel.threads, blocks), ranges = wanted < panels_ ? wanted : panels_;
    parallel.each(blocks * ranges, [&](int64_t task) {
      const int64_t range = task / blocks, block = task % blocks;
      run_task(bands * block / blocks, bands * (block + 1) / blocks, panels_ * range / ranges, panels_ * (range + 1) / ranges);
    });
  }

 private:
  struct Band {
    int64_t image;
    int64_t first;  // line
    int64_t lines;
    Operand<S> operand;
    float* sums;
  };

  int64_t line_bytes() const { return line_ * depth_ * static_cast<int64_t>(sizeof(S)); }
  int64_t lines_that_fit() const {
    const int64_t fitting = kBandBytes / line_bytes() - 2;
    return fitting < 1 ? 1 : fitting;
  }
  int64_t most_lines() const { return divide_up(args_.height, bands_); }
  int64_t places(int64_t lines) const { return lines * line_ - 2; }  // of sums: from the first pixel to the last one

  void run_task(int64_t first, int64_t last, int64_t panel, int64_t end) const {
    const int64_t count = last - first, elements = (most_lines() + 2) * line_ * depth_, sums = places(most_lines()) * kPanel;
    Scratch scratch;
    S* const operands = scratch.take_dirty<S>(count * elements);
    float* const all_sums = scratch.take_dirty<float>(count * sums);
    Band* const bands = scratch.take_dirty<Band>(count);
    float* const row = scratch.take<float>(depth_);
    for (int64_t i = 0; i < count; ++i) bands[i] = lay_out(first + i, row, operands + i * elements, all_sums + i * sums);
    for (; panel < end; ++panel)
      for (int64_t i = 0; i < count; ++i) {
        multiply(bands[i], panel, panel + 1 < end && i + 1 == count);
        finish(bands[i], panel * kPanel);
      }
  }

  Band lay_out(int64_t index, float* row, S* operand, float* sums) const {
    const int64_t at = index % bands_, first = args_.height * at / bands_, lines = args_.height * (at + 1) / bands_ - first;
    const int64_t count = (lines + 2) * line_;
    const Band band{index / bands_, first, lines, {operand, count * kChunk}, sums};
    for (int64_t i = 0; i < count; ++i) {
      const int64_t y = first + i / line_ - 1, x = i % line_ - 1;
      const bool inside = y >= 0 && y < args_.height && x >= 0 && x < args_.width;
      write_pixel(inside ? pixel(band.image, y, x) : nullptr, row, band.operand.rows_from(i));
    }
    return band;
  }

  const S* pixel(int64_t image, int64_t y, int64_t x) const {
    return static_cast<const S*>(args_.z) + ((image * args_.height + y) * args_.width + x) * args_.channels;
  }

  // Zeros where `from` is null. Behind the channels, `row` has zeros.
  void write_pixel(const S* from, float* row, Operand<S> to) const {
    if (!from)
      for (int64_t k = 0; k < depth_; k += kChunk, to.at += to.chunk)
        __builtin_memset(static_cast<void*>(to.at), 0, kChunk * sizeof(S));
    else if (args_.channels == depth_)
      copy_row(from, depth_, to);
    else {
      read_row(from, row, args_.channels);
      write_row(row, depth_, to);
    }
  }

  // `last`: this is the panel's last product, and the next panel is asked for.
  void multiply(const Band& band, int64_t panel, bool last) const {
    const int64_t size = kTaps * depth_ * kPanel;
    const S* const at = static_cast<const S*>(args_.weight) + panel * size;
    int64_t moved[kTaps];
    for (int64_t tap = 0; tap < kTaps; ++tap) moved[tap] = tap / 3 * line_ + tap % 3;
    product_of_taps<S>(places(band.lines), depth_ / kChunk, {band.operand.at, band.operand.chunk}, moved, at,
                       {band.sums, kPanel}, last ? at + size : at);
  }

  void finish(const Band& band, int64_t column) const {
    const int64_t count = args_.channels - column < kPanel ? args_.channels - column : kPanel;
    for (int64_t y = 0; y < band.lines; ++y)
      for (int64_t x = 0; x < args_.width; ++x) {
        float* const row = band.sums + (y * line_ + x) * kPanel;
        for (int64_t j = 0; j < kPanel; j += kLanes<float>) store(row + j, gelu<S>(load(row + j)));
        const S* const from = pixel(band.image, band.first + y, x) + column;
        add_columns(from, row, count);
        write_columns(row, static_cast<S*>(args_.out) + (from - static_cast<const S*>(args_.z)), count);
      }
  }

  const Mixer& args_;
  int64_t depth_;
  int64_t line_;  // places of a line, with its border
  int64_t panels_;
  int64_t bands_;  // of an image
};

}  // namespace

void mix_directly(const Mixer& args, const Parallel& parallel) {
  run_prepared<DirectKernel>(args.dtype, &KernelTable::mixer, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
