// A block of the local branch: depthwise 3x3 convolution, norm, product, GELU and residual of a tile of pixels.
//
// The tile and the pixels around it come to shared memory. Eight or sixteen lanes convolve and normalise four pixels side by
// side, and each of them has some of the channels. Then each warp multiplies all pixels with its share of the columns.
#pragma once
#include <launch.cuh>

#include "block_ops.h"
#include "whole_blocks.cuh"

namespace hifuse::cuda {

struct LocalBlockParams {
  const unsigned char* x;
  const float *taps, *filter_bias;
  const uint4* weight;
  const float* bias;
  unsigned char* out;
  int height, width, channels;
  int rows, columns;  // of tiles of an image
  float eps;
};

template <class T, int kChannels>
struct LocalBlockKernel {
  static constexpr const char* kName = "local_block";
  static constexpr int kThreads = kChannels * 4 / 3, kBlocks = kChannels == kNarrow ? 4 : 2, kWarps = kThreads / 32;
  // 56 x 56 pixels are whole tiles of 8 x 8, and 28 x 28 lose less in tiles of 4 x 16.
  static constexpr int kHeight = kChannels == kNarrow ? 8 : 4, kPixels = 64, kWidth = kPixels / kHeight, kAround = kWidth + 2;
  static constexpr int kChunks = kChannels / 8, kRun = 4, kLanes = kThreads * kRun / kPixels;  // of a run
  static constexpr int kQuads = kChannels / 4 / kLanes;                                        // of a lane: four channels each
  static constexpr int kColumns = kChannels / 8 / kWarps;                                      // of a warp: eight columns each
  using Params = LocalBlockParams;
  struct Shared {
    ApartRows<T, (kHeight + 2) * kAround, kChannels> x;  // at last the results, in place of their pixels
    ApartRows<T, kPixels, kChannels> normed;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Corner from(p, blockIdx.x);
    each_chunk<kAround>(p, [&](int column, int chunk) {
      const int u = from.x + column - 1;
      const bool inside = unsigned(u) < unsigned(p.width);
#pragma unroll
      for (int row = 0; row < kHeight + 2; ++row) {
        const int v = from.y + row - 1;
        const bool kept = inside && unsigned(v) < unsigned(p.height);
        cp_async_16(&shared.x.at(row * kAround + column, chunk), kept ? p.x + from.byte(p, v, u, chunk) : p.x, kept);
      }
    });
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the tile is there

    convolve(p, shared);
    __syncthreads();  // all pixels are normalised, and nobody reads the neighbours of a pixel any more

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sums[kPixels / 16][kColumns][4] = {};
    multiply_packed<T, kChannels / 32>(
        sums, [&](int m, int step) { return shared.normed.left(16 * m, step); },
        p.weight + warp * kColumns * (kChannels / 32) * 32);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int column = 8 * (warp * kColumns + n) + lane % 4 * 2;
      if (column >= p.channels) continue;
      const float2 bias = *reinterpret_cast<const float2*>(p.bias + column);
#pragma unroll
      for (int m = 0; m < kPixels / 16; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int pixel = 16 * m + 8 * i + lane / 4;
          add_gelu<T>(shared.x.template word<uint32_t>(corner(pixel) + kAround + 1, column), sums[m][n][2 * i] + bias.x,
                      sums[m][n][2 * i + 1] + bias.y);
        }
    }
    __syncthreads();  // the results are there

    // Computed again: in registers it would be one number too many.
    const Corner to(p, computed_here(blockIdx.x));
    each_chunk<kWidth>(p, [&](int column, int chunk) {
      if (to.x + column >= p.width) return;
#pragma unroll
      for (int row = 0; row < kHeight; ++row)
        if (to.y + row < p.height)
          *reinterpret_cast<uint4*>(p.out + to.byte(p, to.y + row, to.x + column, chunk)) =
              shared.x.at((row + 1) * kAround + column + 1, chunk);
    });
  }

