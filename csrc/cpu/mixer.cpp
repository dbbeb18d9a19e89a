// out = z + gelu(conv3x3(z)), zeros around the map: dense by Winograd's algorithm, dense and direct, or depthwise.
//
// Winograd in two steps over a group of tiles whose transformed inputs stay in L3. First every tile's input window is transformed,
// V[position][depth][tile]. Then a task is 32 output channels of a block of tiles: a product for each position, M[position][tile][32]
// in L2, transformed back at once, with GELU and residual. So the weights, which are much larger than the maps in the later stages,
// are read once a group and as one stream.
#include "cpu/activation.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"
#include "cpu/winograd.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {
static int64_t tune(const char* n, int64_t d) { const char* e = getenv(n); return e ? atol(e) : d; }

template <class S, int kOutputs>
class WinogradKernel {
  static constexpr int kInputs = kOutputs + 2;
  static constexpr int64_t kPositions = kInputs * kInputs;
  const int64_t kGroupBytes = tune("HG", 4608) << 10;                         // of transformed inputs
  const int64_t kMostTiles = tune("HT", 8 * 224) / kPositions;              // of a block: M takes 230 KB
  const int64_t kOperandBytes = tune("HO", 320) * 1024;                     // of a block, at one position

 public:
  explicit WinogradKernel(const Mixer& args)
      : args_(args),
        depth_(padded_depth(args.channels)),
        rows_(divide_up(args.height, kOutputs)),
        columns_(divide_up(args.width, kOutputs)) {}

  void run(const Parallel& parallel) const {
    const int64_t tiles = args_.batch * rows_ * columns_;
    if (tiles == 0) return;
    const int64_t tile_bytes = kPositions * depth_ * static_cast<int64_t>(sizeof(S));
    const int64_t groups = divide_up(tiles, kGroupBytes / tile_bytes > 16 ? kGroupBytes / tile_bytes : 16);
    Scratch scratch;
    S* const inputs = scratch.take_dirty<S>(divide_up(tiles, groups) * kPositions * depth_);
    for (int64_t group = 0; group < groups; ++group)
      run_group({tiles * group / groups, tiles * (group + 1) / groups}, inputs, parallel);
  }

 private:
  struct Range {
    int64_t first;
    int64_t last;
    int64_t count() const { return last - first; }
    Range part(int64_t i, int64_t parts) const { return {first + count() * i / parts, first + count() * (i + 1) / parts}; }
  };

  void run_group(Range tiles, S* inputs, const Parallel& parallel) const {
    const int64_t pieces = divide_up(tiles.count(), 4);
    if (!tune("HX",0)) parallel.each(pieces, [&](int64_t piece) { transform_inputs(tiles, tiles.part(piece, pieces), inputs); });
    const int64_t fitting = kOperandBytes / (depth_ * static_cast<int64_t>(sizeof(S)));
    const int64_t most = fitting < 14 ? 14 : fitting < kMostTiles ? fitting : kMostTiles;
    const int64_t blocks = divide_up(tiles.count(), most);
    const int64_t panels = divide_up(args_.channels, kPanel);
    parallel.each(panels * blocks, [&](int64_t task) {
      multiply(tiles, tiles.part(task % blocks, blocks), task / blocks, inputs);
    });
  }

  // The operand of one position, from tile `tile` of the group on.
  Operand<S> operand(Range group, int64_t position, int64_t tile, S* inputs) const {
    const int64_t chunk = group.count() * kChunk;
    return Operand<S>{inputs + position * depth_ / kChunk * chunk, chunk}.rows_from(tile - group.first);
  }

