// out = z + gelu(conv3x3(z)), zeros around the map: dense, by Winograd's algorithm (winograd.h).
//
// In two steps over a group of tiles whose transformed inputs stay in L3. First every tile's input window is transformed,
// V[position][depth][tile]. Then a task is 32 output channels of a block of tiles: a product for each position,
// M[position][tile][32] in L2, transformed back at once, with GELU and residual. So the weights, which are much larger than the
// maps in the later stages, are read once a group and as one stream.
//
// Tiles at the right and the bottom edge have fewer outputs where the map is no multiple of the tile, and then need fewer of
// the positions. Tiles are counted kind by kind, (right, whole, bottom, corner), so that each position has one range of tiles.
#include "cpu/activation.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"
#include "cpu/winograd_filters.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

struct Range {
  int64_t first;
  int64_t last;
  int64_t count() const { return last > first ? last - first : 0; }
  Range part(int64_t i, int64_t parts) const { return {first + count() * i / parts, first + count() * (i + 1) / parts}; }
  Range within(Range other) const { return {first > other.first ? first : other.first, last < other.last ? last : other.last}; }
};

// The tiles of a batch of maps.
template <class Scheme>
class Tiles {
  static constexpr int kOutputs = Scheme::kOutputs;

 public:
  // Where `few` tiles of an image are multiplied together, all are whole, but for one of each kind.
  Tiles(const Mixer& args, int64_t few)
      : height_(args.height),
        width_(args.width),
        cut_(of_image(args) != few || (one_whole(args.height) && one_whole(args.width))),
        rows_(cut_ ? args.height / kOutputs : divide_up(args.height, kOutputs)),
        columns_(cut_ ? args.width / kOutputs : divide_up(args.width, kOutputs)),
        bottom_(cut_ ? static_cast<int>(args.height % kOutputs) : 0),
        right_(cut_ ? static_cast<int>(args.width % kOutputs) : 0),
        rights_(right_ ? rows_ : 0),
        wholes_(rows_ * columns_),
        bottoms_(bottom_ ? columns_ : 0),
        corners_(bottom_ && right_),
        batch_(args.batch) {}

  int64_t count() const { return batch_ * (rights_ + wholes_ + bottoms_ + corners_); }
  bool all_whole() const { return !bottom_ && !right_; }
  bool one_of_each_kind() const { return count() == 4 && rights_ && wholes_ && bottoms_ && corners_; }

  struct Place {
    int64_t image;
    int64_t y;
    int64_t x;
    int rows;  // of outputs
    int columns;
    bool whole() const { return rows == kOutputs && columns == kOutputs; }
  };

  Place place(int64_t tile) const {
    if (tile < batch_ * rights_) return {tile / rights_, tile % rights_ * kOutputs, columns_ * kOutputs, kOutputs, right_};
    tile -= batch_ * rights_;
    if (tile < batch_ * wholes_) {
      const int64_t y = tile % wholes_ / columns_, x = tile % columns_;
      return {tile / wholes_, y * kOutputs, x * kOutputs, kOutputs, kOutputs};
    }
    tile -= batch_ * wholes_;
    if (tile < batch_ * bottoms_) return {tile / bottoms_, rows_ * kOutputs, tile % bottoms_ * kOutputs, bottom_, kOutputs};
    return {tile - batch_ * bottoms_, rows_ * kOutputs, columns_ * kOutputs, bottom_, right_};
  }

  // The outputs of a tile that lie in the map.
  int64_t rows_within(const Place& place) const { return smaller_of(place.rows, height_ - place.y); }
  int64_t columns_within(const Place& place) const { return smaller_of(place.columns, width_ - place.x); }

  // Those that need the product at position (i, j).
  Range that_use(int i, int j) const {
    const bool bottom = Scheme::uses(bottom_ ? bottom_ : kOutputs, i), right = Scheme::uses(right_ ? right_ : kOutputs, j);
    const int64_t inner = batch_ * (rights_ + wholes_);
    return {right ? 0 : batch_ * rights_, !bottom ? inner : right ? count() : inner + batch_ * bottoms_};
  }

