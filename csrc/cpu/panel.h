// Products with weights that were packed once: c[rows, 32] = a[rows, depth] x panel[depth, 32].
//
// Weights lie in panels of 32 columns, [columns / 32][depth][32], so that a product reads one stream from end to end; depth and
// columns are filled up with zeros to multiples of 32. bfloat16 pairs neighbours of the depth, [depth / 2][32][2], as the
// instruction for pairs wants it, and so does int16. The layout is the same for every instruction set.
//
// The other operand lies in chunks of 32 of the depth, [depth / 32][rows][32]: the distance between rows is then a constant
// inside the kernel, and a row is written by whole vectors.
#pragma once

#include "cpu/amx.h"
#include "cpu/counts.h"
#include "cpu/storage.h"
#include "cpu/vec.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

constexpr int64_t kPanel = 32;  // columns
constexpr int64_t kChunk = 32;  // depth

// Elements of a packed weight [columns, depth].
inline int64_t packed_size(int64_t columns, int64_t depth) { return round_up(columns, kPanel) * round_up(depth, kChunk); }

// Element (row, k) of the other operand is at[k / 32 * chunk + row * 32 + k % 32], or with another width than 32.
template <class S, int64_t kWidth = kChunk>
struct Operand {
  S* at;
  int64_t chunk;

  Operand rows_from(int64_t row) const { return {at + row * kWidth, chunk}; }
  Operand chunks_from(int64_t first) const { return {at + first * chunk, chunk}; }
};

// The block of sums that leaves registers for two vectors of the panel and one broadcast element.
constexpr int kTileRows = kRegisters == 32 ? 14 : 6;
constexpr int kTileVectors = 2;
constexpr int64_t kTileColumns = kTileVectors * kLanes<float>;
constexpr int64_t kSides = kPanel / kTileColumns;  // of a panel

// One step of the depth: one element in float32, a pair in bfloat16 and int16.
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

// Pairs of integers, whose sums are exact in int32.
inline Vec<int16_t> load_pairs(const int16_t* from) { return load(from); }
inline Vec<int16_t> splat_pair(const int16_t* from) {
  int32_t bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return (Vec<int16_t>)splat(bits);
}
// What `add_product` adds, in plain arithmetic.
inline Vec<int32_t> plain_product(Vec<int16_t> a, Vec<int16_t> b) {
  const auto x = (Vec<int32_t>)a, y = (Vec<int32_t>)b;
  return (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
}
inline void add_product(Vec<int32_t>& sum, Vec<int16_t> a, Vec<int16_t> b) {
#if defined(__AVX512VNNI__)
  sum = (Vec<int32_t>)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  sum += (Vec<int32_t>)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  sum += (Vec<int32_t>)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  sum += (Vec<int32_t>)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  sum += plain_product(a, b);
#endif
}

// A prefetch takes the place of a load, also where its line is there. So nothing is asked for twice: each tile asks for its
// part of what comes next, and where that is a few lines for a group of steps, for these at once.
constexpr int64_t kGroup = 16;  // steps
constexpr int64_t kLine = 64;   // bytes
// Lines of a panel that a tile asks for with a group of steps, where it is the only one of its side.
constexpr int64_t kAllLines = kGroup * kPanel * int64_t{sizeof(float)} / kLine / kSides;
constexpr int64_t kFewLines = kAllLines / 4;  // where there are four
constexpr int kFewRows = 2 * kTileRows / 3;   // which they have at least

// What a tile asks for while it computes: its part of the panel that comes next, `stride` bytes with every step, and of the
// operand that comes next, which lies like this one, its side's part of the same rows.
template <class S>
struct Next {
  const char* panel;
  int64_t stride;
  const S* operand;

  template <int64_t kLines>
  void fetch_panel(int64_t step) const {
    fetch<kLines>(panel + step * stride);
  }
  template <int64_t kLines>
  void fetch_operand(int64_t offset, int64_t line) const {
    fetch<kLines>(reinterpret_cast<const char*>(operand + offset) + line * kLine);
  }

 private:
  template <int64_t kLines>
  static void fetch(const char* from) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLines; ++i) __builtin_prefetch(from + i * kLine, 0, 2);
  }
};

