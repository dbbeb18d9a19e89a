// Products of 8-bit integers, whose sums are exact in int32: c[rows, 32] = a[rows, depth] x panel[depth, 32].
//
// Weights lie in panels of 32 columns, as those of panel.h, with four neighbours of the depth together: [depth / 4][32][4]
// int8. Behind a panel stand 32 int32, -128 times the sum of each column: what its sums begin with where 128 is added to the
// other operand. The layout is the same for every instruction set. Which values the other operand has in memory is not.
//
// vpmaddubsw, which multiplies bytes on AVX2, saturates its sums of two. So bytes are widened to int16 there, for vpmaddwd,
// which is exact and makes twice as many products as a float32 instruction.
#pragma once

#include "cpu/avx_vnni.h"
#include "cpu/panel.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

constexpr int32_t kMostInt8 = 127;  // quantised values are symmetric, from -127
constexpr int64_t kQuad = 4;        // neighbours of the depth

// Bytes of a packed panel of weights.
inline int64_t int8_panel_size(int64_t depth) {
  return round_up(depth, kChunk) * kPanel + kPanel * static_cast<int64_t>(sizeof(int32_t));
}

template <class Wide>
inline Wide load_as(const void* from) {
  Wide v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// Of an arithmetic: `Element` is what the other operand is in memory, kAdded to each of them, and kWidth a chunk's width there.
//
// The other operand in int16: a vector of sums has two lanes for a column, of half a quad each.
struct PairsOfInt16 {
  using Element = int16_t;
  static constexpr int32_t kAdded = 0;
  static constexpr int64_t kWidth = kChunk;
  static constexpr int64_t kColumns = kLanes<int32_t> / 2;  // of a vector of weights
  using Wide = Vec<int16_t>;

  static Wide weights(const int8_t* from) {
#if defined(__AVX512BW__)
    return (Wide)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return (Wide)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    typedef int8_t Bytes __attribute__((vector_size(kVectorBytes / 2)));
    return __builtin_convertvector(load_as<Bytes>(from), Wide);
#endif
  }
  static Wide quad(const Element* from) { return (Wide)splat(load_as<int64_t>(from)); }

  static Vec<int32_t> plain(Wide a, Wide b) { return plain_product(a, b); }
  static void add(Vec<int32_t>& sum, Wide a, Wide b) { add_product(sum, a, b); }

  // The columns of two vectors of sums, in `to`.
  static void store_sums(Vec<int32_t> left, Vec<int32_t> right, int32_t* to) {
    const Vec<int32_t> even = lane_numbers<float>() * 2;
    store(to, __builtin_shuffle(left, right, even) + __builtin_shuffle(left, right, even + 1));
  }
};

// The other operand in uint8, 128 being added to it, as vpdpbusd wants it: sums of four products, which do not saturate.
struct QuadsOfUint8 {
  using Element = uint8_t;
  static constexpr int32_t kAdded = 128;
  static constexpr int64_t kWidth = kChunk;
  static constexpr int64_t kColumns = kLanes<int32_t>;
  using Wide = Vec<int32_t>;

  static Wide weights(const int8_t* from) { return load_as<Wide>(from); }
  static Wide quad(const Element* from) { return splat(load_as<int32_t>(from)); }

  static Vec<int32_t> plain(Wide a, Wide b) {
    typedef uint32_t Unsigned __attribute__((vector_size(kVectorBytes)));
    Vec<int32_t> sum = {};
    for (int byte = 0; byte < 4; ++byte)
      sum += (Vec<int32_t>)((Unsigned)a << (24 - 8 * byte) >> 24) * ((Vec<int32_t>)((Unsigned)b << (24 - 8 * byte)) >> 24);
    return sum;
  }
  static void add(Vec<int32_t>& sum, Wide a, Wide b) {
#if defined(__AVX512VNNI__)
    sum = (Vec<int32_t>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
    sum += plain(a, b);
#endif
  }
  static void store_sums(Vec<int32_t> left, Vec<int32_t> right, int32_t* to) {
    store(to, left);
    store(to + kLanes<int32_t>, right);
  }
};

#if defined(__AMX_INT8__)
// The other operand as it is, in the tiles of amx.h, whose rows are two chunks.
struct TilesOfInt8 {
  using Element = int8_t;
  static constexpr int32_t kAdded = 0;
  static constexpr int64_t kWidth = 2 * kChunk;
};
using Int8 = TilesOfInt8;
#elif defined(__AVX512VNNI__)
using Int8 = QuadsOfUint8;
#else
using Int8 = PairsOfInt16;
#endif
using Quantised = Int8::Element;

template <class Arithmetic>
using Int8Operand = Operand<typename Arithmetic::Element, Arithmetic::kWidth>;
template <class Arithmetic>
using ConstInt8Operand = Operand<const typename Arithmetic::Element, Arithmetic::kWidth>;

// An operand of so many rows, in memory of `scratch`.
template <class Arithmetic>
inline Int8Operand<Arithmetic> int8_operand(int64_t rows, int64_t depth, Scratch& scratch) {
  const int64_t chunk = rows * Arithmetic::kWidth;
  return {scratch.take_dirty<typename Arithmetic::Element>(divide_up(depth, Arithmetic::kWidth) * chunk), chunk};
}

// Where element `k` of the first row lies; `k` is a multiple of 32.
template <class E, int64_t kWidth>
inline E* element(Operand<E, kWidth> of, int64_t k) {
  return of.at + k / kWidth * of.chunk + k % kWidth;
}

#if defined(HIFUSE_AVX_VNNI)
// vpdpbusd of 256 bits. An instruction in text: all around it stays code of AVX2, for every CPU of that set. It was compiled
// and never run: no CPU that has it was at hand. Its test runs where one is.
struct QuadsByAvxVnni : QuadsOfUint8 {
  static void add(Vec<int32_t>& sum, Wide a, Wide b) { asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b)); }
};
#endif

