// Products with weights that were packed once: c[rows, 32] = a[rows, depth] x panel[depth, 32].
//
// Weights lie in panels of 32 columns, [columns / 32][depth][32], so that a product reads one stream from end to end; depth and
// columns are filled up with zeros to multiples of 32. bfloat16 pairs neighbours of the depth, [depth / 2][32][2], as the
// instruction for pairs wants it. The layout is the same for every instruction set.
//
// The other operand lies in chunks of 32 of the depth, [depth / 32][rows][32]: the distance between rows is then a constant
// inside the kernel, and a row is written by whole vectors.
#pragma once

#include "cpu/storage.h"
#include "cpu/vec.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

constexpr int64_t kPanel = 32;  // columns
constexpr int64_t kChunk = 32;  // depth

inline int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

// Elements of a packed weight [columns, depth].
inline int64_t packed_size(int64_t columns, int64_t depth) {
  return divide_up(columns, kPanel) * kPanel * divide_up(depth, kChunk) * kChunk;
}

// Element (row, k) of the other operand is at[k / 32 * chunk + row * 32 + k % 32].
template <class S>
struct Operand {
  S* at;
  int64_t chunk;

  Operand rows_from(int64_t row) const { return {at + row * kChunk, chunk}; }
  Operand chunks_from(int64_t first) const { return {at + first * chunk, chunk}; }
};

// The block of sums that leaves registers for two vectors of the panel and one broadcast element.
constexpr int kTileRows = kRegisters == 32 ? 14 : 6;
constexpr int kTileVectors = 2;
constexpr int64_t kTileColumns = kTileVectors * kLanes<float>;

// One step of the depth: one element in float32, a pair in bfloat16.
template <class S>
constexpr int64_t kStep = sizeof(float) / sizeof(S);

#if defined(__AVX512BF16__)
using Pairs = __m512bh;
inline Pairs load_pairs(const BFloat16* from) { return (Pairs)_mm512_loadu_si512(from); }
inline Pairs splat_pair(const BFloat16* from) {
  int32_t bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return (Pairs)_mm512_set1_epi32(bits);
}
inline void add_product(Vec<float>& sum, const Pairs& a, const Pairs& b) {
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, a, b);
}
#else
struct Pairs {
  Vec<float> first, second;
};
inline Pairs widen_pairs(Vec<int32_t> bits) { return {(Vec<float>)(bits << 16), (Vec<float>)(bits & -65536)}; }
inline Pairs load_pairs(const BFloat16* from) {
  Vec<int32_t> bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return widen_pairs(bits);
}
inline Pairs splat_pair(const BFloat16* from) { return {splat(widen(from[0])), splat(widen(from[1]))}; }
inline void add_product(Vec<float>& sum, const Pairs& a, const Pairs& b) {
  sum += a.first * b.first;
  sum += a.second * b.second;
}
#endif
inline Vec<float> load_pairs(const float* from) { return load(from); }
inline Vec<float> splat_pair(const float* from) { return splat(*from); }
inline void add_product(Vec<float>& sum, Vec<float> a, Vec<float> b) { sum += a * b; }

// What a tile asks for while it computes: part of the panel that comes next, `stride` bytes further with every step, and the
// same rows of the operand that comes next, which lies like this one.
template <class S>
struct Next {
  const char* panel;
  int64_t stride;
  const S* operand;

  void fetch_panel(int64_t step) const {
    __builtin_prefetch(panel + step * stride, 0, 2);
    __builtin_prefetch(panel + step * stride + stride / 2, 0, 2);
  }
  // A chunk of the operand's rows has at most as many lines as steps.
  void fetch_operand(int64_t offset, int64_t step) const {
    __builtin_prefetch(reinterpret_cast<const char*>(operand + offset) + 64 * step, 0, 2);
  }
};

// Chunks after which float32 sums are added to c and begun anew: rounding errors grow with the root of such a run, not of the
// whole depth, as they do in a library's product. A tile of few rows, as a classifier has, waits for its weights and can do so
// after every chunk. bfloat16 operands bring larger errors with them.
template <class S, int kRows>
constexpr int64_t kRun = sizeof(S) < sizeof(float) ? 1 << 20
                         : kRows <= kTileRows / 2  ? 1
                                                   : 6;

