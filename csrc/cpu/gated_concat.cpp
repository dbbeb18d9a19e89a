// z = norm([g', l', x]) scale + shift with l' = l sigmoid(conv7x7([max_c l, mean_c l])), g' = g sigmoid(se(max g) + se(mean
// g)).
//
// Three steps: the statistics of both maps in one reading; the gate of each image's channels; then the gate of the pixels, and
// z, row by row of the map. Neither the gated maps nor their concatenation are written.
//
// The largest values may pass over a NaN: wherever they go the mean goes too, and it keeps the NaN.
#include <cmath>

#include "cpu/prepared.h"
#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kReach = 3;           // of the 7 x 7 filter
constexpr int64_t kPiecesPerImage = 8;  // of the rows of a map

inline float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
inline float relu(float x) { return x < 0 ? 0 : x; }  // a NaN stays

template <class S>
class GatedConcatKernel {
 public:
  explicit GatedConcatKernel(const GatedConcat& args)
      : args_(args),
        pieces_(args.height < kPiecesPerImage ? args.height : kPiecesPerImage),
        stride_(args.width + 2 * kReach + kLanes<float>),
        plane_((args.height + 2 * kReach) * stride_),
        padded_(padded_depth(args.channels)) {}

  void run(const Parallel& parallel) const {
    if (args_.batch == 0) return;
    Scratch scratch;
    float* const planes = scratch.take<float>(args_.batch * 2 * plane_);  // max and mean of l, zeros around them
    float* const partials = scratch.take_dirty<float>(args_.batch * pieces_ * 2 * padded_);
    float* const gates = scratch.take_dirty<float>(args_.batch * padded_);
    parallel.each(args_.batch * pieces_, [&](int64_t task) {
      const int64_t image = task / pieces_;
      measure_local(image, task % pieces_, planes + image * 2 * plane_);
      measure_global(image, task % pieces_, partials + task * 2 * padded_);
    });
    parallel.each(args_.batch,
                  [&](int64_t image) { gate_channels(partials + image * pieces_ * 2 * padded_, gates + image * padded_); });
    parallel.each(args_.batch * pieces_, [&](int64_t task) {
      const int64_t image = task / pieces_;
      join(image, task % pieces_, planes + image * 2 * plane_, gates + image * padded_);
    });
  }

 private:
  int64_t first_row(int64_t piece) const { return args_.height * piece / pieces_; }
  const S* pixel(const void* map, int64_t image, int64_t y, int64_t x) const {
    return static_cast<const S*>(map) + ((image * args_.height + y) * args_.width + x) * args_.channels;
  }

  void measure_local(int64_t image, int64_t piece, float* planes) const {
    for (int64_t y = first_row(piece); y < first_row(piece + 1); ++y)
      for (int64_t x = 0; x < args_.width; ++x) {
        float* const to = planes + (y + kReach) * stride_ + x + kReach;
        measure_pixel(pixel(args_.local_map, image, y, x), to[0], to[plane_]);
      }
  }

  void measure_pixel(const S* from, float& top, float& mean) const {
    const int64_t count = args_.channels, whole = count / kLanes<float> * kLanes<float>;
    float highest = widen(from[0]), total = 0;
    if (whole) {
      Vec<float> tops = load_wide(from), totals = {};
      for (int64_t i = 0; i < whole; i += kLanes<float>) {
        const Vec<float> v = load_wide(from + i);
        tops = larger<float>(tops, v);
        totals += v;
      }
      highest = largest<float>(tops);
      total = sum<float>(totals);
    }
    for (int64_t i = whole; i < count; ++i) {
      const float value = widen(from[i]);
      highest = value > highest ? value : highest;
      total += value;
    }
    top = highest;
    mean = total / static_cast<float>(count);
  }

  // Largest value and sum of each channel of g over the rows of a piece.
  void measure_global(int64_t image, int64_t piece, float* partial) const {
    Scratch scratch;
    float* const row = scratch.take<float>(padded_);
    float *const tops = partial, *const totals = partial + padded_;
    for (int64_t i = 0; i < padded_; ++i) tops[i] = -INFINITY, totals[i] = 0;
    for (int64_t y = first_row(piece); y < first_row(piece + 1); ++y)
      for (int64_t x = 0; x < args_.width; ++x) {
        read_row(pixel(args_.global_map, image, y, x), row, args_.channels);
        for (int64_t i = 0; i < padded_; i += kLanes<float>) {
          store(tops + i, larger<float>(load(tops + i), load(row + i)));
          store(totals + i, load(totals + i) + load(row + i));
        }
      }
  }