// f(Arithmetic{}) of the one that is the fastest on this CPU.
template <class Function>
inline void by_fastest_int8(const Function& f) {
#if defined(HIFUSE_AVX_VNNI)
  if (has_avx_vnni()) return f(QuadsByAvxVnni{});
#endif
  f(Int8{});
}

// The other operand of a product, for a step of 32 of the depth: where its first row lies.
template <class Arithmetic>
struct Int8Chunks {
  ConstInt8Operand<Arithmetic> a;

  const typename Arithmetic::Element* step(int64_t i) const { return a.at + i * a.chunk; }
  Int8Chunks rows_from(int64_t row) const { return {a.rows_from(row)}; }
  Int8Chunks steps_from(int64_t first) const { return {a.chunks_from(first)}; }
};

// The same, of the nine taps of two chunks, one tap after the other: each has its rows from `moved` on.
template <class Arithmetic>
struct Int8Taps {
  ConstInt8Operand<Arithmetic> a;
  const int64_t* moved;

  const typename Arithmetic::Element* step(int64_t i) const { return a.at + i % 2 * a.chunk + moved[i / 2] * kChunk; }
  Int8Taps rows_from(int64_t row) const { return {a.rows_from(row), moved}; }
  Int8Taps steps_from(int64_t first) const { return {a, moved + first / 2}; }
};

// kRows rows times two vectors of weights. Sums begin with `begin`, or with zero; with `accumulate` c is added to them. Each
// step asks for `lines` lines from `next` on.
template <class Arithmetic, int kRows, class A>
[[gnu::noinline]] void int8_tile(int64_t steps, A a, const int8_t* b, const int8_t* begin, int32_t* c, bool accumulate,
                                 const char* next, int64_t lines) {
  constexpr int64_t kVector = Arithmetic::kColumns * kQuad;
  Vec<int32_t> sums[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vec<int32_t>{};
  for (int64_t step = 0; step < steps; ++step) {
    const auto* const at = a.step(step);
    for (int64_t line = 0; line < lines; ++line, next += 64) __builtin_prefetch(next, 0, 2);
#pragma GCC unroll 4
    for (int64_t k = 0; k < kChunk; k += kQuad, b += kPanel * kQuad) {
      const auto left = Arithmetic::weights(b), right = Arithmetic::weights(b + kVector);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const auto quad = Arithmetic::quad(at + r * kChunk + k);
        Arithmetic::add(sums[r][0], quad, left);
        Arithmetic::add(sums[r][1], quad, right);
      }
    }
  }
  constexpr int64_t kColumns = 2 * Arithmetic::kColumns, kLane = kLanes<int32_t>;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    int32_t* const to = c + r * kPanel;
    Vec<int32_t> before[2] = {};
    for (int64_t i = 0; i < kColumns / kLane; ++i) {
      if (accumulate) before[i] += load(to + i * kLane);
      if (begin) before[i] += load_as<Vec<int32_t>>(begin + i * kLane * static_cast<int64_t>(sizeof(int32_t)));
    }
    Arithmetic::store_sums(sums[r][0], sums[r][1], to);
    for (int64_t i = 0; i < kColumns / kLane; ++i) store(to + i * kLane, load(to + i * kLane) + before[i]);
  }
}