// Every loop over the sums is unrolled, or they would not all be registers.
template <int kRows, class S>
[[gnu::noinline]] void tile(int64_t chunks, Operand<const S> a, const S* b, float* c, int64_t c_row, bool accumulate,
                            Next<S> next) {
  constexpr int64_t kSteps = kChunk / kStep<S>;
  const int64_t runs = divide_up(chunks, kRun<S, kRows>);
  for (int64_t run = 0; run < runs; ++run) {
    Vec<float> sums[kRows][kTileVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vec<float>{};
    for (int64_t chunk = chunks * run / runs; chunk < chunks * (run + 1) / runs; ++chunk) {
      const int64_t offset = chunk * a.chunk;
      const S* const at = a.at + offset;
#pragma GCC unroll 4
      for (int64_t k = 0; k < kSteps; ++k, b += kPanel * kStep<S>) {
        const auto left = load_pairs(b);
        const auto right = load_pairs(b + kLanes<float> * kStep<S>);
        next.fetch_panel(chunk * kSteps + k);
        next.fetch_operand(offset, k);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const auto element = splat_pair(at + r * kChunk + k * kStep<S>);
          add_product(sums[r][0], element, left);
          add_product(sums[r][1], element, right);
        }
      }
    }
    if (accumulate || run > 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        sums[r][0] += load(c + r * c_row);
        sums[r][1] += load(c + r * c_row + kLanes<float>);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      store(c + r * c_row, sums[r][0]);
      store(c + r * c_row + kLanes<float>, sums[r][1]);
    }
  }
}

// `rows` <= kRows: the row count becomes a constant.
template <int kRows, class S>
inline void tile_of(int64_t rows, int64_t chunks, Operand<const S> a, const S* b, float* c, int64_t c_row, bool accumulate,
                    Next<S> next) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<kRows - 1, S>(rows, chunks, a, b, c, c_row, accumulate, next);
  }
  tile<kRows, S>(chunks, a, b, c, c_row, accumulate, next);
}

// Chunks of the depth that all tiles of a product take before the next ones: where a tile is small, its part of the panel then
// stays in L1 from tile to tile.
template <class S>
constexpr int64_t kBlock = kRun<S, kTileRows>;

// c[rows, 32] = a x panel, or += with `accumulate`. The rows are split evenly into tiles (49 = 13 + 12 + 12 + 12). While the
// tiles read this panel, they ask for the panel and the operand that come next, each for its part of them: what comes from
// memory arrives at an even pace, `pace` elements with every step. An operand that stays is its own next one.
template <class S>
inline void product(int64_t rows, int64_t chunks, Operand<const S> a, const S* panel, float* c, int64_t c_row, bool accumulate,
                    const S* next_panel, const S* next_operand, int64_t pace = kPanel * kStep<S>) {
  constexpr int64_t kSteps = kChunk / kStep<S>;
  const int64_t tiles = divide_up(rows, kTileRows), blocks = tiles > 1 ? divide_up(chunks, kBlock<S>) : 1;
  const int64_t stride = divide_up(pace * static_cast<int64_t>(sizeof(S)), tiles);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t chunk = chunks * block / blocks, count = chunks * (block + 1) / blocks - chunk;
    for (int64_t column = 0; column < kPanel; column += kTileColumns)
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t first = rows * i / tiles, height = rows * (i + 1) / tiles - first;
        const char* const ahead = reinterpret_cast<const char*>(next_panel) + (i * chunks + chunk) * kSteps * stride;
        tile_of<kTileRows, S>(height, count, a.rows_from(first).chunks_from(chunk),
                              panel + chunk * kChunk * kPanel + column * kStep<S>, c + first * c_row + column, c_row,
                              accumulate || block > 0, {ahead, stride, next_operand + first * kChunk + chunk * a.chunk});
      }
  }
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
