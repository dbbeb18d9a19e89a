// The fuse path of a stage without a fused map: linears of a tile of pixels of two maps, w_l and w_g, the norm of their results
// side by side, and what a third linear makes of that.
//
// A result takes the place of its map in shared memory. Each warp multiplies all pixels with its share of the columns.
#pragma once
#include <launch.cuh>

#include "block_ops.h"
#include "whole_blocks.cuh"

namespace hifuse::cuda {

struct FusePathParams {
  const unsigned char* maps[2];
  const uint4* weights;  // of both linears, then of both parts of a row, all of kChannels x kChannels
  const float* biases;   // of both linears, and of the result: kChannels each
  unsigned char* out;
  int pixels, channels;
  float eps;
};

template <class T>
struct FusePathKernel {
  static constexpr const char* kName = "fuse_path";
  static constexpr int kThreads = 128, kBlocks = 4, kWarps = kThreads / 32, kChannels = kNarrow, kParts = 2;
  static constexpr int kPixels = 64, kChunks = kChannels / 8, kColumns = kChunks / kWarps;      // of a warp: eight columns each
  static constexpr int kMatrix = kChunks * (kChannels / 32) * 32, kLanes = kThreads / kPixels;  // of a row
  using Params = FusePathParams;
  using Sums = float[kPixels / 16][kColumns][4];
  struct Shared {
    ApartRows<T, kPixels, kParts * kChannels> rows;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const int first = blockIdx.x * kPixels;
    each_chunk([&](int row, int chunk, int part) {
      // Zeros stand for pixels and channels that are not there.
      const bool kept = first + row < p.pixels && chunk * 8 < p.channels;
      const unsigned char* const map = p.maps[part];
      cp_async_16(&shared.rows.at(row, part * kChunks + chunk), kept ? map + byte(p, first + row, chunk) : map, kept);
    });
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // both maps are there
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
      Sums sums = {};
      multiply(sums, shared, part, p.weights + part * kMatrix);
      __syncthreads();  // nobody reads this map any more
      add_bias(sums, p, part);
      put(sums, shared, part);
    }
    __syncthreads();  // all rows are there

    normalise(p, shared);
    __syncthreads();  // all rows are normalised
    Sums sums = {};
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) multiply(sums, shared, part, p.weights + (kParts + part) * kMatrix);
    add_bias(sums, p, kParts);
#pragma unroll
    for (int m = 0; m < kPixels / 16; ++m)
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = gelu<T>(sums[m][n][i]);
    __syncthreads();  // nobody reads rows any more
    put(sums, shared, 0);
    __syncthreads();  // the results are there
    each_chunk([&](int row, int chunk, int part) {
      if (part == 0 && first + row < p.pixels && chunk * 8 < p.channels)
        *reinterpret_cast<uint4*>(p.out + byte(p, first + row, chunk)) = shared.rows.at(row, chunk);
    });
  }

 private:
  static __device__ __forceinline__ int64_t byte(const Params& p, int pixel, int chunk) {
    return int64_t(pixel) * (p.channels * 2) + chunk * 16;
  }
  // Calls f(row, chunk, part) for each chunk of each part of a row.
  template <class F>
  static __device__ __forceinline__ void each_chunk(const F& f) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kPixels * kParts * kChunks; i += kThreads)
      f(i / kChunks % kPixels, i % kChunks, i / (kPixels * kChunks));
  }

  static __device__ __forceinline__ void multiply(Sums& sums, const Shared& shared, int part, const uint4* weight) {
    multiply_packed<T, kChannels / 32>(
        sums, [&](int m, int step) { return shared.rows.left(16 * m, part * (kChannels / 16) + step); },
        weight + threadIdx.x / 32 * kColumns * (kChannels / 32) * 32);
  }
  // The first of the two columns of this thread in its eight.
  static __device__ __forceinline__ int column(int n) {
    return 8 * (int(threadIdx.x) / 32 * kColumns + n) + threadIdx.x % 4 * 2;
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

  // Each row by the lanes that have it. Channels that no map has stay zero.
  static __device__ __forceinline__ void normalise(const Params& p, Shared& shared) {
    const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const auto each_of_row = [&](const auto& f) {
#pragma unroll 1
      for (int part = 0; part < kParts; ++part)
#pragma unroll 1
        for (int chunk = lane; chunk * 8 < p.channels; chunk += kLanes) f(shared.rows.at(row, part * kChunks + chunk));
    };
    const float one = unpack<T>(shared.rows.template word<uint32_t>(row, 0)).x;
    float sum = 0.0f, squares = 0.0f;
    each_of_row([&](const uint4& chunk) {
      each_pair(chunk, [&](float2 x, int) {
        x.x -= one, x.y -= one;
        sum += x.x + x.y;
        squares = fmaf(x.x, x.x, fmaf(x.y, x.y, squares));
      });
    });
    __syncwarp();  // `one` has been read by all lanes of the row
    const Centred centred(over_lanes(sum), over_lanes(squares), 1.0f / static_cast<float>(kParts * p.channels), p.eps);
    each_of_row([&](uint4& chunk) {
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
