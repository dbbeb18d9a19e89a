// A block of the global branch: norm, q, k and v, attention in shifted windows, the output's product, GELU and residual.
//
// Two warps have a window, 32 tokens each, and a block two windows. A warp keeps its tokens, normalised, in registers as the
// left operand of q, k and v, which it computes head by head. Only k and v go to shared memory. What is attended to takes the
// place of the tokens there, and at last the tokens come again for the residual.
#pragma once
#include <launch.cuh>

#include "block_ops.h"
#include "whole_blocks.cuh"
#include "window_attention_scores.cuh"

namespace hifuse::cuda {

struct GlobalBlockParams {
  Sizes sizes;
  const unsigned char* x;
  const uint4* qkv;
  const float *qkv_bias, *padding;
  const float4* table;
  const uint4* weight;
  const float* bias;
  unsigned char* out;
  float eps;
};

template <class T, int kChannels>
struct GlobalBlockKernel {
  static constexpr const char* kName = "global_block";
  static constexpr int kThreads = 128, kBlocks = kChannels == kNarrow ? 3 : 2, kWindows = 2;
  static constexpr int kRows = 64, kTiles = 2, kHead = 32, kKeyTiles = 7;  // of a window; of a warp, 16 rows each; of keys
  static constexpr int kChunks = kChannels / 8, kSteps = kChannels / 32, kAhead = kHead / 8;
  static constexpr int kPart = kAhead * kSteps * 32;  // 16 bytes of the weight of 32 columns
  using Params = GlobalBlockParams;
  using Head = Tile<T, kRows, kHead>;
  struct OfWindow {
    ApartRows<T, kRows, kChannels> rows;
    Head k, v;
  };
  struct Shared {
    OfWindow window[kWindows];
  };
  using Operands = Left<T>[kTiles][2 * kSteps];

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Sizes& s = p.sizes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = warp % 2 * kTiles * 16;
    const int index = blockIdx.x * kWindows + warp / 2;
    const Window w = Window::at(s.grid, min(index, s.windows - 1));
    OfWindow& mine = shared.window[warp / 2];

    // The pixel that row `first + lane` of the window is; -1 where it is padded, beyond the window, or in none.
    int pixel = -1;
    if (first + lane < s.tokens && index < s.windows) {
      const Place at = place_of<0>(s, w, first + lane);
      if (at.on_map(s.grid)) pixel = (w.image * s.grid.rows.length + at.y) * s.grid.columns.length + at.x;
    }
    load(p, mine, first, pixel);
    Operands a;
    cp_async_wait<0>();
    __syncwarp();  // the warp's rows are there
    normalise(a, p, mine, first);
    bool padded[kTiles][2];
    uint32_t parted[kTiles] = {};  // bits of accumulators whose query and key a seam parts
    const int seams = w.seams(s.grid);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) padded[m][i] = __shfl_sync(0xffffffffu, pixel, 16 * m + 8 * i + lane / 4) < 0;
      if (seams) parted[m] = parted_by(s, seams, first + 16 * m);
    }

    const float scale = s.scale * kLog2e;
#pragma unroll 1
    for (int head = 0; head < s.heads; ++head) {
      Left<T> q[kTiles][2];
      {
        float sums[kTiles][kAhead][4];
        part(sums, a, p, 3 * head, padded);
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int step = 0; step < 2; ++step) q[m][step] = left_of_sums<T>(sums[m], step);
      }
#pragma unroll 1
      for (int which = 1; which < 3; ++which) {
        float sums[kTiles][kAhead][4];
        part(sums, a, p, 3 * head + which, padded);
        put(which == 1 ? mine.k : mine.v, sums, first);
      }
      __syncthreads();  // k and v are there