 private:
  static int64_t of_image(const Mixer& args) { return divide_up(args.height, kOutputs) * divide_up(args.width, kOutputs); }
  static bool one_whole(int64_t length) { return length > kOutputs && length < 2 * kOutputs; }

  int64_t height_;
  int64_t width_;
  bool cut_;      // whether tiles at the edge have fewer outputs
  int64_t rows_;  // of whole tiles in a map
  int64_t columns_;
  int bottom_;  // outputs of a tile at the edge; 0 where there is none
  int right_;
  int64_t rights_;  // tiles of each kind in a map
  int64_t wholes_;
  int64_t bottoms_;
  int64_t corners_;
  int64_t batch_;
};

template <class Filters>
class WinogradKernel {
  using S = typename Filters::Stored;
  using Scheme = typename Filters::Scheme;
  using Place = typename Tiles<Scheme>::Place;
  static constexpr int kOutputs = Scheme::kOutputs, kInputs = Scheme::kInputs, kProducts = Scheme::kProducts;
  static constexpr int64_t kPositions = kProducts * kProducts;
  static_assert(kProducts == winograd_products(kOutputs, sizeof(S) == sizeof(float) ? DType::float32 : DType::bfloat16));
  static constexpr int64_t kMostTiles = 8 * 224 / kPositions;  // of a block: M takes 230 KB
  static constexpr int64_t kOperandBytes = 320 * 1024;         // of a block, at one position

 public:
  explicit WinogradKernel(const Mixer& args)
      : args_(args), tiles_(args, Filters::kFew), filters_(args), depth_(padded_depth(args.channels)) {}

  void run(const Parallel& parallel) const {
    const int64_t tiles = tiles_.count();
    if (tiles == 0) return;
    const int64_t tile_bytes = kPositions * depth_ * static_cast<int64_t>(sizeof(S));
    const int64_t fitting = Filters::kGroupBytes / tile_bytes;
    const int64_t groups = divide_up(tiles, fitting > 16 ? fitting : 16);
    Scratch scratch;
    S* const inputs = scratch.take_dirty<S>(divide_up(tiles, groups) * kPositions * depth_);
    for (int64_t group = 0; group < groups; ++group) run_group(Range{0, tiles}.part(group, groups), inputs, parallel);
  }

 private:
  void run_group(Range group, S* inputs, const Parallel& parallel) const {
    const int64_t pieces = divide_up(group.count(), 4);
    parallel.each(pieces, [&](int64_t piece) {
      const Range part = group.part(piece, pieces);
      Scratch scratch;
      const S* const zeros = scratch.take<S>(depth_);
      for (int64_t tile = part.first; tile < part.last; ++tile) {
        const Place place = tiles_.place(tile);
        place.whole() ? transform_input<true>(group, tile, place, zeros, inputs)
                      : transform_input<false>(group, tile, place, zeros, inputs);
      }
    });
    const int64_t fitting = kOperandBytes / (filters_.slice_depth() * static_cast<int64_t>(sizeof(S)));
    const int64_t most = fitting < 14 ? 14 : fitting < kMostTiles ? fitting : kMostTiles;
    const int64_t blocks = divide_up(group.count(), most);
    const int64_t panels = divide_up(args_.channels, kPanel);
    const int64_t filters = kPositions * depth_ * depth_ * static_cast<int64_t>(sizeof(S));
    each_block(parallel, blocks, panels, filters,
               [&](int64_t block, int64_t panel) { multiply(group, group.part(block, blocks), panel, inputs); });
  }

  // Few tiles are multiplied together, in one block. Tile by tile that gives the bits of the products of many.
  bool few() const { return tiles_.count() == Filters::kFew && (tiles_.all_whole() || tiles_.one_of_each_kind()); }

