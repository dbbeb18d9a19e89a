// The filters of a Winograd convolution, given to the products a slice of the depth at a time: transformed ahead, when they
// were packed, or at the call.
//
// Transformed filters are larger than the filters, in F(4x4) four times. A wide layer on a small map, which has few products
// for each of them, then waits for memory. FiltersAtCall reads the filters as they are and transforms a slice of them into L2,
// where the products read it at once: that costs a few operations for every number that does not have to come. Where a map is
// of so few tiles that writing and reading transformed filters would take longer than multiplying by them, as one image's is in
// HiFuse's last stage, they exist in registers only.
#pragma once

#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/panel.h"
#include "cpu/winograd.h"
#include "cpu/winograd_complex.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

// The scheme of F(4x4) for maps of the type S: real points lose too many digits in bfloat16.
template <class S>
using Scheme4 = std::conditional_t<sizeof(S) == sizeof(float), Winograd4, Complex4>;

// The filters of a panel for some chunks of the depth: for each position a matrix [depth][32].
template <class S>
struct FilterSlice {
  int64_t first;  // chunk
  int64_t chunks;
  const S* matrices;
  int64_t stride;  // from position to position
  const S* next;   // what to ask for during the products: of each position a part, `pace` elements with every step of the depth
  int64_t pace;

  const S* matrix(int64_t position) const { return matrices + position * stride; }
  const S* next_part(int64_t position) const { return next + position * chunks * (kChunk / kStep<S>)*pace; }
};

// Of pack_winograd: [panel][position][depth][32].
template <class S, class SchemeOfTiles>
class FiltersAhead {
 public:
  using Stored = S;
  using Scheme = SchemeOfTiles;
  static constexpr int64_t kScratch = 0;
  static constexpr int64_t kFew = 0;
  static constexpr int64_t kGroupBytes = 9 << 19;  // of transformed inputs: what stays in L3 beside the weights

  explicit FiltersAhead(const Mixer& args)
      : filters_(static_cast<const S*>(args.weight)), chunks_(divide_up(args.channels, kChunk)) {}

  int64_t slices() const { return 1; }
  int64_t slice_depth() const { return chunks_ * kChunk; }

  FilterSlice<S> slice(int64_t panel, int64_t, S*) const {
    constexpr int64_t kPositions = Scheme::kProducts * Scheme::kProducts;
    const int64_t size = slice_depth() * kPanel;
    const S* const at = filters_ + panel * kPositions * size;
    return {0, chunks_, at, size, at + size, kPanel * kStep<S>};
  }

 private:
  const S* filters_;
  int64_t chunks_;
};

// F(4x4) in float32, of pack_linear: the filters as the matrix [columns, depth * 9], in panels [depth][tap][32].
class FiltersAtCall {
  static constexpr int64_t kPositions = 36;
  static constexpr int64_t kSliceChunks = 2;  // transformed 290 KB, which stay in L2
  // Not a power of 2: a row of every position is written in turn, and their lines would put each other out of L1.
  static constexpr int64_t kStride = kSliceChunks * kChunk * kPanel + kPanel;

 public:
  using Stored = float;
  using Scheme = Winograd4;
  static constexpr int64_t kScratch = kPositions * kStride;
  static constexpr int64_t kFew = kRegisters == 32 ? 4 : 0;  // tiles that `multiply_few` takes; their sums are in registers
  static constexpr int64_t kGroupBytes = 24 << 19;           // more than of FiltersAhead: a group transforms all filters

  explicit FiltersAtCall(const Mixer& args)
      : filters_(static_cast<const float*>(args.weight)),
        depth_(args.channels),
        size_(packed_size(kPanel, args.channels * kTaps)),
        chunks_(divide_up(args.channels, kChunk)) {}

  int64_t slices() const { return divide_up(chunks_, kSliceChunks); }
  int64_t slice_depth() const { return kSliceChunks * kChunk; }

  // The slice with the number `index`, transformed into `scratch`. Next is what lies behind it, of this panel or the next one.
  FilterSlice<float> slice(int64_t panel, int64_t index, float* scratch) const {
    const int64_t first = first_chunk(index), last = first_chunk(index + 1);
    const float* const filters = filters_ + panel * size_;
    for (int64_t k = first * kChunk; k < last * kChunk; ++k) {
      float* const to = scratch + (k - first * kChunk) * kPanel;
      k < depth_ ? transform(filters + k * kTaps * kPanel, to) : clear(to);
    }
    return {first, last - first, scratch, kStride, filters + last * kChunk * kTaps * kPanel, kPanel * kTaps / kPositions};
  }

