// How the kernels of window attention walk over windows, and how tokens come into tiles and go back to maps.
//
// A block of threads owns a head, a share of the windows, and maybe one block of the tokens of a window. A window whose tokens
// lie on the map as a whole, side by side, is read and written at offsets from its first token. Only the others, at the edges
// of the map and at the seam of the roll, ask where each token is.
#pragma once
#include <cstdint>
#include <ptx.cuh>

#include "arguments.h"
#include "geometry.h"
#include "tiles.cuh"

namespace hifuse::cuda {

// ---- What kernels know of a call ----------------------------------------------------------------------------------------

using Grid = WindowGridOf<int>;

// What is here takes no register of a thread.
struct Sizes {
  Grid grid;
  int windows;  // of all images
  int tokens;   // of a window
  int heads;
  int head_dim;
  int channels;
  int head_chunks;  // 16 bytes each, of a token of a head
  int row_bytes;    // of the channels of a token: from q to k, from k to v
  int bias_center;  // the entry of the position bias between a token and itself
  int reciprocal;   // 2^16 / the window's side, rounded up
  float scale;
};

template <class T>
Sizes sizes_of(const WindowAttentionShape& s) {
  const int window = static_cast<int>(s.window_size), size = int(sizeof(T));
  const Grid grid(static_cast<int>(s.height), static_cast<int>(s.width), window, static_cast<int>(s.shift_size));
  const int heads = static_cast<int>(s.num_heads), head_dim = static_cast<int>(s.head_dim);
  return {.grid = grid,
          .windows = static_cast<int>(s.batch) * grid.windows(),
          .tokens = grid.tokens(),
          .heads = heads,
          .head_dim = head_dim,
          .channels = heads * head_dim,
          .head_chunks = head_dim * size / 16,
          .row_bytes = heads * head_dim * size,
          .bias_center = 2 * window * (window - 1),
          .reciprocal = (65536 + window - 1) / window,
          .scale = static_cast<float>(s.scale)};
}

// The side of a window: kWindow, or where that is 0 what the call says; and the row of a token, exact for those of 16 x 16.
template <int kWindow>
__device__ __forceinline__ int side_of(const Sizes& s) {
  return kWindow ? kWindow : s.grid.rows.window;
}
template <int kWindow>
__device__ __forceinline__ int tokens_of(const Sizes& s) {
  return kWindow ? kWindow * kWindow : s.tokens;
}
template <int kWindow>
__device__ __forceinline__ int row_of(const Sizes& s, int token) {
  return kWindow ? token / (kWindow ? kWindow : 1) : token * s.reciprocal >> 16;
}

// ---- Windows and tokens -------------------------------------------------------------------------------------------------

struct Window {
  int image, row, column;

  static __device__ __forceinline__ Window at(const Grid& grid, int index) {
    const int row = index / grid.columns.windows;
    return {row / grid.rows.windows, row % grid.rows.windows, index % grid.columns.windows};
  }
  // The window as many further as `step` is from the first one.
  __device__ __forceinline__ void advance(const Grid& grid, const Window& step) {
    column += step.column;
    row += step.row;
    image += step.image;
    if (column >= grid.columns.windows) column -= grid.columns.windows, ++row;
    if (row >= grid.rows.windows) row -= grid.rows.windows, ++image;
  }
  __device__ __forceinline__ bool whole(const Grid& grid) const { return grid.whole(row, column); }
  // Which axes split the window into regions: 2 for rows, 1 for columns.
  __device__ __forceinline__ int seams(const Grid& grid) const {
    return 2 * int(grid.rows.mixed(row)) + int(grid.columns.mixed(column));
  }
};

// Where a token of a window lies on the map, as the roll took it from there; beyond the map where it is padded.
struct Place {
  int y, x;
  __device__ __forceinline__ bool on_map(const Grid& grid) const { return y < grid.rows.length && x < grid.columns.length; }
};
template <int kWindow>
__device__ __forceinline__ Place place_of(const Sizes& s, const Window& w, int token) {
  const int side = side_of<kWindow>(s), row = row_of<kWindow>(s, token);
  return {s.grid.rows.source(w.row * side + row), s.grid.columns.source(w.column * side + token - row * side)};
}

// A map by the bytes, `Byte` const or not: strides too.
template <class Byte>
struct ByteMap {
  Byte* data;
  uint64_t image_stride, row_stride, column_stride;