  // The operand of one position, from tile `tile` of the group on.
  Operand<S> operand(Range group, int64_t position, int64_t tile, S* inputs) const {
    const int64_t chunk = group.count() * kChunk;
    return Operand<S>{inputs + position * depth_ / kChunk * chunk, chunk}.rows_from(tile - group.first);
  }

  // `kWhole` makes the sizes constants.
  template <bool kWhole>
  void transform_input(Range group, int64_t tile, const Place& place, const S* zeros, S* inputs) const {
    const int rows = kWhole ? kInputs : place.rows + 2, columns = kWhole ? kInputs : place.columns + 2;
    const S* pixels[kInputs][kInputs];
    locate(place, rows, columns, zeros, pixels);
    for (int64_t channel = 0; channel < depth_; channel += kLanes<float>) {
      Vec<float> x[kInputs][kProducts];  // [column][row]
      for (int j = 0; j < columns; ++j) {
        for (int i = 0; i < rows; ++i) x[j][i] = load_channels(pixels[i][j], channel);
        kWhole ? Scheme::input(x[j]) : Scheme::input(place.rows, x[j]);
      }
      for (int i = 0; i < products<kWhole>(place.rows); ++i) {
        Vec<float> row[kProducts] = {};
        for (int j = 0; j < columns; ++j) row[j] = x[j][i];
        kWhole ? Scheme::input(row) : Scheme::input(place.columns, row);
        for (int j = 0; j < products<kWhole>(place.columns); ++j) {
          const Operand<S> to = operand(group, position<kWhole>(place, i, j), tile, inputs);
          store_narrow(to.at + channel / kChunk * to.chunk + channel % kChunk, row[j]);
        }
      }
    }
  }

  template <bool kWhole>
  static int products(int outputs) {
    return kWhole ? kProducts : Scheme::products(outputs);
  }

  template <bool kWhole>
  static int position(const Place& place, int i, int j) {
    if (kWhole) return i * kProducts + j;
    return Scheme::product(place.rows, i) * kProducts + Scheme::product(place.columns, j);
  }

  Vec<float> load_channels(const S* pixel, int64_t channel) const {
    if (channel + kLanes<float> <= args_.channels) return load_wide(pixel + channel);
    float values[kLanes<float>] = {};
    for (int64_t i = channel; i < args_.channels; ++i) values[i - channel] = widen(pixel[i]);
    return load(values);
  }

