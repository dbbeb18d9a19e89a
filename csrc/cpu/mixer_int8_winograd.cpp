// out = z + gelu(conv3x3(z)), zeros around the map, dense, in int8, by Winograd's F(2x2, 3x3) in integers: the sums are those
// of the direct algorithm to the last bit, of 4/9 of its products.
//
// Along an axis four products give two outputs, twice over:
//   p0 = (x2 - x0) g0    p1 = (x2 + x1) (g0 + g1 + g2)    p2 = (x2 - x1) (g0 - g1 + g2)    p3 = (x3 - x1) g2
//   2 y0 = p1 + p2 - 2 p0    2 y1 = p1 - p2 + 2 p3
// No number is a fraction. Along both axes the inputs are within 4 * 127 and the filters within 9 * 127, which int16 holds, and
// what comes out is four times the output. Sums may pass the range of int32 on the way: modulo 2^32 they are still right, and
// four times the output is within the range for so many channels as int8_winograd_serves (packed_sizes.h) says.
//
// In two steps over a group of lines of tiles, as mixer.cpp. All tiles are whole: outputs outside of the map are dropped.
#include "cpu/activation.h"
#include "cpu/int8.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"
#include "cpu/winograd.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kOutputs = 2, kWindow = 4, kPositions = kWindow * kWindow;  // of a tile, along an axis but for the last

// Four products in, two outputs twice over out. Unsigned numbers are modulo 2^32.
typedef uint32_t Modular __attribute__((vector_size(kVectorBytes)));
inline void transform_output(Modular* p) {
  const Modular plus = p[1] + p[2], minus = p[1] - p[2];
  p[0] = plus - 2 * p[0];
  p[1] = minus + 2 * p[3];
}

template <class S>
class Int8Winograd {
  static constexpr int64_t kGroupBytes = 12 << 20;      // of transformed inputs
  static constexpr int64_t kOperandBytes = 256 * 1024;  // of a block, at one position
  static constexpr int64_t kMostTiles = 112;            // of a block: its products take 230 KB

 public:
  explicit Int8Winograd(const Mixer& args)
      : args_(args),
        filters_(static_cast<const int16_t*>(args.weight)),
        depth_(padded_depth(args.channels)),
        panels_(divide_up(args.channels, kPanel)),
        lines_(divide_up(args.height, kOutputs)),
        columns_(divide_up(args.width, kOutputs)) {}