// Depth after which float32 sums are added to c and begun anew: rounding errors grow with the root of such a run, not of the
// whole depth, as they do in a library's product. A product says how long its runs are; no tile does, or a row's result would
// depend on the rows beside it. bfloat16 operands bring larger errors with them, and have one run.
constexpr int64_t kRun = 192;

// The type of a product's sums.
template <class S>
using SumOf = std::conditional_t<std::is_same_v<S, int16_t>, int32_t, float>;

// Sums on their way out of registers.
template <int kRows, class Sum = float>
using TileSums = Vec<Sum>[kRows][kTileVectors];

// Where a product's sums go: element (row, column) to at[row * stride + column], with `accumulate` added to what is there.
template <class Sum>
struct SumsOf {
  Sum* at;
  int64_t stride;
  bool accumulate = false;
  int64_t run = kRun;

  SumsOf from(int64_t row, int64_t column) const { return {at + row * stride + column, stride, accumulate, run}; }
  SumsOf again() const { return {at, stride, true, run}; }

  // `again`: they are added to what was taken before. Every loop over the sums is unrolled, or they would not all be registers.
  template <int kRows>
  [[gnu::always_inline]] void take(TileSums<kRows, Sum>& sums, bool again) const {
    if (accumulate || again) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        sums[r][0] += load(at + r * stride);
        sums[r][1] += load(at + r * stride + kLanes<Sum>);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      store(at + r * stride, sums[r][0]);
      store(at + r * stride + kLanes<Sum>, sums[r][1]);
    }
  }
};
using Sums = SumsOf<float>;

// `kLines`: of the panel that comes next, with every group of steps.
template <int kRows, int64_t kLines, class S, int64_t kWidth, class To>
[[gnu::noinline]] void tile(int64_t chunks, int64_t runs, Operand<const S, kWidth> a, const S* b, To to, Next<S> next) {
  constexpr int64_t kSteps = kWidth / kStep<S>;
  constexpr int64_t kBytes = kRows * kWidth * int64_t{sizeof(S)} / kSides;  // of a chunk of the operand
  constexpr int64_t kOperandLines = divide_up(kBytes, kLine * kSteps / kGroup);
  for (int64_t run = 0; run < runs; ++run) {
    TileSums<kRows, SumOf<S>> sums;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vec<SumOf<S>>{};
    // No division where there is one run, as in most tiles.
    const int64_t begin = run == 0 ? 0 : chunks * run / runs, end = runs == 1 ? chunks : chunks * (run + 1) / runs;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t offset = chunk * a.chunk;
      for (int64_t first = 0; first < kSteps; first += kGroup) {
        const S* const at = a.at + offset + first * kStep<S>;
        if constexpr (kLines < kAllLines) next.template fetch_panel<kLines>(chunk * kSteps + first);
        next.template fetch_operand<kOperandLines>(offset, first / kGroup * kOperandLines);
#pragma GCC unroll 4
        for (int64_t k = 0; k < kGroup; ++k, b += kPanel * kStep<S>) {
          const auto left = load_pairs(b);
          const auto right = load_pairs(b + kLanes<float> * kStep<S>);
          if constexpr (kLines == kAllLines)
            next.template fetch_panel<divide_up(kAllLines, kGroup)>(chunk * kSteps + first + k);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            const auto element = splat_pair(at + r * kWidth + k * kStep<S>);
            add_product(sums[r][0], element, left);
            add_product(sums[r][1], element, right);
          }
        }
      }
    }
    to.template take<kRows>(sums, run > 0);
  }
}