// `rows` <= kRows: the row count becomes a constant.
template <class Arithmetic, int kRows, class... Rest>
inline void int8_tile_of(int64_t rows, const Rest&... rest) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return int8_tile_of<Arithmetic, kRows - 1>(rows, rest...);
  }
  int8_tile<Arithmetic, kRows>(rest...);
}

// What sums begin with, behind a panel: null where that is zero.
template <class Arithmetic>
inline const int8_t* beginning(const int8_t* panel, int64_t depth) {
  return Arithmetic::kAdded ? panel + depth * kPanel : nullptr;
}

#if defined(__AMX_INT8__)
inline void int8_product_by_tiles(int64_t rows, int64_t chunks, ConstInt8Operand<TilesOfInt8> a, const int8_t* panel,
                                  int32_t* c, bool accumulate) {
  constexpr int64_t kStep = TilesOfInt8::kWidth * kPanel;
  const int64_t steps = chunks / 2;
  if (steps > 0) amx_product<AmxInt8>(rows, AmxOperand{bytes(a.at), a.chunk, steps}, panel, c, kPanel, accumulate);
  if (chunks % 2 == 0) return;
  // Half a step is left, whose other half is multiplied by zeros.
  alignas(64) int8_t last[kStep] = {};
  __builtin_memcpy(last, panel + steps * kStep, kStep / 2);
  amx_product<AmxInt8>(rows, AmxOperand{bytes(a.chunks_from(steps).at), a.chunk, 1}, last, c, kPanel, accumulate || steps > 0);
}
#endif

constexpr int64_t kTapsChunk = 2 * kChunk;  // of int8_product_of_taps
constexpr int64_t kRunSteps = kTaps * 2;    // whose part of a panel is 18 KB

// All tiles take a run of the depth before the next one: its part of the panel stays in L1. Meanwhile they ask for the panel
// `ahead`, which is as large. Sums begin with `begin`, where that is given, beside what `accumulate` says.
template <class Arithmetic, class A>
inline void int8_product_by_vectors(int64_t rows, int64_t steps, A a, const int8_t* panel, const int8_t* begin, int32_t* c,
                                    bool accumulate, const int8_t* ahead) {
  constexpr int64_t kColumns = 2 * Arithmetic::kColumns, kStepBytes = kChunk * kPanel;
  const int64_t tiles = divide_up(rows, kTileRows), runs = divide_up(steps, kRunSteps);
  const int64_t lines = divide_up(kStepBytes / 64, tiles * (kPanel / kColumns));
  const char* next = reinterpret_cast<const char*>(ahead);
  const char* const last = next + steps * kStepBytes - 64;
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t first = steps * run / runs, count = steps * (run + 1) / runs - first;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = rows * i / tiles, height = rows * (i + 1) / tiles - row;
      for (int64_t column = 0; column < kPanel; column += kColumns) {
        const int8_t* const sums = begin && run == 0 ? begin + column * static_cast<int64_t>(sizeof(int32_t)) : nullptr;
        int8_tile_of<Arithmetic, kTileRows>(height, count, a.rows_from(row).steps_from(first),
                                            panel + first * kStepBytes + column * kQuad, sums, c + row * kPanel + column,
                                            accumulate || run > 0, next, next < last ? lines : 0);
        next += count * lines * 64;
      }
    }
  }
}

