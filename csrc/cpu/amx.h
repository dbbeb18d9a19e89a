// Products by AMX: registers that are tiles of 16 rows of 64 bytes, and an instruction that multiplies two of them.
//
// Its operands are those of panel.h and int8.h as they lie: a chunk's rows are the rows of one tile; 16 columns of a chunk of
// a panel, whose pairs or quads of the depth lie together, are the other. A block of sums is 32 rows of 32 columns in four
// tiles, so that each loaded tile is used twice. Rows are not split evenly: all blocks but the last one have 32. The last one's
// tiles read up to 15 rows behind the operand, which is why Scratch has some bytes to spare, and their sums are dropped.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

#if defined(__AMX_TILE__)
constexpr bool kTiles = true;

constexpr int64_t kAmxRows = 16;
constexpr int64_t kAmxColumns = 32;  // of a panel
constexpr int64_t kAmxBytes = 64;    // of a row of a tile, and from row to row of an operand

// The thread's tiles can be used while one of these lives.
class AmxTiles {
 public:
  AmxTiles() {
    // All eight tiles have 16 rows of 64 bytes.
    struct alignas(64) Configuration {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Configuration kConfiguration;
    static_assert(sizeof kConfiguration == 64);
    _tile_loadconfig(&kConfiguration);
  }
  ~AmxTiles() { _tile_release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
};

// The threads of `parallel`, whose tasks may use tiles.
class WithTiles {
 public:
  explicit WithTiles(const Parallel& parallel) : parallel_(parallel) {}

  operator Parallel() const { return {parallel_.threads, const_cast<WithTiles*>(this), &run}; }

 private:
  struct Task {
    void* context;
    void (*body)(void*, int64_t);
  };
  static void run(void* lender, int64_t count, void* context, void (*body)(void*, int64_t)) {
    const Parallel& parallel = static_cast<const WithTiles*>(lender)->parallel_;
    Task task{context, body};
    parallel.run(parallel.lender, count, &task, [](void* each, int64_t i) {
      const AmxTiles tiles;
      const Task& of = *static_cast<const Task*>(each);
      of.body(of.context, i);
    });
  }

  const Parallel& parallel_;
};

// The instructions, for tiles by number. They are text, because a compiler's own take no template's argument; "memory" says
// that what they read has to be written before.
template <int kTile>
inline void tile_load(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_store(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// What multiplies: tile kSums += tile kA x tile kB.
struct AmxBFloat16 {
  using Sum = float;
  template <int kSums, int kA, int kB>
  static void add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
  }
};
struct AmxInt8 {
  using Sum = int32_t;
  template <int kSums, int kA, int kB>
  static void add() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
  }
};

// Tiles 0 to 3 hold a block's sums, [2][2], 4 and 5 the rows, 6 and 7 the columns.
template <bool kBoth, class Sum>
inline void load_sums(const Sum* from, int64_t row_bytes) {
  tile_load<0>(from, row_bytes);
  tile_load<1>(from + 16, row_bytes);
  if constexpr (kBoth) {
    const char* const lower = reinterpret_cast<const char*>(from) + kAmxRows * row_bytes;
    tile_load<2>(lower, row_bytes);
    tile_load<3>(lower + 64, row_bytes);
  }
}

template <bool kBoth>
inline void zero_sums() {
  tile_zero<0>();
  tile_zero<1>();
  if constexpr (kBoth) {
    tile_zero<2>();
    tile_zero<3>();
  }
}

template <bool kBoth, class Sum>
inline void store_sums(Sum* to, int64_t row_bytes) {
  tile_store<0>(to, row_bytes);
  tile_store<1>(to + 16, row_bytes);
  if constexpr (kBoth) {
    char* const lower = reinterpret_cast<char*>(to) + kAmxRows * row_bytes;
    tile_store<2>(lower, row_bytes);
    tile_store<3>(lower + 64, row_bytes);
  }
}

// A step of the depth is 64 bytes of it: a tile of rows, times two tiles of a panel. Steps make runs, whose parts of the panel
// and of the rows stay in L1. Where the rows of a step lie, and how many steps there are, an operand says.
//
// One step after the other, `stride` bytes apart.
struct AmxOperand {
  static constexpr int64_t kMostSteps = 16;  // of a run
  static constexpr int64_t kMostBlocks = 4;  // of a group

  const char* at;
  int64_t stride;
  int64_t count;

  int64_t runs() const { return (count + kMostSteps - 1) / kMostSteps; }
  int64_t first(int64_t run) const { return count * run / runs(); }
  const char* run(int64_t run, int64_t row) const { return at + first(run) * stride + row * kAmxBytes; }
  const char* step(const char* run, int64_t i) const { return run + i * stride; }
};

// A chunk with nine taps after the other: those of a tap are `moved` bytes further.
struct AmxTaps {
  static constexpr int64_t kMostBlocks = 8;

  const char* at;
  int64_t stride;  // from chunk to chunk
  int64_t count;   // of chunks
  int64_t moved[kTaps];

  int64_t runs() const { return count; }
  int64_t first(int64_t run) const { return run * kTaps; }
  const char* run(int64_t run, int64_t row) const { return at + run * stride + row * kAmxBytes; }
  const char* step(const char* run, int64_t i) const { return run + moved[i]; }
};

// What is asked for beside a block: `lines` lines with each step.
struct AmxNext {
  const char* at;
  int64_t lines;
};

template <class Product, bool kBoth, class Operand>
inline void add_steps(int64_t steps, const Operand& a, const char* run, const char* panel, AmxNext next) {
  constexpr int64_t kPanelRow = 2 * kAmxBytes;
  for (int64_t i = 0; i < steps; ++i, panel += kAmxRows * kPanelRow) {
    const char* const rows = a.step(run, i);
    tile_load<6>(panel, kPanelRow);
    tile_load<4>(rows, kAmxBytes);
    Product::template add<0, 4, 6>();
    tile_load<7>(panel + kAmxBytes, kPanelRow);
    Product::template add<1, 4, 7>();
    for (int64_t line = 0; line < next.lines; ++line, next.at += 64) __builtin_prefetch(next.at, 0, 2);
    if constexpr (kBoth) {
      tile_load<5>(rows + kAmxRows * kAmxBytes, kAmxBytes);
      Product::template add<2, 5, 6>();
      Product::template add<3, 5, 7>();
    }
  }
}

// A run of a block of up to 32 rows. Its sums begin with those at `to`, or with zeros.
template <class Product, bool kBoth, class Operand>
inline void add_run(int64_t rows, int64_t steps, const Operand& a, const char* run, const char* panel,
                    typename Product::Sum* to, int64_t stride, bool accumulate, AmxNext next) {
  using Sum = typename Product::Sum;
  constexpr int64_t kRows = kBoth ? 2 * kAmxRows : kAmxRows;
  alignas(64) Sum spare[kRows * kAmxColumns];
  const bool whole = rows == kRows;
  Sum* const at = whole ? to : spare;
  const int64_t row_bytes = (whole ? stride : kAmxColumns) * static_cast<int64_t>(sizeof(Sum));
  if (accumulate) {
    if (!whole)
      for (int64_t r = 0; r < rows; ++r) __builtin_memcpy(spare + r * kAmxColumns, to + r * stride, kAmxColumns * sizeof(Sum));
    load_sums<kBoth>(at, row_bytes);
  } else {
    zero_sums<kBoth>();
  }
  add_steps<Product, kBoth>(steps, a, run, panel, next);
  store_sums<kBoth>(at, row_bytes);
  if (!whole)
    for (int64_t r = 0; r < rows; ++r) __builtin_memcpy(to + r * stride, spare + r * kAmxColumns, kAmxColumns * sizeof(Sum));
}

// c[rows, 32] = a x panel, or with `accumulate` c += a x panel. A group of blocks, whose sums stay near, takes all runs before
// the next group begins. The first group asks for what comes kAmxAhead bytes later, be it of this panel or of the next ones.
constexpr int64_t kAmxAhead = 36 * 1024;

template <class Product, class Operand>
[[gnu::noinline]] void amx_product(int64_t rows, const Operand& a, const void* panel, typename Product::Sum* to, int64_t stride,
                                   bool accumulate) {
  constexpr int64_t kBlock = 2 * kAmxRows, kGroup = Operand::kMostBlocks * kBlock, kStepBytes = kBlock * kAmxBytes;
  const int64_t runs = a.runs(), blocks = ((rows < kGroup ? rows : kGroup) + kBlock - 1) / kBlock;
  const int64_t lines = (kStepBytes / 64 + blocks - 1) / blocks;
  for (int64_t group = 0; group < rows; group += kGroup)
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t first = a.first(run), steps = a.first(run + 1) - first;
      const char* const part = static_cast<const char*>(panel) + first * kStepBytes;
      AmxNext next{part + kAmxAhead, group ? 0 : lines};
      for (int64_t row = group; row < rows && row < group + kGroup; row += kBlock, next.at += steps * lines * 64) {
        const int64_t left = rows - row;
        typename Product::Sum* const at = to + row * stride;
        if (left > kAmxRows)
          add_run<Product, true>(left < kBlock ? left : kBlock, steps, a, a.run(run, row), part, at, stride,
                                 accumulate || run > 0, next);
        else
          add_run<Product, false>(left, steps, a, a.run(run, row), part, at, stride, accumulate || run > 0, next);
      }
    }
}

#else
constexpr bool kTiles = false;
#endif

}  // namespace HIFUSE_ISA
}  // namespace hifuse