  __device__ __forceinline__ uint64_t offset(int image, int y, int x) const {
    return unsigned(image) * image_stride + unsigned(y) * row_stride + unsigned(x) * column_stride;
  }
  __device__ __forceinline__ Byte* at(int image, int y, int x) const { return data + offset(image, y, x); }
  // Of the first token of a window that is whole.
  template <int kWindow>
  __device__ __forceinline__ uint64_t first_offset(const Sizes& s, const Window& w) const {
    const int side = side_of<kWindow>(s), shift = s.grid.rows.shift;
    return offset(w.image, w.row * side + shift, w.column * side + shift);
  }
  // Where a token of a window lies from the first one.
  __device__ __forceinline__ uint32_t within(int y, int x) const { return uint32_t(y * row_stride + x * column_stride); }
};
using Read = ByteMap<const unsigned char>;
using Written = ByteMap<unsigned char>;

inline Read bytes_of(const Map<const void*>& m, uint64_t size) {
  return {static_cast<const unsigned char*>(m.data), m.batch_stride * size, m.row_stride * size, m.column_stride * size};
}
inline Written bytes_of(const Map<void*>& m, uint64_t size) {
  return {static_cast<unsigned char*>(m.data), m.batch_stride * size, m.row_stride * size, m.column_stride * size};
}

// ---- Into tiles ---------------------------------------------------------------------------------------------------------

// Rows of a block of tokens for windows of any size: all chunks of the tile are written, with zeros for tokens beyond the
// window and for chunks from `chunks` on, which are no channels of the head. `from` is the byte of a map's row where the tile
// begins; `padding` is the row of a padded token, or null for zeros.
template <int kThreads, class Tile>
__device__ __forceinline__ void load_tokens(Tile& tile, const Read& map, const unsigned char* padding, const Sizes& s,
                                            const Window& w, int first, int chunks, int from) {
  const int tokens = tokens_of<0>(s);
  for (int i = threadIdx.x; i < Tile::kAll; i += kThreads) {
    const int token = first + i / Tile::kChunks, c = i % Tile::kChunks;
    const unsigned char* row = nullptr;
    if (token < tokens && c < chunks) {
      const Place at = place_of<0>(s, w, token);
      row = at.on_map(s.grid) ? map.at(w.image, at.y, at.x) : padding;
    }
    cp_async_16(&tile.at(token - first, c), row ? row + from + c * 16 : map.data, row != nullptr);
  }
}

// The same for windows of a known size that are one block of tokens: kParts tiles, each of them kStages times in memory, whose
// channels lie `stride` bytes apart in the map. What a thread copies does not depend on the window, but for the first token.
// Rows beyond the window are left alone.
template <class Tile, int kWindow, int kThreads, int kParts, int kStages>
struct WindowLoads {
  static constexpr int kOfToken = kParts * Tile::kChunks, kAll = kWindow * kWindow * kOfToken;
  static constexpr int kEach = (kAll + kThreads - 1) / kThreads;

  int to[kEach];         // bytes from the first tile
  uint32_t from[kEach];  // bytes from the window's first token

  __device__ __forceinline__ WindowLoads(const Read& map, int from_byte, int stride) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int i = threadIdx.x + j * kThreads, token = i / kOfToken;
      to[j] = chunk_of(i) * 16;
      from[j] = map.within(token / kWindow, token % kWindow) + from_byte + channel_of(i, stride);
    }
  }

  // Into the tiles of which `tile` is the first one. `whole` says whether the window is.
  __device__ __forceinline__ void start(Tile& tile, const Read& map, const unsigned char* padding, const Sizes& s,
                                        const Window& w, bool whole, int from_byte, int stride) const {
    unsigned char* const tiles = reinterpret_cast<unsigned char*>(tile.chunk);
    if (whole) {
      const unsigned char* first = map.data + map.first_offset<kWindow>(s, w);
#pragma unroll
      for (int j = 0; j < kEach; ++j)
        if (is_mine(j)) cp_async_16(tiles + to[j], first + from[j], true);
    } else {
      const int thread = computed_here(threadIdx.x);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if (!is_mine(j)) continue;
        const int i = thread + j * kThreads;
        const Place at = place_of<kWindow>(s, w, i / kOfToken);
        const unsigned char* row = at.on_map(s.grid) ? map.at(w.image, at.y, at.x) : padding;
        cp_async_16(tiles + to[j], row ? row + from_byte + channel_of(i, stride) : map.data, row != nullptr);
      }
    }
  }

 private:
  static __device__ __forceinline__ bool is_mine(int j) {
    return (j + 1) * kThreads <= kAll || threadIdx.x + j * kThreads < kAll;
  }
  static __device__ __forceinline__ int chunk_of(int i) {
    return i % kOfToken / Tile::kChunks * (kStages * Tile::kAll) + Tile::place(i / kOfToken, i % Tile::kChunks);
  }
  static __device__ __forceinline__ int channel_of(int i, int stride) {
    return i % kOfToken / Tile::kChunks * stride + i % Tile::kChunks * 16;
  }
};

