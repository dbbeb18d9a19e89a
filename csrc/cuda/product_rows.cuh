// The sides of a product on their way into tiles: rows of maps, normalised there, and rows of the weight.
//
// A row of the left side is made of segments: the channels of some pixel of a map. A step of the product takes kDepth columns
// of one segment. A thread copies one chunk of 16 bytes of some rows, the same ones in all steps, so what it must know of a row
// for the norm stays in its registers.
#pragma once
#include <cstdint>
#include <ptx.cuh>

#include "product_arguments.h"
#include "tiles.cuh"

namespace hifuse::cuda {

struct Segment {
  const unsigned char* data;
  int64_t image_stride, row_stride, column_stride;  // bytes
  int dy, dx;                                       // of its pixel from that of the row
  int channels;
  int first;  // the column where it begins
};

inline constexpr int kMostSegments = 9;

struct ProductParams {
  Segment segments[kMostSegments];
  int count;         // of segments
  bool interleaved;  // steps take kDepth channels of all segments, then the next ones; else all channels of one segment
  bool aligned;      // 16 bytes of a side can be copied at a time
  int rows, depth, columns;
  int steps, steps_of_part, parts;
  int tiles, blocks;            // of results, and of threads: one a tile, or one for each part of it
  float* sums;                  // of the parts, or null: a block computes all of them
  unsigned* counters;           // of the parts of each tile that are there
  int grid_height, grid_width;  // of what an image has rows of
  int scale;                    // pixels of the map from one to the next
  bool pool;                    // four rows are the pixels of a patch
  int height, width;            // of the map
  Norm norm;
  float eps;
  const float *norm_weight, *norm_bias;
  const unsigned char *weight, *bias;
  Activation activation;
  const unsigned char* residual;
  unsigned char *before, *out;
  bool out_aligned;  // and 16 bytes of a result's row
  int column_tiles;
};

// Products of one launch; those that are not there have no blocks.
struct ProductsParams {
  ProductParams product[kMostProducts];
};

// ---- Chunks of 16 bytes ---------------------------------------------------------------------------------------------------

template <class T>
inline constexpr int kOfChunk = 16 / int(sizeof(T));

// Element e of 16 bytes in memory, as it lies there.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

// From device memory that need not be aligned: `count` elements, zeros in the other places.
template <class T>
__device__ __forceinline__ void copy_elements(uint4& to, const unsigned char* from, int count) {
#pragma unroll 1
  for (int e = 0; e < kOfChunk<T>; ++e)
    reinterpret_cast<Bits<T>*>(&to)[e] = e < count ? reinterpret_cast<const Bits<T>*>(from)[e] : Bits<T>(0);
}

template <class T>
__device__ __forceinline__ float number(Bits<T> bits) {
  if constexpr (kIsFloat32<T>)
    return __uint_as_float(bits);
  else
    return unpack<T>(bits).x;
}

template <class T>
__device__ __forceinline__ void unpack_chunk(float (&x)[kOfChunk<T>], const uint4& chunk) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kIsFloat32<T>) {
      x[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack<T>(words[i]);
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    }
  }
}

template <class T>
__device__ __forceinline__ uint4 pack_chunk(const float (&x)[kOfChunk<T>]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kIsFloat32<T>)
      words[i] = __float_as_uint(x[i]);
    else
      words[i] = pack<T>(x[2 * i], x[2 * i + 1]);
  }
  return {words[0], words[1], words[2], words[3]};
}

// ---- The mean and the spread of rows ----------------------------------------------------------------------------------------

// Of some numbers: how many, their mean, and the sum of the squares of their distances from it. Parts are put together by
// Chan's formulas. Equal numbers have their own value as their mean, to the last bit, and the sum zero: a norm leaves nothing
// of them.
struct Moments {
  float mean = 0.0f, squares = 0.0f;

  // `share` is that of the other numbers in all, `weight` their count times that of the own ones over that of all.
  __device__ __forceinline__ void add(float other_mean, float other_squares, float share, float weight) {
    const float delta = other_mean - mean;
    mean += delta * share;
    squares += other_squares + delta * (delta * weight);  // zero where one of the two is empty, whatever delta is
  }
};

// ---- The left side ----------------------------------------------------------------------------------------------------------

// The tile of kRows rows from `first` on. This thread copies chunk `chunk` of rows row(0), row(1)...
template <class T, class Tile, int kRows, int kThreads>
struct LeftRows {
  static constexpr int kEach = kRows * Tile::kChunks / kThreads, kDepth = Tile::kWidth, kRowsOfTile = kRows;

  int segment, channel;            // of the next step
  int image[kEach], place[kEach];  // the row's pixel: 65536 y + x
  int64_t from[kEach];             // of the row's chunk in the segment, bytes
  unsigned on_map;                 // a bit for each row