  // The pixels of a tile's window; `zeros` stands for those outside of the map.
  void locate(const Place& place, int rows, int columns, const S* zeros, const S* (&pixels)[kInputs][kInputs]) const {
    const S* const image = static_cast<const S*>(args_.z) + place.image * args_.height * args_.width * args_.channels;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) {
        const int64_t y = place.y + i - 1, x = place.x + j - 1;
        const bool inside = y >= 0 && y < args_.height && x >= 0 && x < args_.width;
        pixels[i][j] = inside ? image + (y * args_.width + x) * args_.channels : zeros;
      }
  }

  void multiply(Range group, Range block, int64_t panel, S* inputs) const {
    Scratch scratch;
    float* const products = scratch.take_dirty<float>(kPositions * block.count() * kPanel);
    S* const transformed = scratch.take_dirty<S>(Filters::kScratch);
    if (few()) {
      if constexpr (Filters::kFew > 0) {
        const int64_t stride = depth_ * group.count();
        tiles_.one_of_each_kind() ? filters_.template multiply_few<true>(panel, inputs, stride, products, transformed)
                                  : filters_.template multiply_few<false>(panel, inputs, stride, products, transformed);
      }
    } else {
      for (int64_t i = 0; i < filters_.slices(); ++i)
        multiply_slice(group, block, filters_.slice(panel, i, transformed), inputs, products);
    }
    for (int64_t tile = block.first; tile < block.last; ++tile) {
      const Place place = tiles_.place(tile);
      const float* const from = products + (tile - block.first) * kPanel;
      const int64_t stride = block.count() * kPanel;
      place.whole() ? transform_output<true>(place, panel * kPanel, from, stride)
                    : transform_output<false>(place, panel * kPanel, from, stride);
    }
  }

  // The products of a slice of the depth, added to those of the slices before it.
  void multiply_slice(Range group, Range block, const FilterSlice<S>& filters, S* inputs, float* products) const {
    for (int position = 0; position < kPositions; ++position) {
      const Range tiles = block.within(tiles_.that_use(position / kProducts, position % kProducts));
      if (tiles.count() == 0) continue;
      const Operand<S> a = operand(group, position, tiles.first, inputs);
      const Operand<S> next = operand(group, (position + 1) % kPositions, tiles.first, inputs);
      const int64_t offset = filters.first * a.chunk;
      float* const to = products + (position * block.count() + tiles.first - block.first) * kPanel;
      product<S>(tiles.count(), filters.chunks, {a.at + offset, a.chunk}, filters.matrix(position),
                 {to, kPanel, filters.first > 0}, {filters.next_part(position), next.at + offset, filters.pace});
    }
  }

  template <bool kWhole>
  void transform_output(const Place& place, int64_t channel, const float* sums, int64_t stride) const {
    const int rows = kWhole ? kOutputs : place.rows, columns = kWhole ? kOutputs : place.columns;
    float block[kOutputs][kOutputs][kPanel];
    for (int64_t lane = 0; lane < kPanel; lane += kLanes<float>) {
      Vec<float> x[kProducts][kProducts];  // [column][row]
      for (int j = 0; j < products<kWhole>(place.columns); ++j) {
        for (int i = 0; i < products<kWhole>(place.rows); ++i)
          x[j][i] = load(sums + position<kWhole>(place, i, j) * stride + lane);
        kWhole ? Scheme::output(x[j]) : Scheme::output(place.rows, x[j]);
      }
      for (int i = 0; i < rows; ++i) {
        Vec<float> row[kProducts] = {};
        for (int j = 0; j < products<kWhole>(place.columns); ++j) row[j] = x[j][i];
        kWhole ? Scheme::output(row) : Scheme::output(place.columns, row);
        for (int j = 0; j < columns; ++j) store(block[i][j] + lane, args_.convolution ? row[j] : gelu<S>(row[j]));
      }
    }
    const int64_t count = args_.channels - channel < kPanel ? args_.channels - channel : kPanel;
    for (int i = 0; i < tiles_.rows_within(place); ++i)
      for (int j = 0; j < tiles_.columns_within(place); ++j) {
        const int64_t pixel = (place.image * args_.height + place.y + i) * args_.width + place.x + j;
        const int64_t at = pixel * args_.channels + channel;
        if (!args_.convolution) add_columns(static_cast<const S*>(args_.z) + at, block[i][j], count);
        write_columns(block[i][j], static_cast<S*>(args_.out) + at, count);
      }
  }

  const Mixer& args_;
  Tiles<Scheme> tiles_;
  Filters filters_;
  int64_t depth_;
};

template <class S>
using WinogradKernel2 = WinogradKernel<FiltersAhead<S, Winograd2>>;
template <class S>
using WinogradKernel4 = WinogradKernel<FiltersAhead<S, Scheme4<S>>>;

}  // namespace

void mixer(const Mixer& args, const Parallel& parallel) {
  switch (args.algorithm) {
    case Algorithm::winograd4_at_call: return run<float, WinogradKernel<FiltersAtCall>>(&KernelTable::mixer, args, parallel);
    case Algorithm::winograd4: return run_prepared<WinogradKernel4>(args.dtype, &KernelTable::mixer, args, parallel);
    case Algorithm::winograd2: return run_prepared<WinogradKernel2>(args.dtype, &KernelTable::mixer, args, parallel);
    case Algorithm::depthwise: return mix_depthwise(args, parallel);
    case Algorithm::int8: return mix_in_int8(args, parallel);
    case Algorithm::int8_winograd2: return mix_in_int8_by_winograd(args, parallel);
    default: return mix_directly(args, parallel);
  }
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