// Zeros in rows kFirst.. of tiles that lie one after the other; copies leave these rows alone.
template <int kFirst, int kThreads, class Tile>
__device__ __forceinline__ void clear_rows(Tile* tiles, int count) {
  constexpr int kEach = Tile::kAll - kFirst * Tile::kChunks;
  for (int i = threadIdx.x; i < count * kEach; i += kThreads)
    tiles[i / kEach].chunk[kFirst * Tile::kChunks + i % kEach] = uint4{0, 0, 0, 0};
}

// ---- Out of tiles -------------------------------------------------------------------------------------------------------

// The 16 rows of a warp: accumulators go to the warp's own rows of a tile and from there to the map, 16 bytes a thread.
template <class Tile, int kWindow>
struct WarpRows {
  static constexpr int kEach = (16 * Tile::kChunks + 31) / 32;  // chunks of a thread

  int row;     // of the tile, the first one
  int first;   // the token that row 0 of the tile is
  int tokens;  // rows of the tile that are tokens

  __device__ __forceinline__ WarpRows(const Sizes& s, int row, int first)
      : row(row), first(first), tokens(tokens_of<kWindow>(s) - first) {}

  // Of accumulators times `factor`; rows beyond the window are left alone.
  template <int kOut>
  __device__ __forceinline__ void put(Tile& tile, const float (&out)[kOut][4], const float (&factor)[2]) const {
    const int lane = threadIdx.x % 32, r = row + lane / 4;
#pragma unroll
    for (int n = 0; n < kOut; ++n) {
      unsigned char* pair = tile.pair(r, 8 * n + lane % 4 * 2);
      if (r < tokens) Tile::write(pair, out[n][0] * factor[0], out[n][1] * factor[0]);
      if (r + 8 < tokens) Tile::write(pair + Tile::kEightRows, out[n][2] * factor[1], out[n][3] * factor[1]);
    }
  }

  // To the bytes of the map's rows from `to` on, but for padded tokens. A head has `chunks` chunks.
  __device__ __forceinline__ void store(const Sizes& s, const Tile& tile, const Written& map, const Window& w, int chunks,
                                        int to) const {
#pragma unroll 1
    for (int j = 0; j < kEach; ++j) {
      if (row_at(j) >= tokens || chunk_at(j) >= chunks) continue;
      const Place at = place_of<kWindow>(s, w, first + row_at(j));
      if (at.on_map(s.grid))
        *reinterpret_cast<uint4*>(map.at(w.image, at.y, at.x) + to + chunk_at(j) * 16) = tile.at(row_at(j), chunk_at(j));
    }
  }

 protected:
  __device__ __forceinline__ int row_at(int j) const { return row + (threadIdx.x % 32 + 32 * j) / Tile::kChunks; }
  static __device__ __forceinline__ int chunk_at(int j) { return (threadIdx.x % 32 + 32 * j) % Tile::kChunks; }
};

// The same for windows of a known size that are one block of tokens.
template <class Tile, int kWindow>
struct WarpRowsOfWhole : WarpRows<Tile, kWindow> {
  using Base = WarpRows<Tile, kWindow>;
  using Base::kEach;

  // Where a thread's chunks go, for all tiles that have the same tokens.
  struct Targets {
    uint64_t chunk[kEach];  // bytes from the map's first token
    bool stored[kEach];
  };

  __device__ __forceinline__ WarpRowsOfWhole(const Sizes& s, int row) : Base(s, row, 0) {}

  __device__ __forceinline__ Targets targets(const Sizes& s, const Written& map, const Window& w, bool whole) const {
    Targets t;
    const int lane = computed_here(threadIdx.x % 32);
    const uint64_t first = map.first_offset<kWindow>(s, w);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int i = lane + 32 * j, token = this->row + i / Tile::kChunks;
      t.chunk[j] = first + map.within(token / kWindow, token % kWindow);
      t.stored[j] = token < this->tokens;
      if (!whole) {
        const Place at = place_of<kWindow>(s, w, token);
        t.chunk[j] = map.offset(w.image, at.y, at.x);
        t.stored[j] = t.stored[j] && at.on_map(s.grid);
      }
      t.chunk[j] += i % Tile::kChunks * 16;
    }
    return t;
  }

  __device__ __forceinline__ void store(const Tile& tile, const Written& map, const Targets& t, int to) const {
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (t.stored[j]) *reinterpret_cast<uint4*>(map.data + t.chunk[j] + to) = tile.at(this->row_at(j), this->chunk_at(j));
  }
};

}  // namespace hifuse::cuda