  static __device__ __forceinline__ int chunk() { return threadIdx.x % Tile::kChunks; }
  static __device__ __forceinline__ int row(int j) { return threadIdx.x / Tile::kChunks + j * (kThreads / Tile::kChunks); }

  __device__ __forceinline__ LeftRows(const ProductParams& p, int first) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int r = first + row(j), i = p.pool ? r >> 2 : r, line = i / p.grid_width;
      image[j] = r < p.rows ? line / p.grid_height : -1;
      const int y = line % p.grid_height * p.scale + (p.pool ? r & 1 : 0);
      const int x = (i - line * p.grid_width) * p.scale + (p.pool ? r >> 1 & 1 : 0);
      place[j] = y << 16 | x;
    }
  }

  // Goes to a step.
  __device__ __forceinline__ void seek(const ProductParams& p, int step) {
    segment = 0;
    if (p.interleaved) {
      segment = step % p.count;
      channel = step / p.count * kDepth;
    } else {
      for (int steps; step >= (steps = (p.segments[segment].channels + kDepth - 1) / kDepth); ++segment) step -= steps;
      channel = step * kDepth;
    }
    enter(p, segment);
  }

  // Finds the rows' places in a segment.
  __device__ __forceinline__ void enter(const ProductParams& p, int index) {
    const Segment& s = p.segments[index];
    on_map = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int v = (place[j] >> 16) + s.dy, u = (place[j] & 65535) + s.dx;
      const bool there = image[j] >= 0 && unsigned(v) < unsigned(p.height) && unsigned(u) < unsigned(p.width);
      from[j] = image[j] * s.image_stride + v * s.row_stride + u * s.column_stride + chunk() * 16;
      on_map |= unsigned(there) << j;
    }
  }
  __device__ __forceinline__ bool is_on_map(int j) const { return on_map >> j & 1; }

  // Starts the copies of the next step, and goes on to the one after that.
  __device__ __forceinline__ void start(Tile& tile, const ProductParams& p) {
    const Segment& s = p.segments[segment];
    const int left = s.channels - channel - chunk() * kOfChunk<T>;
    const unsigned char* const data = s.data + int64_t(channel) * int(sizeof(T));
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const bool kept = is_on_map(j) && left > 0;
      if (p.aligned)
        cp_async_16(&tile.at(row(j), chunk()), kept ? data + from[j] : s.data, kept);
      else
        copy_elements<T>(tile.at(row(j), chunk()), data + from[j], kept ? left : 0);
    }
  }
  __device__ __forceinline__ void advance(const ProductParams& p) {
    const int before = segment;
    if (p.interleaved) {
      if (++segment == p.count) segment = 0, channel += kDepth;
    } else {
      channel += kDepth;
      if (channel >= p.segments[segment].channels) channel = 0, ++segment;
    }
    if (segment != before && segment < p.count) enter(p, segment);
  }
};

// The norm of the rows that a thread copies.
template <class T, class Rows>
struct RowNorm {
  static constexpr int kEach = Rows::kEach, kNumbers = kOfChunk<T>, kMost = 4;  // norms of a row: of the pixels of a patch
  // Of each row its mean, and what a distance from that is multiplied by.
  using Statistics = float2[kMost][Rows::kRowsOfTile];

  int segment, channel;  // of the step that is to be normalised

  // Reads all rows, ahead of the copies. What a thread writes its own warp alone reads.
  static __device__ __forceinline__ void find(Statistics& statistics, const ProductParams& p, Rows rows) {
    if (p.norm == Norm::row) find(statistics[0], p, rows, 0, p.count);
    if (p.norm == Norm::pixel)
      for (int i = 0; i < p.count; ++i) find(statistics[i], p, rows, i, i + 1);
    __syncwarp();
  }

  // Normalises what this thread has copied for a step, when it is there, and goes on to the next one.
  template <class Tile>
  __device__ __forceinline__ void apply(Tile& tile, const Statistics& statistics, const ProductParams& p) {
    const Segment& s = p.segments[segment];
    const int at = channel + Rows::chunk() * kNumbers, some = s.channels - at;
    if (some > 0) {
      float scale[kNumbers], shift[kNumbers];
#pragma unroll
      for (int e = 0; e < kNumbers; ++e) {
        const bool given = p.norm_weight != nullptr && e < some;
        scale[e] = given ? p.norm_weight[s.first + at + e] : 1.0f;
        shift[e] = given ? p.norm_bias[s.first + at + e] : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        uint4& chunk = tile.at(Rows::row(j), Rows::chunk());
        const float2 moments = statistics[p.norm == Norm::pixel ? segment : 0][Rows::row(j)];
        float x[kNumbers];
        unpack_chunk<T>(x, chunk);
#pragma unroll
        for (int e = 0; e < kNumbers; ++e) x[e] = (x[e] - moments.x) * moments.y * scale[e] + shift[e];
        chunk = pack_chunk<T>(x);
        for (int e = some; e < kNumbers; ++e) reinterpret_cast<Bits<T>*>(&chunk)[e] = 0;
      }
    }
    channel += Rows::kDepth;
    if (channel >= s.channels) channel = 0, ++segment;
  }