#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        float x[kKeyTiles][4] = {}, top[2] = {kLowest, kLowest}, total[2] = {0.0f, 0.0f}, out[kAhead][4] = {};
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
          for (int n = 0; n < kKeyTiles; n += 2) {
            Right<T> b[2];
            right_of_rows<T>(b, mine.k, 8 * n, 2 * step);
            mma_m16n8k16<T>(x[n], q[m][step].r, b[0].r[0], b[0].r[1]);
            if (n + 1 < kKeyTiles) mma_m16n8k16<T>(x[n + 1 < kKeyTiles ? n + 1 : n], q[m][step].r, b[1].r[0], b[1].r[1]);
          }
        const float4* const table = p.table + ((head * (kRows / 16) + first / 16 + m) * kKeyTiles) * 32 + lane;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
          const float4 bias = table[n * 32];
          x[n][0] = fmaf(x[n][0], scale, bias.x), x[n][1] = fmaf(x[n][1], scale, bias.y);
          x[n][2] = fmaf(x[n][2], scale, bias.z), x[n][3] = fmaf(x[n][3], scale, bias.w);
        }
        if (seams)
#pragma unroll
          for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (parted[m] >> (4 * n + i) & 1) x[n][i] += kMask;
        raise(top, x);
        exponentials(x, top, total);
        column_products<T, kRows / 16>(out, [&](int i) { return left_of_sums<T>(x, i); }, mine.v);
        const float factor[2] = {reciprocal_fast(row_sum(total[0])), reciprocal_fast(row_sum(total[1]))};
#pragma unroll
        for (int n = 0; n < kAhead; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            mine.rows.template word<uint32_t>(first + 16 * m + 8 * i + lane / 4, kHead * head + 8 * n + lane % 4 * 2) =
                pack<T>(out[n][2 * i] * factor[i], out[n][2 * i + 1] * factor[i]);
      }
      __syncthreads();  // nobody reads k and v any more
    }

#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int step = 0; step < 2 * kSteps; ++step) a[m][step] = mine.rows.left(first + 16 * m, step);
    __syncwarp();  // they have been read
    load(p, mine, first, pixel);
#pragma unroll 1
    for (int column = 0; column < s.channels; column += kHead) {
      const int at = column + lane % 4 * 2;
      float sums[kTiles][kAhead][4];
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const bool kept = at + 8 * n < s.channels;
        const float2 bias = kept ? *reinterpret_cast<const float2*>(p.bias + at + 8 * n) : float2{0.0f, 0.0f};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) sums[m][n][0] = sums[m][n][2] = bias.x, sums[m][n][1] = sums[m][n][3] = bias.y;
      }
      multiply_packed<T, kSteps>(
          sums, [&](int m, int step) -> const Left<T>& { return a[m][step]; }, p.weight + column / kHead * kPart);
      cp_async_wait<0>();
      __syncwarp();  // the tokens are there again
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        if (at + 8 * n >= s.channels) continue;
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            add_gelu<T>(mine.rows.template word<uint32_t>(first + 16 * m + 8 * i + lane / 4, at + 8 * n), sums[m][n][2 * i],
                        sums[m][n][2 * i + 1]);
      }
    }
    __syncwarp();  // the results are there
    each_chunk(p, pixel, [&](int row, int chunk, bool kept, int64_t byte) {
      if (kept) *reinterpret_cast<uint4*>(p.out + byte) = mine.rows.at(first + row, chunk);
    });
  }

 private:
  // Calls f(row, chunk, whether the row has a pixel, bytes of its chunk in the map) for each chunk of the warp's rows that the
  // map has: four of each of eight rows at a time. Of other chunks it is false.
  template <class F>
  static __device__ __forceinline__ void each_chunk(const Params& p, int pixel, const F& f) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int eight = 0; eight < kTiles * 16; eight += 8) {
      const int row = eight + lane / 4, at = __shfl_sync(0xffffffffu, pixel, row);
      const int64_t byte = int64_t(at) * (p.sizes.channels * 2) + lane % 4 * 16;
#pragma unroll
      for (int four = 0; four < kChunks; four += 4)
        f(row, four + lane % 4, at >= 0 && (four + lane % 4) * 8 < p.sizes.channels, byte + four * 16);
    }
  }

  // Starts copies of the warp's tokens, with zeros where there are none.
  static __device__ __forceinline__ void load(const Params& p, OfWindow& mine, int first, int pixel) {
    each_chunk(p, pixel, [&](int row, int chunk, bool kept, int64_t byte) {
      cp_async_16(&mine.rows.at(first + row, chunk), kept ? p.x + byte : p.x, kept);
    });
    cp_async_commit();
  }

  // The norm of the warp's rows, as left operands.
  static __device__ __forceinline__ void normalise(Operands& a, const Params& p, const OfWindow& mine, int first) {
    const float inverse = 1.0f / static_cast<float>(p.sizes.channels);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int step = 0; step < 2 * kSteps; ++step) a[m][step] = mine.rows.left(first + 16 * m, step);
      float one[2], sum[2] = {0.0f, 0.0f}, squares[2] = {0.0f, 0.0f};
