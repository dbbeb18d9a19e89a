// The fuse path of a stage: three linears of a tile of pixels, w_l, w_g and from the second stage on w_f, the norm of their
// results side by side, and what a fourth linear makes of that.
//
// A result takes the place of its map in shared memory. Each warp multiplies all pixels with its share of the columns.
#pragma once
#include <launch.cuh>

#include "block_ops.h"
#include "whole_blocks.cuh"

namespace hifuse::cuda {

struct FusePathParams {
  const unsigned char *local_map, *global_map, *fused_map;
  const uint4 *weights, *up;  // of w_l and w_g, then of the parts of a row, all of kChannels x kChannels; that of w_f
  const float* biases;        // of w_l, w_g, w_f, and the result: kChannels each
  unsigned char *w_f, *out;
  int pixels, width;
  int channels, before;  // of the maps, and of the fused map
  float eps;
};

template <class T, int kChannels>
struct FusePathKernel {
  static constexpr const char* kName = "fuse_path";
  static constexpr int kThreads = kChannels * 4 / 3, kBlocks = kChannels == kNarrow ? 4 : 2, kWarps = kThreads / 32;
  static constexpr int kPixels = 64, kChunks = kChannels / 8, kColumns = kChunks / kWarps;      // of a warp: eight columns each
  static constexpr int kBefore = (kChannels / 2 + 31) / 32 * 32;                                // channels of the fused map
  static constexpr int kMatrix = kChunks * (kChannels / 32) * 32, kLanes = kThreads / kPixels;  // of a row
  enum Part { kLocal, kGlobal, kFused };
  using Params = FusePathParams;
  using Sums = float[kPixels / 16][kColumns][4];
  struct Shared {
    ApartRows<T, kPixels, 3 * kChannels> rows;
    ApartRows<T, kPixels, kBefore> patches;  // of the fused map: four of its pixels to one of the result
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const int first = blockIdx.x * kPixels;
    load(p, shared, p.local_map, first, kLocal);
    load(p, shared, p.global_map, first, kGlobal);
    cp_async_commit();
    if (p.fused_map != nullptr) load_patches(p, shared, first, 0);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();  // both maps are there
#pragma unroll 1
    for (int part = kLocal; part <= kGlobal; ++part) {
      Sums sums = {};
      multiply<kChannels>(sums, shared.rows, part, p.weights + part * kMatrix);
      __syncthreads();  // nobody reads this map any more
      add_bias(sums, p, part);
      put(sums, shared, part);
    }
    if (p.fused_map != nullptr) pool_patches(p, shared, first);
    __syncthreads();  // all rows are there

    normalise(p, shared, first);
    __syncthreads();  // all rows are normalised
    Sums sums = {};
#pragma unroll 1
    for (int part = 0; part < parts(p); ++part) multiply<kChannels>(sums, shared.rows, part, p.weights + (2 + part) * kMatrix);
    add_bias(sums, p, 3);
    each(sums, [](float x) { return gelu<T>(x); });
    __syncthreads();  // nobody reads rows any more
    put(sums, shared, kLocal);
    __syncthreads();  // the results are there

    // Computed again: in registers it would be one number too many.
    const int to = computed_here(blockIdx.x) * kPixels;
    each_chunk<kPixels, kChunks>([&](int row, int chunk) {
      if (to + row < p.pixels && chunk * 8 < p.channels)
        *reinterpret_cast<uint4*>(p.out + byte(p, to + row, chunk)) = shared.rows.at(row, chunk);
    });
  }

 private:
  static __device__ __forceinline__ int parts(const Params& p) { return p.fused_map != nullptr ? 3 : 2; }
  static __device__ __forceinline__ int64_t byte(const Params& p, int pixel, int chunk) {
    return int64_t(pixel) * (p.channels * 2) + chunk * 16;
  }
  // Calls f(row, chunk) for each chunk of a tile.
  template <int kRows, int kOfRow, class F>
  static __device__ __forceinline__ void each_chunk(const F& f) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kOfRow; i += kThreads) f(i / kOfRow, i % kOfRow);
  }

  // Starts the copies of a map into its part of the rows; zeros stand for pixels and channels that are not there.
  static __device__ __forceinline__ void load(const Params& p, Shared& shared, const unsigned char* map, int first, int part) {
    each_chunk<kPixels, kChunks>([&](int row, int chunk) {
      const bool kept = first + row < p.pixels && chunk * 8 < p.channels;
      cp_async_16(&shared.rows.at(row, part * kChunks + chunk), kept ? map + byte(p, first + row, chunk) : map, kept);
    });
  }
  // Turn `turn` of four: the patches of 16 pixels, in the order (0, 0), (1, 0), (0, 1), (1, 1).
  static __device__ __forceinline__ void load_patches(const Params& p, Shared& shared, int first, int turn) {
    each_chunk<kPixels, kBefore / 8>([&](int row, int chunk) {
      const int pixel = first + (kPixels * turn + row) / 4, line = pixel / p.width, column = pixel - line * p.width;
      const bool kept = pixel < p.pixels && chunk * 8 < p.before;
      const int64_t from = (int64_t(2 * line + row % 2) * p.width + column) * 2 + row / 2 % 2;
      cp_async_16(&shared.patches.at(row, chunk), kept ? p.fused_map + from * (p.before * 2) + chunk * 16 : p.fused_map, kept);
    });
  }

  template <int kDepth, class Rows>
  static __device__ __forceinline__ void multiply(Sums& sums, const Rows& rows, int part, const uint4* weight) {
    multiply_packed<T, kDepth / 32>(
        sums, [&](int m, int step) { return rows.left(16 * m, part * (kDepth / 16) + step); },
        weight + threadIdx.x / 32 * kColumns * (kDepth / 32) * 32);
  }
  // The first of the two columns of this thread in its eight.
  static __device__ __forceinline__ int column(int n) {
    return 8 * (int(threadIdx.x) / 32 * kColumns + n) + threadIdx.x % 4 * 2;
  }
  template <class F>
  static __device__ __forceinline__ void each(Sums& sums, const F& f) {
#pragma unroll
    for (int m = 0; m < kPixels / 16; ++m)
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = f(sums[m][n][i]);
  }
  static __device__ __forceinline__ void add_bias(Sums& sums, const Params& p, int of) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const float2 bias = *reinterpret_cast<const float2*>(p.biases + of * kChannels + column(n));