 private:
  // The first pixel of a block's tile, and where the image lies.
  struct Corner {
    int64_t first;
    int y, x;

    __device__ __forceinline__ Corner(const Params& p, int block) {
      const int tiles = p.rows * p.columns, image = block / tiles, tile = block - image * tiles;
      first = int64_t(image) * p.height * p.width;
      y = tile / p.columns * kHeight, x = tile % p.columns * kWidth;
    }
    // Of a chunk of a pixel, from the map's first one.
    __device__ __forceinline__ int64_t byte(const Params& p, int v, int u, int chunk) const {
      return (first + int64_t(v) * p.width + u) * (p.channels * 2) + chunk * 16;
    }
  };

  // Calls f(column, chunk) for each chunk of kCount pixels side by side.
  template <int kCount, class F>
  static __device__ __forceinline__ void each_chunk(const Params& p, const F& f) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kCount * kChunks; i += kThreads)
      if (i % kChunks * 8 < p.channels) f(i / kChunks, i % kChunks);
  }
  // The neighbour of a pixel above it, to the left, in shared.x.
  static __device__ __forceinline__ int corner(int pixel) { return pixel / kWidth * kAround + pixel % kWidth; }

  static __device__ __forceinline__ void convolve(const Params& p, Shared& shared) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / kLanes * kRun, above = corner(first);
    const float inverse = 1.0f / static_cast<float>(p.channels);
    float c[kQuads][kRun][4];
    // Channels beyond the map's are zeros, and no sum has them.
    const auto channel = [&](int j) { return 4 * (lane % kLanes + j * kLanes); };
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (channel(j) >= p.channels) continue;
      const float4 bias = *reinterpret_cast<const float4*>(p.filter_bias + channel(j));
#pragma unroll
      for (int k = 0; k < kRun; ++k) c[j][k][0] = bias.x, c[j][k][1] = bias.y, c[j][k][2] = bias.z, c[j][k][3] = bias.w;
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) {
        float v[kRun + 2][4];
#pragma unroll
        for (int n = 0; n < kRun + 2; ++n) {
          const uint2 word = shared.x.template word<uint2>(above + dy * kAround + n, channel(j));
          const float2 low = unpack<T>(word.x), high = unpack<T>(word.y);
          v[n][0] = low.x, v[n][1] = low.y, v[n][2] = high.x, v[n][3] = high.y;
        }
#pragma unroll
        for (int dx = 0; dx < 3; ++dx) {
          const float4 tap = *reinterpret_cast<const float4*>(p.taps + (3 * dy + dx) * p.channels + channel(j));
#pragma unroll
          for (int k = 0; k < kRun; ++k) {
            c[j][k][0] = fmaf(v[k + dx][0], tap.x, c[j][k][0]);
            c[j][k][1] = fmaf(v[k + dx][1], tap.y, c[j][k][1]);
            c[j][k][2] = fmaf(v[k + dx][2], tap.z, c[j][k][2]);
            c[j][k][3] = fmaf(v[k + dx][3], tap.w, c[j][k][3]);
          }
        }
      }
    }

#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      const float one = __shfl_sync(0xffffffffu, c[0][k][0], lane / kLanes * kLanes);
      float sum = 0.0f, squares = 0.0f;
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        if (channel(j) >= p.channels) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = c[j][k][i];
          x -= one;
          sum += x;
          squares = fmaf(x, x, squares);
        }
      }
      const Centred centred(over_lanes(sum), over_lanes(squares), inverse, p.eps);
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        const float (&x)[4] = c[j][k];
        uint2 word{0, 0};
        if (channel(j) < p.channels) word = {pack<T>(centred(x[0]), centred(x[1])), pack<T>(centred(x[2]), centred(x[3]))};
        shared.normed.template word<uint2>(first + k, channel(j)) = word;
      }
    }
  }
  static __device__ __forceinline__ float over_lanes(float x) {
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
  }
};

}  // namespace hifuse::cuda
