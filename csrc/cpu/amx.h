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

#if defined(__AMX_TILE__)
namespace hifuse {
inline namespace HIFUSE_ISA {

constexpr int64_t kAmxRows = 16;
constexpr int64_t kAmxColumns = 32;  // of a panel
constexpr int64_t kAmxBytes = 64;  // of a row of a tile, and from row to row of an operand

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
struct AmxUint8 {  // of unsigned rows and signed columns
  using Sum = int32_t;
  template <int kSums, int kA, int kB>
  static void add() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
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

// What is asked for beside a block: `lines` lines of the panel that comes next with each chunk.
struct AmxNext {
  const char* panel;
  int64_t lines;
};

// `chunks` steps of 64 bytes of the depth: rows that lie `chunk` bytes apart from step to step, of a panel's columns.
template <class Product, bool kBoth>
inline void add_chunks(int64_t chunks, const char* rows, int64_t chunk, const char* panel, AmxNext next) {
  constexpr int64_t kPanelRow = 2 * kAmxBytes;
  for (int64_t i = 0; i < chunks; ++i, rows += chunk, panel += kAmxRows * kPanelRow) {
    tile_load<6>(panel, kPanelRow);
    tile_load<4>(rows, kAmxBytes);
    Product::template add<0, 4, 6>();
    tile_load<7>(panel + kAmxBytes, kPanelRow);
    Product::template add<1, 4, 7>();
    for (int64_t line = 0; line < next.lines; ++line, next.panel += 64) __builtin_prefetch(next.panel, 0, 2);
    if constexpr (kBoth) {
      tile_load<5>(rows + kAmxRows * kAmxBytes, kAmxBytes);
      Product::template add<2, 5, 6>();
      Product::template add<3, 5, 7>();
    }
  }
}

// A block of up to 32 rows. Its sums begin with those at `to`, or with zeros.
template <class Product, bool kBoth>
inline void amx_block(int64_t rows, int64_t chunks, const char* a, int64_t chunk, const char* panel,
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
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (kBoth) {
      tile_zero<2>();
      tile_zero<3>();
    }
  }
  add_chunks<Product, kBoth>(chunks, a, chunk, panel, next);
  store_sums<kBoth>(at, row_bytes);
  if (!whole)
    for (int64_t r = 0; r < rows; ++r) __builtin_memcpy(to + r * stride, spare + r * kAmxColumns, kAmxColumns * sizeof(Sum));
}

// c[rows, 32] (+)= a x panel, `chunks` steps of 64 bytes of the depth.
template <class Product>
[[gnu::noinline]] void amx_product(int64_t rows, int64_t chunks, const void* a, int64_t chunk_bytes, const void* panel,
                                   typename Product::Sum* to, int64_t stride, bool accumulate, const void* ahead) {
  constexpr int64_t kBlock = 2 * kAmxRows, kChunkLines = 2 * kAmxRows;
  const int64_t blocks = (rows + kBlock - 1) / kBlock, lines = (kChunkLines + blocks - 1) / blocks;
  const char* const first = static_cast<const char*>(a);
  for (int64_t i = 0; i < blocks; ++i, to += kBlock * stride) {
    const int64_t left = rows - i * kBlock;
    const AmxNext next{static_cast<const char*>(ahead) + i * chunks * lines * 64, lines};
    const char* const block = first + i * kBlock * kAmxBytes;
    if (left > kAmxRows)
      amx_block<Product, true>(left < kBlock ? left : kBlock, chunks, block, chunk_bytes, static_cast<const char*>(panel), to,
                               stride, accumulate, next);
    else
      amx_block<Product, false>(left, chunks, block, chunk_bytes, static_cast<const char*>(panel), to, stride, accumulate, next);
  }
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
#endif