// `rows` <= kRows: the row count becomes a constant, and how many lines are asked for.
template <int kRows, class S, int64_t kWidth, class To>
inline void tile_of(int64_t rows, int64_t chunks, int64_t runs, Operand<const S, kWidth> a, const S* b, const To& to,
                    Next<S> next) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<kRows - 1>(rows, chunks, runs, a, b, to, next);
  }
  if constexpr (kRows >= kFewRows)
    if (next.stride * kGroup <= kFewLines * kLine) return tile<kRows, kFewLines>(chunks, runs, a, b, to, next);
  tile<kRows, kAllLines>(chunks, runs, a, b, to, next);
}

// What a product asks for: the panel and the operand that come next, `pace` elements of the panel with every step. An operand
// that stays is its own next one.
template <class S>
struct Ahead {
  const S* panel;
  const S* operand;
  int64_t pace = kPanel * kStep<S>;
};

inline const char* bytes(const void* at) { return static_cast<const char*>(at); }

// c[rows, 32] = a x panel, or as `to` says. The rows are split evenly into tiles (49 = 13 + 12 + 12 + 12), and each tile asks
// for its part of what comes next, so that what comes from memory arrives at an even pace. Of several tiles all take a run of
// the depth before the next one: its part of the panel then stays in L1 from tile to tile. The runs are the same ones for any
// number of rows.
template <class S, int64_t kWidth = kChunk, class To = SumsOf<SumOf<S>>>
inline void product(int64_t rows, int64_t chunks, Operand<const S, kWidth> a, const S* panel, To to, Ahead<S> ahead) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<S, BFloat16>)
    return amx_product<AmxBFloat16>(rows, AmxOperand{bytes(a.at), a.chunk * int64_t{sizeof(S)}, chunks}, panel, to.at,
                                    to.stride, to.accumulate);
#endif
  constexpr int64_t kSteps = kWidth / kStep<S>;
  const int64_t tiles = divide_up(rows, kTileRows), lower = rows / tiles, higher = rows - tiles * lower;
  const int64_t runs = std::is_same_v<S, BFloat16> ? 1 : divide_up(chunks * kWidth, to.run), blocks = tiles > 1 ? runs : 1;
  const int64_t stride = divide_up(ahead.pace * static_cast<int64_t>(sizeof(S)), kSides * tiles);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t chunk = chunks * block / blocks, count = chunks * (block + 1) / blocks - chunk;
    if (block == 1) to = to.again();
    for (int64_t side = 0; side < kSides; ++side)
      for (int64_t i = 0, first = 0, height; i < tiles; ++i, first += height) {
        height = lower + (i < higher);
        const int64_t column = side * kTileColumns;
        const char* const next = bytes(ahead.panel) + ((kSides * i + side) * chunks + chunk) * kSteps * stride;
        tile_of<kTileRows>(
            height, count, runs / blocks, a.rows_from(first).chunks_from(chunk),
            panel + chunk * kWidth * kPanel + column * kStep<S>, to.from(first, column),
            Next<S>{next, stride, ahead.operand + (kSides * first + side * height) * kWidth / kSides + chunk * a.chunk});
      }
  }
}

// c[rows, 32], of nine such products added: of the rows that begin `moved[tap]` rows further, with the columns of a panel
// [depth / 32][tap][32][32].
template <class S>
inline void product_of_taps(int64_t rows, int64_t chunks, Operand<const S> a, const int64_t (&moved)[kTaps], const S* panel,
                            Sums to, const S* ahead) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<S, BFloat16>) {
    AmxTaps taps{bytes(a.at), a.chunk * int64_t{sizeof(S)}, chunks, {}};
    for (int64_t tap = 0; tap < kTaps; ++tap) taps.moved[tap] = moved[tap] * kChunk * int64_t{sizeof(S)};
    return amx_product<AmxBFloat16>(rows, taps, panel, to.at, to.stride, to.accumulate);
  }
#endif
  constexpr int64_t kSize = kChunk * kPanel;
  for (int64_t chunk = 0; chunk < chunks; ++chunk, a.at += a.chunk)
    for (int64_t tap = 0; tap < kTaps; ++tap, panel += kSize, ahead += kSize, to = to.again())
      product<S>(rows, 1, a.rows_from(moved[tap]), panel, to, {ahead, a.at});
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