 private:
  // Of the segments from `begin` to `end`.
  static __device__ __forceinline__ void find(float2* statistics, const ProductParams& p, Rows& rows, int begin, int end) {
    Moments moments[kEach];
    float count = 0.0f;
    for (int index = begin; index < end; ++index) {
      const Segment& s = p.segments[index];
      rows.enter(p, index);
#pragma unroll 1
      for (int at = Rows::chunk() * kNumbers; at < s.channels; at += Rows::kDepth) {
        const unsigned char* const data = s.data + int64_t(at - Rows::chunk() * kNumbers) * int(sizeof(T));
        const int some = min(s.channels - at, kNumbers);
        if (p.aligned && some == kNumbers) {
          const float share = kNumbers / (count + kNumbers);
          uint4 chunk[kEach];
#pragma unroll
          for (int j = 0; j < kEach; ++j)
            chunk[j] = rows.is_on_map(j) ? *reinterpret_cast<const uint4*>(data + rows.from[j]) : uint4{0, 0, 0, 0};
#pragma unroll
          for (int j = 0; j < kEach; ++j) add(moments[j], chunk[j], share, share * count);
          count += kNumbers;
        } else {
#pragma unroll 1
          for (int e = 0; e < some; ++e, count += 1.0f) {
            const float share = 1.0f / (count + 1.0f);
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
              const auto* from = reinterpret_cast<const Bits<T>*>(data + rows.from[j]) + e;
              moments[j].add(rows.is_on_map(j) ? number<T>(*from) : 0.0f, 0.0f, share, share * count);
            }
          }
        }
      }
    }
    // The lanes of a row, in the same order for all of them.
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
      const bool upper = threadIdx.x & bit;
      const float other = __shfl_xor_sync(0xffffffffu, count, bit), all = fmaxf(count + other, 1.0f);
      const float share = (upper ? count : other) / all, weight = share * (upper ? other : count);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const Moments mine = moments[j],
                      theirs = {__shfl_xor_sync(0xffffffffu, mine.mean, bit), __shfl_xor_sync(0xffffffffu, mine.squares, bit)};
        moments[j] = upper ? theirs : mine;
        moments[j].add((upper ? mine : theirs).mean, (upper ? mine : theirs).squares, share, weight);
      }
      count += other;
    }
    if (Rows::chunk() == 0)
#pragma unroll
      for (int j = 0; j < kEach; ++j)
        statistics[Rows::row(j)] = {moments[j].mean, 1.0f / sqrtf(moments[j].squares / count + p.eps)};
  }

  static __device__ __forceinline__ void add(Moments& moments, const uint4& chunk, float share, float weight) {
    float x[kNumbers], sum[kNumbers], squares = 0.0f;
    unpack_chunk<T>(x, chunk);
#pragma unroll
    for (int e = 0; e < kNumbers; ++e) sum[e] = x[e];
    // Pair by pair: the sum of equal numbers is exact.
#pragma unroll
    for (int n = kNumbers / 2; n > 0; n /= 2)
#pragma unroll
      for (int e = 0; e < n; ++e) sum[e] += sum[e + n];
    const float mean = sum[0] * (1.0f / kNumbers);
#pragma unroll
    for (int e = 0; e < kNumbers; ++e) squares += (x[e] - mean) * (x[e] - mean);
    moments.add(mean, squares, share, weight);
  }
};

// ---- The right side ---------------------------------------------------------------------------------------------------------

// Starts the copies of a step of the weight: rows `first`.. of it, columns of the segment from `channel` on.
template <class T, int kRows, int kThreads, class Tile>
__device__ __forceinline__ void start_weight(Tile& tile, const ProductParams& p, int first, const Segment& s, int channel) {
  constexpr int kEach = kRows * Tile::kChunks / kThreads;
  const int c = threadIdx.x % Tile::kChunks, left = s.channels - channel - c * kOfChunk<T>;
  const int64_t column = s.first + channel + c * kOfChunk<T>;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int row = threadIdx.x / Tile::kChunks + j * (kThreads / Tile::kChunks), n = first + row;
    const bool kept = n < p.columns && left > 0;
    const unsigned char* const from = p.weight + (int64_t(n) * p.depth + column) * int(sizeof(T));
    if (p.aligned)
      cp_async_16(&tile.at(row, c), kept ? from : p.weight, kept);
    else
      copy_elements<T>(tile.at(row, c), from, kept ? left : 0);
  }
}

}  // namespace hifuse::cuda