#pragma unroll
      for (int m = 0; m < kPixels / 16; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) sums[m][n][2 * i] += bias.x, sums[m][n][2 * i + 1] += bias.y;
    }
  }
  static __device__ __forceinline__ void put(const Sums& sums, Shared& shared, int part) {
    const int row = threadIdx.x % 32 / 4;
#pragma unroll
    for (int m = 0; m < kPixels / 16; ++m)
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          shared.rows.template word<uint32_t>(16 * m + 8 * i + row, part * kChannels + column(n)) =
              pack<T>(sums[m][n][2 * i], sums[m][n][2 * i + 1]);
  }

  // w_f: the mean of the four results of each patch, which neighbouring lanes have.
  static __device__ __forceinline__ void pool_patches(const Params& p, Shared& shared, int first) {
    const int row = threadIdx.x % 32 / 4;
#pragma unroll 1
    for (int turn = 0; turn < 4; ++turn) {
      cp_async_wait<0>();
      __syncthreads();  // the patches are there
      Sums sums = {};
      multiply<kBefore>(sums, shared.patches, 0, p.up);
      __syncthreads();  // nobody reads the patches any more
      if (turn < 3) load_patches(p, shared, first, turn + 1);
      cp_async_commit();
      add_bias(sums, p, kFused);
      each(sums, [](float x) {
        x = x < 0.0f ? 0.0f : x;  // of NaN NaN
        x += __shfl_xor_sync(0xffffffffu, x, 4);
        return (x + __shfl_xor_sync(0xffffffffu, x, 8)) * 0.25f;
      });
      if (row % 4) continue;
#pragma unroll
      for (int m = 0; m < kPixels / 16; ++m)
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            shared.rows.template word<uint32_t>(16 * turn + (16 * m + 8 * i + row) / 4, kFused * kChannels + column(n)) =
                pack<T>(sums[m][n][2 * i], sums[m][n][2 * i + 1]);
    }
  }

  // Each row by the lanes that have it; w_f goes to memory on the way. Channels that no map has stay zero.
  static __device__ __forceinline__ void normalise(const Params& p, Shared& shared, int first) {
    const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, count = parts(p);
    const auto each_of_row = [&](const auto& f) {
#pragma unroll 1
      for (int part = 0; part < count; ++part)
#pragma unroll 1
        for (int chunk = lane; chunk * 8 < p.channels; chunk += kLanes)
          f(shared.rows.at(row, part * kChunks + chunk), part, chunk);
    };
    const float one = unpack<T>(shared.rows.template word<uint32_t>(row, 0)).x;
    float sum = 0.0f, squares = 0.0f;
    each_of_row([&](const uint4& chunk, int, int) {
      each_pair(chunk, [&](float2 x, int) {
        x.x -= one, x.y -= one;
        sum += x.x + x.y;
        squares = fmaf(x.x, x.x, fmaf(x.y, x.y, squares));
      });
    });
    __syncwarp();  // `one` has been read by all lanes of the row
    const Centred centred(over_lanes(sum), over_lanes(squares), 1.0f / static_cast<float>(count * p.channels), p.eps);
    each_of_row([&](uint4& chunk, int part, int c) {
      if (part == kFused && first + row < p.pixels) *reinterpret_cast<uint4*>(p.w_f + byte(p, first + row, c)) = chunk;
      uint32_t words[4];
      each_pair(chunk, [&](float2 x, int i) { words[i] = pack<T>(centred(x.x - one), centred(x.y - one)); });
      chunk = uint4{words[0], words[1], words[2], words[3]};
    });
  }
  template <class F>
  static __device__ __forceinline__ void each_pair(const uint4& chunk, const F& f) {
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) f(unpack<T>(words[i]), i);
  }
  static __device__ __forceinline__ float over_lanes(float x) {
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
  }
};

}  // namespace hifuse::cuda
