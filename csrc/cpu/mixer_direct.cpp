// out = z + gelu(conv3x3(z)), zeros around the map, dense and direct; of the map's own elements, or in int8.
//
// Nine products, one for each tap. A band of an image's lines is laid out with a border of zeros around it, so that a line has
// width + 2 places and the operand of a tap is that of the first one, moved by some places: nothing is copied for it. The sums
// of the two places behind each line are made and dropped.
//
// A task is one band times a range of panels; or where the weights do not stay in L3, several bands, which all take a panel
// before the next one is read.
#include "cpu/activation.h"
#include "cpu/int8.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

using Moves = int64_t[kTaps];

// The products of the map's own elements; the weight is [panel][depth / 32][tap][32][32].
template <class S>
class Plainly {
 public:
  using Element = S;
  using Sum = float;
  using Exactness = S;  // of GELU
  static constexpr int64_t kWidth = kChunk;
  static constexpr S kZero = {};

  explicit Plainly(const Mixer& args)
      : args_(args), depth_(padded_depth(args.channels)), weight_(static_cast<const S*>(args.weight)) {}

  int64_t depth() const { return depth_; }
  int64_t panel_size() const { return kTaps * depth_ * kPanel; }  // elements

  // A pixel, behind whose channels `row` has zeros. Returns what is lost by it.
  float write(const S* from, float* row, Operand<S> to) const {
    if (args_.channels == depth_) {
      copy_row(from, depth_, to);
    } else {
      read_row(from, row, args_.channels);
      write_row(row, depth_, to);
    }
    return 0;
  }

  void multiply(int64_t rows, Operand<const S> a, const Moves& moved, int64_t panel, bool last, float* sums) const {
    const S* const at = weight_ + panel * panel_size();
    product_of_taps<S>(rows, depth_ / kChunk, a, moved, at, {sums, kPanel}, last ? at + panel_size() : at);
  }

  // The convolution of 32 channels from `column` on.
  auto values(int64_t) const {
    return [](const float* sums, int64_t j) { return load(sums + j); };
  }

 private:
  const Mixer& args_;
  int64_t depth_;
  const S* weight_;
};

// The products in int8; the panels of the weight are those of int8_product_of_taps.
template <class S, class Arithmetic>
class InInt8 {
 public:
  using Element = typename Arithmetic::Element;
  using Sum = int32_t;
  using Exactness = BFloat16;
  static constexpr int64_t kWidth = Arithmetic::kWidth;
  static constexpr Element kZero = Arithmetic::kAdded;

  explicit InInt8(const Mixer& args)
      : args_(args), depth_(round_up(args.channels, kTapsChunk)), weight_(static_cast<const int8_t*>(args.weight)) {}

  int64_t depth() const { return depth_; }
  int64_t panel_size() const { return int8_panel_size(kTaps * depth_); }

  float write(const S* from, float* row, Int8Operand<Arithmetic> to) const {
    read_row(from, row, args_.channels);
    return quantise_row<Arithmetic>(row, depth_, args_.inverse, to);
  }

  void multiply(int64_t rows, ConstInt8Operand<Arithmetic> a, const Moves& moved, int64_t panel, bool, int32_t* sums) const {
    int8_product_of_taps<Arithmetic>(rows, depth_ / kTapsChunk, a, moved, weight_ + panel * panel_size(), sums);
  }

  struct Rescaled {
    float scale[kPanel] = {};
    Vec<float> operator()(const int32_t* sums, int64_t j) const { return dequantise(sums + j, scale + j); }
  };
  Rescaled values(int64_t column) const {
    Rescaled made;
    for (int64_t i = 0; i < kPanel && column + i < args_.channels; ++i) made.scale[i] = args_.scale[column + i];
    return made;
  }

 private:
  const Mixer& args_;
  int64_t depth_;
  const int8_t* weight_;
};

template <class S, class Products>
class DirectKernel {
  using Element = typename Products::Element;
  using Sum = typename Products::Sum;
  static constexpr int64_t kWidth = Products::kWidth;
  static constexpr int64_t kBandBytes = 640 * 1024;  // of the operand of a band
  static constexpr int64_t kTaskBytes = 1600 * 1024;
  static constexpr int64_t kCachedBytes = 4 << 20;  // of weights

 public:
  explicit DirectKernel(const Mixer& args)
      : args_(args),
        products_(args),
        line_(args.width + 2),
        panels_(divide_up(args.channels, kPanel)),
        bands_(divide_up(args.height, lines_that_fit())) {
    for (int64_t tap = 0; tap < kTaps; ++tap) moved_[tap] = tap / 3 * line_ + tap % 3;
  }

  void run(const Parallel& parallel) const {
    const int64_t bands = args_.batch * bands_;
    if (bands * args_.height * args_.width == 0) return;
    const int64_t weight_bytes = panels_ * products_.panel_size() * static_cast<int64_t>(sizeof(Element));
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
    Operand<Element, kWidth> operand;
    Sum* sums;
    float* lost;  // of each place: NaN where its pixel is not finite and its elements do not say so; null where none is
  };