  void gate_channels(const float* partials, float* gate) const {
    Scratch scratch;
    float *const tops = scratch.take<float>(padded_), *const means = scratch.take<float>(padded_);
    float* const sums = scratch.take<float>(padded_);
    for (int64_t i = 0; i < padded_; ++i) tops[i] = -INFINITY;
    for (int64_t piece = 0; piece < pieces_; ++piece, partials += 2 * padded_)
      for (int64_t i = 0; i < padded_; i += kLanes<float>) {
        store(tops + i, larger<float>(load(tops + i), load(partials + i)));
        store(means + i, load(means + i) + load(partials + padded_ + i));
      }
    const float pixels = static_cast<float>(args_.height * args_.width);
    for (int64_t i = 0; i < padded_; ++i) means[i] /= pixels;
    for (int64_t s = 0; s < args_.squeezed; ++s) {
      const float* const weight = args_.squeeze + s * args_.channels;
      const float a = dot(weight, tops), b = dot(weight, means);
      const float squeezed = relu(a) + relu(b);
      const float* const back = args_.expand + s * args_.channels;
      for (int64_t i = 0; i < args_.channels; ++i) sums[i] += squeezed * back[i];
    }
    for (int64_t i = 0; i < args_.channels; ++i) gate[i] = sigmoid(sums[i]);
    if (args_.double_sigmoid)
      for (int64_t i = 0; i < args_.channels; ++i) gate[i] = sigmoid(gate[i]);
  }

  float dot(const float* a, const float* b) const {
    Vec<float> sums = {};
    int64_t i = 0;
    for (; i + kLanes<float> <= args_.channels; i += kLanes<float>) sums += load(a + i) * load(b + i);
    float total = sum<float>(sums);
    for (; i < args_.channels; ++i) total += a[i] * b[i];
    return total;
  }

  void join(int64_t image, int64_t piece, const float* planes, const float* channel_gate) const {
    Scratch scratch;
    float* const pixel_gate = scratch.take_dirty<float>(stride_);
    float* const row = scratch.take<float>(padded_depth(3 * args_.channels));
    for (int64_t y = first_row(piece); y < first_row(piece + 1); ++y) {
      gate_pixels(planes + y * stride_, pixel_gate);
      for (int64_t x = 0; x < args_.width; ++x) join_pixel(image, y, x, pixel_gate[x], channel_gate, row);
    }
  }

  // The gates of one row of the map; `planes` is its window's upper left corner. Each row of the filter is a sum of its own,
  // which rounds less than one of all 98 products.
  void gate_pixels(const float* planes, float* gate) const {
    for (int64_t x = 0; x < args_.width; x += kLanes<float>) {
      Vec<float> sums = {};
      for (int64_t row = 0; row < 14; ++row) {
        const float* const from = planes + row / 7 * plane_ + row % 7 * stride_ + x;
        Vec<float> part = {};
        for (int64_t i = 0; i < 7; ++i) part += load(from + i) * args_.filters[row * 7 + i];
        sums += part;
      }
      store(gate + x, sums + args_.filter_bias);
    }
    for (int64_t x = 0; x < args_.width; ++x) gate[x] = sigmoid(gate[x]);
  }

  void join_pixel(int64_t image, int64_t y, int64_t x, float pixel_gate, const float* channel_gate, float* row) const {
    const int64_t channels = args_.channels;
    float *const local = row + channels, *const fused = local + channels;
    read_row(pixel(args_.global_map, image, y, x), row, channels);
    read_row(pixel(args_.local_map, image, y, x), local, channels);
    read_row(pixel(args_.x, image, y, x), fused, channels);
    for (int64_t i = 0; i < channels; ++i) row[i] *= channel_gate[i];
    for (int64_t i = 0; i < channels; ++i) local[i] *= pixel_gate;
    normalise(row, 3 * channels, args_.eps);
    for (int64_t i = 0; i < 3 * channels; ++i) row[i] = row[i] * args_.scale[i] + args_.shift[i];
    S* const to = static_cast<S*>(args_.out) + ((image * args_.height + y) * args_.width + x) * 3 * channels;
    for (int64_t i = 0; i < 3 * channels; i += kPanel) write_columns(row + i, to + i, 3 * channels - i);
  }

  const GatedConcat& args_;
  int64_t pieces_;
  int64_t stride_;  // of a plane's row: the map with kReach zeros around it, and a vector more to read
  int64_t plane_;
  int64_t padded_;
};

}  // namespace

void gated_concat(const GatedConcat& args, const Parallel& parallel) {
  run_prepared<GatedConcatKernel>(args.dtype, &KernelTable::gated_concat, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