  void run(const Parallel& parallel) const {
    const int64_t lines = args_.batch * lines_;
    if (lines * columns_ == 0) return;
    const int64_t line_bytes = columns_ * kPositions * depth_ * static_cast<int64_t>(sizeof(int16_t));
    const int64_t groups = divide_up(lines, line_bytes < kGroupBytes ? kGroupBytes / line_bytes : 1);
    const int64_t most = divide_up(lines, groups) * columns_;
    Scratch scratch;
    int16_t* const inputs = scratch.take_dirty<int16_t>(most * kPositions * depth_);
    float* const lost = scratch.take_dirty<float>(most * kOutputs * kOutputs);
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t first = lines * i / groups, last = lines * (i + 1) / groups;
      run_group({first, (last - first) * columns_, inputs, lost}, parallel);
    }
  }

 private:
  struct Group {
    int64_t first;  // line of tiles, of those of all images
    int64_t tiles;
    int16_t* inputs;  // the operand of each position
    float* lost;      // of each output of a tile: NaN where a pixel that it is made of is not finite, else 0
  };

  void run_group(const Group& group, const Parallel& parallel) const {
    parallel.each(group.tiles / columns_, [&](int64_t line) { transform_line(group, line); });
    const int64_t fitting = kOperandBytes / (depth_ * static_cast<int64_t>(sizeof(int16_t)));
    const int64_t blocks = divide_up(group.tiles, fitting < 14 ? 14 : fitting < kMostTiles ? fitting : kMostTiles);
    const int64_t filters = panels_ * panel_size() * static_cast<int64_t>(sizeof(int16_t));
    each_block(parallel, blocks, panels_, filters, [&](int64_t block, int64_t panel) {
      multiply(group, group.tiles * block / blocks, group.tiles * (block + 1) / blocks, panel);
    });
  }

  int64_t panel_size() const { return kPositions * depth_ * kPanel; }

  // The operand of a position, from the tile on.
  Operand<int16_t> operand(const Group& group, int64_t position, int64_t tile) const {
    const int64_t chunk = group.tiles * kChunk;
    return Operand<int16_t>{group.inputs + position * depth_ / kChunk * chunk, chunk}.rows_from(tile);
  }

  void transform_line(const Group& group, int64_t line) const {
    const int64_t places = kOutputs * columns_ + 2;
    Scratch scratch;
    int16_t* const pixels = scratch.take_dirty<int16_t>(kWindow * places * depth_);
    float* const lost = scratch.take_dirty<float>(kWindow * places);
    quantise_lines(group.first + line, places, pixels, lost);
    for (int64_t column = 0; column < columns_; ++column) {
      const int64_t tile = line * columns_ + column, at = kOutputs * column;
      transform_tile(group, tile, pixels + at * depth_, places * depth_);
      for (int64_t i = 0; i < kOutputs * kOutputs; ++i) {
        float sum = 0;
        for (int64_t tap = 0; tap < kTaps; ++tap) sum += lost[(i / kOutputs + tap / 3) * places + at + i % kOutputs + tap % 3];
        group.lost[tile * kOutputs * kOutputs + i] = sum;
      }
    }
  }

  // The four lines of pixels that a line of tiles is made of, with a border.
  void quantise_lines(int64_t line, int64_t places, int16_t* pixels, float* lost) const {
    Scratch scratch;
    float* const row = scratch.take<float>(depth_);
    const int64_t image = line / lines_, first = line % lines_ * kOutputs - 1;
    for (int64_t i = 0; i < kWindow * places; ++i) {
      const int64_t y = first + i / places, x = i % places - 1;
      int16_t* const to = pixels + i * depth_;
      if (y >= 0 && y < args_.height && x >= 0 && x < args_.width) {
        read_row(static_cast<const S*>(args_.z) + ((image * args_.height + y) * args_.width + x) * args_.channels, row,
                 args_.channels);
        lost[i] = quantise_row<PairsOfInt16>(row, depth_, args_.inverse, {to, kChunk});
      } else {
        __builtin_memset(to, 0, static_cast<size_t>(depth_) * sizeof(int16_t));
        lost[i] = 0;
      }
    }
  }

  // From the window of pixels that begins with `pixels`, whose lines are `stride` apart.
  void transform_tile(const Group& group, int64_t tile, const int16_t* pixels, int64_t stride) const {
    const Operand<int16_t> to = operand(group, 0, tile);
    const int64_t position_stride = depth_ / kChunk * to.chunk;
    for (int64_t k = 0; k < depth_; k += kLanes<int16_t>) {
      Vec<int16_t> x[kWindow][kWindow];  // [column][row]
      for (int64_t j = 0; j < kWindow; ++j) {
        for (int64_t i = 0; i < kWindow; ++i) x[j][i] = load(pixels + i * stride + j * depth_ + k);
        Winograd2::input(x[j]);
      }
      int16_t* const at = to.at + k / kChunk * to.chunk + k % kChunk;
      for (int64_t i = 0; i < kWindow; ++i) {
        Vec<int16_t> row[kWindow] = {x[0][i], x[1][i], x[2][i], x[3][i]};
        Winograd2::input(row);
        for (int64_t j = 0; j < kWindow; ++j) store(at + (i * kWindow + j) * position_stride, row[j]);
      }
    }
  }

  // 32 channels of the tiles [first, last).
  void multiply(const Group& group, int64_t first, int64_t last, int64_t panel) const {
    const int64_t count = last - first, size = depth_ * kPanel;
    Scratch scratch;
    int32_t* const products = scratch.take_dirty<int32_t>(kPositions * count * kPanel);
    for (int64_t position = 0; position < kPositions; ++position) {
      const int16_t* const filters = filters_ + panel * panel_size() + position * size;
      const bool last_one = panel + 1 == panels_ && position + 1 == kPositions;
      const Operand<int16_t> a = operand(group, position, first), next = operand(group, (position + 1) % kPositions, first);
      product<int16_t>(count, depth_ / kChunk, {a.at, a.chunk}, filters,
                       SumsOf<int32_t>{products + position * count * kPanel, kPanel},
                       {last_one ? filters : filters + size, next.at});
    }
    float scale[kPanel] = {};
    const int64_t channel = panel * kPanel, channels = args_.channels - channel < kPanel ? args_.channels - channel : kPanel;
    for (int64_t i = 0; i < channels; ++i) scale[i] = args_.scale[channel + i];
    for (int64_t i = 0; i < count; ++i)
      finish(group, first + i, channel, channels, products + i * kPanel, count * kPanel, scale);
  }

  // A tile's outputs of the products at `from`, which are `stride` apart from position to position.
  void finish(const Group& group, int64_t tile, int64_t channel, int64_t channels, const int32_t* from, int64_t stride,
              const float* scale) const {
    const float* const lost = group.lost + tile * kOutputs * kOutputs;
    float block[kOutputs][kOutputs][kPanel];
    for (int64_t lane = 0; lane < kPanel; lane += kLanes<float>) {
      Modular x[kWindow][kWindow];  // [column][row]
      for (int64_t j = 0; j < kWindow; ++j) {
        for (int64_t i = 0; i < kWindow; ++i) x[j][i] = (Modular)load(from + (i * kWindow + j) * stride + lane);
        transform_output(x[j]);
      }
      for (int64_t i = 0; i < kOutputs; ++i) {
        Modular row[kWindow] = {x[0][i], x[1][i], x[2][i], x[3][i]};
        transform_output(row);
        for (int64_t j = 0; j < kOutputs; ++j) {
          const Vec<float> sum = __builtin_convertvector((Vec<int32_t>)row[j] >> 2, Vec<float>) * load(scale + lane);
          store(block[i][j] + lane, gelu<BFloat16>(sum + lost[i * kOutputs + j]));
        }
      }
    }
    const int64_t line = group.first + tile / columns_, image = line / lines_, y = line % lines_ * kOutputs;
    const int64_t x = tile % columns_ * kOutputs;
    for (int64_t i = 0; i < kOutputs && y + i < args_.height; ++i)
      for (int64_t j = 0; j < kOutputs && x + j < args_.width; ++j) {
        const int64_t at = ((image * args_.height + y + i) * args_.width + x + j) * args_.channels + channel;
        add_columns(static_cast<const S*>(args_.z) + at, block[i][j], channels);
        write_columns(block[i][j], static_cast<S*>(args_.out) + at, channels);
      }
  }

  const Mixer& args_;
  const int16_t* filters_;  // [panel][position][depth / 2][32][2]
  int64_t depth_;
  int64_t panels_;
  int64_t lines_;  // of tiles in an image
  int64_t columns_;
};

}  // namespace

void mix_in_int8_by_winograd(const Mixer& args, const Parallel& parallel) {
  run_int8<Int8Winograd>(args.dtype, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