  int64_t line_bytes() const { return line_ * products_.depth() * static_cast<int64_t>(sizeof(Element)); }
  int64_t lines_that_fit() const {
    const int64_t fitting = kBandBytes / line_bytes() - 2;
    return fitting < 1 ? 1 : fitting;
  }
  int64_t most_lines() const { return divide_up(args_.height, bands_); }
  int64_t places(int64_t lines) const { return lines * line_ - 2; }  // of sums: from the first pixel to the last one

  void run_task(int64_t first, int64_t last, int64_t panel, int64_t end) const {
    const int64_t count = last - first, all = (most_lines() + 2) * line_, sums = places(most_lines()) * kPanel;
    Scratch scratch;
    Element* const operands = scratch.take_dirty<Element>(count * all * products_.depth());
    Sum* const all_sums = scratch.take_dirty<Sum>(count * sums);
    float* const lost = scratch.take_dirty<float>(count * all);
    Band* const bands = scratch.take_dirty<Band>(count);
    float* const row = scratch.take<float>(products_.depth());
    for (int64_t i = 0; i < count; ++i)
      bands[i] = lay_out(first + i, row, operands + i * all * products_.depth(), all_sums + i * sums, lost + i * all);
    for (; panel < end; ++panel)
      for (int64_t i = 0; i < count; ++i) {
        const Band& band = bands[i];
        products_.multiply(places(band.lines), {band.operand.at, band.operand.chunk}, moved_, panel,
                           panel + 1 < end && i + 1 == count, band.sums);
        finish(band, panel * kPanel);
      }
  }

  Band lay_out(int64_t index, float* row, Element* operand, Sum* sums, float* lost) const {
    const int64_t at = index % bands_, first = args_.height * at / bands_, lines = args_.height * (at + 1) / bands_ - first;
    const int64_t count = (lines + 2) * line_;
    Band band{index / bands_, first, lines, {operand, count * kWidth}, sums, nullptr};
    for (int64_t i = 0; i < count; ++i) {
      const int64_t y = first + i / line_ - 1, x = i % line_ - 1;
      const bool inside = y >= 0 && y < args_.height && x >= 0 && x < args_.width;
      lost[i] = inside ? products_.write(pixel(band.image, y, x), row, band.operand.rows_from(i)) : 0;
      if (!inside) write_zeros(band.operand.rows_from(i));
      if (lost[i] != 0) band.lost = lost;  // NaN
    }
    return band;
  }

  const S* pixel(int64_t image, int64_t y, int64_t x) const {
    return static_cast<const S*>(args_.z) + ((image * args_.height + y) * args_.width + x) * args_.channels;
  }

  void write_zeros(Operand<Element, kWidth> to) const {
    for (int64_t k = 0; k < products_.depth(); k += kWidth, to.at += to.chunk)
      for (int64_t i = 0; i < kWidth; ++i) to.at[i] = Products::kZero;
  }

  void finish(const Band& band, int64_t column) const {
    const int64_t count = args_.channels - column < kPanel ? args_.channels - column : kPanel;
    const auto values = products_.values(column);
    for (int64_t y = 0; y < band.lines; ++y)
      for (int64_t x = 0; x < args_.width; ++x) {
        const int64_t place = y * line_ + x;
        const float lost = band.lost ? lost_at(band, place) : 0;
        float row[kPanel];
        for (int64_t j = 0; j < kPanel; j += kLanes<float>)
          store(row + j, gelu<typename Products::Exactness>(values(band.sums + place * kPanel, j) + lost));
        const S* const from = pixel(band.image, band.first + y, x) + column;
        add_columns(from, row, count);
        write_columns(row, static_cast<S*>(args_.out) + (from - static_cast<const S*>(args_.z)), count);
      }
  }

  float lost_at(const Band& band, int64_t place) const {
    float lost = 0;
    for (const int64_t moved : moved_) lost += band.lost[place + moved];
    return lost;
  }

  const Mixer& args_;
  Products products_;
  int64_t line_;  // places of a line, with its border
  int64_t panels_;
  int64_t bands_;  // of an image
  Moves moved_;    // by how many places the operand of a tap is
};

template <class S>
using PlainKernel = DirectKernel<S, Plainly<S>>;
template <class Arithmetic>
struct MixerBy {
  template <class S>
  using Kernel = DirectKernel<S, InInt8<S, Arithmetic>>;
};

}  // namespace

void mix_directly(const Mixer& args, const Parallel& parallel) {
  run_prepared<PlainKernel>(args.dtype, &KernelTable::mixer, args, parallel);
}

void mix_in_int8(const Mixer& args, const Parallel& parallel) {
  by_fastest_int8(
      [&](auto arithmetic) { run_int8<MixerBy<decltype(arithmetic)>::template Kernel>(args.dtype, args, parallel); });
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