  // products[position][tile][32] of a panel with kFew tiles, whose element (position, tile, k) is
  // at[position * stride + k / 32 * kFew * 32 + tile * 32 + k % 32]. `kKinds`: they are one of each kind (right, whole, bottom,
  // corner), and those at an edge do without the products of the last point. The sums are those of the slices, in their order,
  // as for more tiles; `scratch` holds those of a slice that is not at its end.
  template <bool kKinds>
  void multiply_few(int64_t panel, const float* at, int64_t stride, float* products, float* scratch) const {
    const float* filters = filters_ + panel * size_;
    for (int64_t index = 0; index < slices(); ++index)
      for (int64_t chunk = first_chunk(index); chunk < first_chunk(index + 1); ++chunk) {
        const int64_t left = depth_ - chunk * kChunk, count = left < kChunk ? left : kChunk;
        const bool begins = chunk == first_chunk(index), ends = chunk + 1 == first_chunk(index + 1);
        for (int64_t lane = 0; lane < kPanel; lane += kLanes<float>) {
          // Half of what lies behind this chunk.
          const float* const next = filters + kChunk * kTaps * (kPanel + lane);
          const Part part{filters + lane, next, count, begins ? nullptr : scratch + lane, ends && index > 0};
          multiply_rows<0, kKinds>(part, at, stride, (ends ? products : scratch) + lane);
        }
        filters += kChunk * kTaps * kPanel, at += kFew * kChunk;
      }
  }

 private:
  int64_t first_chunk(int64_t slice) const { return chunks_ * slice / slices(); }

  // A vector's width of columns of the filters at some of the depth, and those to ask for meanwhile.
  struct Part {
    const float* filters;
    const float* next;
    int64_t depth;
    const float* begun;  // the sums so far, or null
    bool accumulate;

    Part from(int64_t position) const {
      return {filters, next, depth, begun ? begun + position * kFew * kPanel : nullptr, accumulate};
    }
  };

  // The six positions of a row, row after row: 24 sums and the six filters that they share are all there is in registers.
  template <int row, bool kKinds>
  static void multiply_rows(const Part& part, const float* at, int64_t stride, float* products) {
    multiply_row<row, kKinds>(part.from(row * 6), at + row * 6 * stride, stride, products + row * 6 * kFew * kPanel);
    if constexpr (row < 5) multiply_rows<row + 1, kKinds>(part, at, stride, products);
  }

  // Of the four kinds, whether one has the product (row, i).
  static constexpr bool uses(int tile, int row, int i) { return !(tile >= 2 && row == 4) && !(tile % 3 == 0 && i == 4); }

  template <int row, bool kKinds>
  [[gnu::noinline]] static void multiply_row(const Part& part, const float* at, int64_t stride, float* products) {
    Vec<float> sums[6][kFew];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i)
#pragma GCC unroll 4
      for (int t = 0; t < kFew; ++t)
        if (!kKinds || uses(t, row, i)) sums[i][t] = part.begun ? load(part.begun + (i * kFew + t) * kPanel) : Vec<float>{};
    for (int64_t k = 0; k < part.depth; ++k) {
      const float* const filters = part.filters + k * kTaps * kPanel;
      for (int i = 2 * row; i < 2 * row + 2 && i < kTaps; ++i)  // at an even pace
        __builtin_prefetch(part.next + (i * kChunk + k) * kLanes<float>, 0, 2);
      Vec<float> x[6];
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        const auto tap = [&](int i) { return load(filters + (i * 3 + j) * kPanel); };
        x[j] = Winograd4::transform_filter<row>(tap(0), tap(1), tap(2));
      }
      Winograd4::transform_filter(x);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i)
#pragma GCC unroll 4
        for (int t = 0; t < kFew; ++t)
          if (!kKinds || uses(t, row, i)) sums[i][t] += at[i * stride + t * kChunk + k] * x[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i)
#pragma GCC unroll 4
      for (int t = 0; t < kFew; ++t) {
        if (kKinds && !uses(t, row, i)) continue;
        float* const to = products + (i * kFew + t) * kPanel;
        store(to, part.accumulate ? load(to) + sums[i][t] : sums[i][t]);
      }
  }

  // The filters of 32 columns at one depth, [3][3][32], to a row of the matrix of every position.
  static void transform(const float* filters, float* to) {
    for (int64_t lane = 0; lane < kPanel; lane += kLanes<float>) {
      Vec<float> x[3][6];  // [column][row]
      for (int j = 0; j < 3; ++j) {
        for (int i = 0; i < 3; ++i) x[j][i] = load(filters + (i * 3 + j) * kPanel + lane);
        Winograd4::transform_filter(x[j]);
      }
      for (int i = 0; i < 6; ++i) {
        Vec<float> row[6] = {x[0][i], x[1][i], x[2][i]};
        Winograd4::transform_filter(row);
        for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * kStride + lane, row[j]);
      }
    }
  }

  static void clear(float* to) {
    for (int64_t position = 0; position < kPositions; ++position)
      for (int64_t lane = 0; lane < kPanel; lane += kLanes<float>) store(to + position * kStride + lane, Vec<float>{});
  }

  const float* filters_;
  int64_t depth_;
  int64_t size_;  // of a panel
  int64_t chunks_;
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