#pragma unroll
      for (int i = 0; i < 2; ++i) one[i] = unpack<T>(__shfl_sync(0xffffffffu, a[m][0].r[i], threadIdx.x % 32 / 4 * 4)).x;
      each_pair(a[m], p, [&](uint32_t& pair, int i) {
        const float2 x = unpack<T>(pair);
        const float left = x.x - one[i], right = x.y - one[i];
        sum[i] += left + right;
        squares[i] = fmaf(right, right, fmaf(left, left, squares[i]));
      });
      const Centred centred[2] = {{row_sum(sum[0]), row_sum(squares[0]), inverse, p.eps},
                                  {row_sum(sum[1]), row_sum(squares[1]), inverse, p.eps}};
      each_pair(a[m], p, [&](uint32_t& pair, int i) {
        const float2 x = unpack<T>(pair);
        pair = pack<T>(centred[i](x.x - one[i]), centred[i](x.y - one[i]));
      });
    }
  }
  // Calls f(pair, whether it is of the lower row) for each pair of numbers that are channels of the map; the others stay zero.
  template <class F>
  static __device__ __forceinline__ void each_pair(Left<T> (&a)[2 * kSteps], const Params& p, const F& f) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk)
      if (8 * chunk < p.sizes.channels) {
        f(a[chunk / 2].r[chunk % 2 * 2], 0);
        f(a[chunk / 2].r[chunk % 2 * 2 + 1], 1);
      }
  }

  // q, k or v of a head: part 3 head, 3 head + 1 or 3 head + 2 of the weight.
  static __device__ __forceinline__ void part(float (&sums)[kTiles][kAhead][4], const Operands& a, const Params& p, int part,
                                              const bool (&padded)[kTiles][2]) {
    const int at = kHead * part + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const float2 bias = *reinterpret_cast<const float2*>(p.qkv_bias + at + 8 * n);
      const float2 padding = *reinterpret_cast<const float2*>(p.padding + at + 8 * n);
#pragma unroll
      for (int m = 0; m < kTiles; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          sums[m][n][2 * i] = padded[m][i] ? padding.x : bias.x;
          sums[m][n][2 * i + 1] = padded[m][i] ? padding.y : bias.y;
        }
    }
    multiply_packed<T, kSteps>(sums, [&](int m, int step) -> const Left<T>& { return a[m][step]; }, p.qkv + part * kPart);
  }
  static __device__ __forceinline__ void put(Head& tile, const float (&sums)[kTiles][kAhead][4], int first) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        unsigned char* const pair = tile.pair(first + 16 * m + lane / 4, 8 * n + lane % 4 * 2);
        Head::write(pair, sums[m][n][0], sums[m][n][1]);
        Head::write(pair + Head::kEightRows, sums[m][n][2], sums[m][n][3]);
      }
  }

  // A bit for each accumulator of the 16 queries from `row` on: whether a seam parts its query and its key.
  static __device__ __forceinline__ uint32_t parted_by(const Sizes& s, int seams, int row) {
    const int lane = threadIdx.x % 32;
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = region_of<0>(s, min(row + 8 * i + lane / 4, s.tokens - 1));
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int key = region_of<0>(s, min(8 * n + lane % 4 * 2 + j, s.tokens - 1));
          bits |= uint32_t(((query ^ key) & seams) != 0) << (4 * n + 2 * i + j);
        }
    }
    return bits;
  }
};

}  // namespace hifuse::cuda