// c[rows][32] = a x panel, or where `accumulate` more than it was by that.
template <class Arithmetic = Int8>
inline void int8_product(int64_t rows, int64_t chunks, ConstInt8Operand<Arithmetic> a, const int8_t* panel, int32_t* c,
                         bool accumulate, const int8_t* ahead) {
#if defined(__AMX_INT8__)
  if constexpr (std::is_same_v<Arithmetic, TilesOfInt8>) return int8_product_by_tiles(rows, chunks, a, panel, c, accumulate);
#endif
  if constexpr (Arithmetic::kWidth == kChunk)
    int8_product_by_vectors<Arithmetic>(rows, chunks, Int8Chunks<Arithmetic>{a}, panel,
                                        beginning<Arithmetic>(panel, chunks * kChunk), c, accumulate, ahead);
}

// c[rows][32], of nine such products added: of the rows that begin `moved[tap]` rows further. The depth is in chunks of 64, and
// the panel [depth / 64][tap][64 / 4][32][4].
template <class Arithmetic = Int8>
inline void int8_product_of_taps(int64_t rows, int64_t chunks, ConstInt8Operand<Arithmetic> a, const int64_t (&moved)[kTaps],
                                 const int8_t* panel, int32_t* c) {
#if defined(__AMX_INT8__)
  if constexpr (std::is_same_v<Arithmetic, TilesOfInt8>) {
    AmxTaps taps{bytes(a.at), a.chunk, chunks, {}};
    for (int64_t tap = 0; tap < kTaps; ++tap) taps.moved[tap] = moved[tap] * kAmxBytes;
    return amx_product<AmxInt8>(rows, taps, panel, c, kPanel, false);
  }
#endif
  if constexpr (Arithmetic::kWidth == kChunk) {
    constexpr int64_t kSize = kTaps * kTapsChunk * kPanel;
    const int8_t* begin = beginning<Arithmetic>(panel, chunks * kTaps * kTapsChunk);
    for (int64_t i = 0; i < chunks; ++i, panel += kSize, begin = nullptr)
      int8_product_by_vectors<Arithmetic>(rows, kRunSteps, Int8Taps<Arithmetic>{a.chunks_from(2 * i), moved}, panel, begin, c,
                                          i > 0, panel + kSize);
  }
}

// ---- Quantised values ------------------------------------------------------------------------------------------------------

// x / scale, rounded to the nearest integer, ties to even, and kept within -127 to 127; -127 of a NaN.
inline Vec<int32_t> quantise(Vec<float> x, float inverse) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: added, it leaves an integer in the last bits
  const Vec<float> most = splat(static_cast<float>(kMostInt8));
  const Vec<float> inside = smaller<float>(larger<float>(x * inverse, -most), most);
  return (Vec<int32_t>)(inside + kRound) - 0x4B400000;
}

template <class Arithmetic = Int8>
inline void store_quantised(typename Arithmetic::Element* to, Vec<int32_t> q) {
  typedef typename Arithmetic::Element Narrow
      __attribute__((vector_size(kVectorBytes / 4 * sizeof(typename Arithmetic::Element))));
  const Narrow narrow = __builtin_convertvector(q + Arithmetic::kAdded, Narrow);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}

// One row of the operand; `row` is padded with zeros to whole chunks. Returns 0, or NaN where a value is not finite: added to
// all that comes of this row, it is not lost.
template <class Arithmetic = Int8>
inline float quantise_row(const float* row, int64_t depth, float inverse, Int8Operand<Arithmetic> to) {
  Vec<float> lost = {};
  for (int64_t k = 0; k < depth; k += kChunk)
    for (int64_t i = 0; i < kChunk; i += kLanes<float>) {
      const Vec<float> x = load(row + k + i);
      lost += x * 0.0f;
      store_quantised<Arithmetic>(element(to, k) + i, quantise(x, inverse));
    }
  return sum<float>(lost);
}

// Sums of products as they are without quantisation, but for their bias.
inline Vec<float> dequantise(const int32_t* sums, const float* scale) {
  return __builtin_convertvector(load(sums), Vec<float>) * load(scale);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