  void transform_inputs(Range group, Range tiles, S* inputs) const {
    Scratch scratch;
    const S* const zeros = scratch.take<S>(depth_);
    for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
      const S* pixels[kInputs][kInputs];
      locate(tile, zeros, pixels);
      for (int64_t channel = 0; channel < depth_; channel += kLanes<float>) {
        Vec<float> x[kInputs][kInputs];  // [column][row], and after the turn [row][column]
        for (int i = 0; i < kInputs; ++i) {
          for (int j = 0; j < kInputs; ++j) x[i][j] = load_channels(pixels[j][i], channel);
          WinogradPoints<kOutputs>::input(x[i]);
        }
        for (int i = 0; i < kInputs; ++i) {
          Vec<float> row[kInputs];
          for (int j = 0; j < kInputs; ++j) row[j] = x[j][i];
          WinogradPoints<kOutputs>::input(row);
          for (int j = 0; j < kInputs; ++j) {
            const Operand<S> to = operand(group, i * kInputs + j, tile, inputs);
            store_narrow(to.at + channel / kChunk * to.chunk + channel % kChunk, row[j]);
          }
        }
      }
    }
  }

  Vec<float> load_channels(const S* pixel, int64_t channel) const {
    if (channel + kLanes<float> <= args_.channels) return load_wide(pixel + channel);
    float values[kLanes<float>] = {};
    for (int64_t i = channel; i < args_.channels; ++i) values[i - channel] = widen(pixel[i]);
    return load(values);
  }

  struct Place {
    int64_t image;
    int64_t y;
    int64_t x;
  };
  Place place_of(int64_t tile) const {
    return {tile / (rows_ * columns_), tile / columns_ % rows_ * kOutputs, tile % columns_ * kOutputs};
  }

  // The pixels of a tile's window; `zeros` stands for those outside of the map.
  void locate(int64_t tile, const S* zeros, const S* (&pixels)[kInputs][kInputs]) const {
    const Place place = place_of(tile);
    const S* const image = static_cast<const S*>(args_.z) + place.image * args_.height * args_.width * args_.channels;
    for (int i = 0; i < kInputs; ++i)
      for (int j = 0; j < kInputs; ++j) {
        const int64_t y = place.y + i - 1, x = place.x + j - 1;
        const bool inside = y >= 0 && y < args_.height && x >= 0 && x < args_.width;
        pixels[i][j] = inside ? image + (y * args_.width + x) * args_.channels : zeros;
      }
  }

  void multiply(Range group, Range tiles, int64_t panel, S* inputs) const {
    Scratch scratch;
    const int64_t count = tiles.count(), size = depth_ * kPanel;
    float* const products = scratch.take_dirty<float>(kPositions * count * kPanel);
    const S* const weight = static_cast<const S*>(args_.weight) + panel * kPositions * size;
    for (int64_t position = 0; position < kPositions; ++position) {
      const Operand<S> a = operand(group, position, tiles.first, inputs);
      const S* const at = weight + position * size;
      product<S>(count, depth_ / kChunk, {a.at, a.chunk}, at, products + position * count * kPanel, kPanel, false, at + size,
                 position + 1 < kPositions ? operand(group, position + 1, tiles.first, inputs).at : operand(group, 0, tiles.first, inputs).at);
    }
    for (int64_t i = 0; i < count; ++i) transform_output(tiles.first + i, panel * kPanel, products + i * kPanel, count * kPanel);
  }

  void transform_output(int64_t tile, int64_t channel, const float* products, int64_t position) const {
    const Place place = place_of(tile);
    float block[kOutputs * kOutputs][kPanel];
    for (int64_t lane = 0; lane < kPanel; lane += kLanes<float>) {
      Vec<float> x[kInputs][kInputs];
      for (int j = 0; j < kInputs; ++j) {
        for (int i = 0; i < kInputs; ++i) x[j][i] = load(products + (i * kInputs + j) * position + lane);
        WinogradPoints<kOutputs>::output(x[j]);
      }
      for (int i = 0; i < kOutputs; ++i) {
        Vec<float> row[kInputs];
        for (int j = 0; j < kInputs; ++j) row[j] = x[j][i];
        WinogradPoints<kOutputs>::output(row);
        for (int j = 0; j < kOutputs; ++j) store(block[i * kOutputs + j] + lane, gelu<S>(row[j]));
      }
    }
    const int64_t count = args_.channels - channel < kPanel ? args_.channels - channel : kPanel;
    for (int i = 0; i < kOutputs && place.y + i < args_.height; ++i)
      for (int j = 0; j < kOutputs && place.x + j < args_.width; ++j) {
        const int64_t pixel = (place.image * args_.height + place.y + i) * args_.width + place.x + j;
        const int64_t at = pixel * args_.channels + channel;
        add_columns(static_cast<const S*>(args_.z) + at, block[i * kOutputs + j], count);
        write_columns(block[i * kOutputs + j], static_cast<S*>(args_.out) + at, count);
      }
  }

  const Mixer& args_;
  int64_t depth_;
  int64_t rows_;     // of tiles
  int64_t columns_;
};

template <class S>
using WinogradKernel2 = WinogradKernel<S, 2>;
template <class S>
using WinogradKernel4 = WinogradKernel<S, 4>;

// Nine products, one for each tap, of the map moved by the tap: the weight is [tap][panel][depth][32].
template <class S>
class DirectKernel {
  static constexpr int64_t kMostRows = 7 * 14;
  static constexpr int64_t kOperandBytes = 256 * 1024;
  static constexpr int64_t kTasksPerThread = 4;

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
    const int64_t blocks = divide_up(rows_, most);
    int64_t ranges = divide_up(kTasksPerThread * parallel.threads(), blocks);
    if (ranges > panels_) ranges = panels_;
    parallel.each(blocks * ranges, [&](int64_t task) {
      const int64_t range = task / blocks, block = task % blocks;
      run_block(rows_ * block / blocks, rows_ * (block + 1) / blocks, panels_ * range / ranges, panels_ * (range + 1) / ranges);
    });
  }

 private:
  void run_block(int64_t first, int64_t last, int64_t panel, int64_t end) const {
    Scratch scratch;
    const int64_t rows = last - first, size = depth_ * kPanel;
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
        product<S>(rows, depth_ / kChunk, {operand.at, operand.chunk}, at, sums + (p - panel) * rows * kPanel, kPanel, tap > 0,
                   at + (p + 1 < end ? size : 0), operand.at);
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

void mixer(const Mixer& args, const Parallel& parallel) {
  switch (args.tile) {
    case 4: return run_prepared<WinogradKernel4>(args.dtype, args, parallel);
    case 2: return run_prepared<WinogradKernel2>(args.dtype, args, parallel);
    case 1: return run_prepared<DirectKernel>(args.dtype, args, parallel);
    default: return mix_depthwise(args, parallel);
  }
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
