// What becomes of the sums of a product: bias, activation, pooling, residual, and the way to memory.
//
// Sums go to a tile of results in shared memory, and from there to memory 16 bytes a thread. A residual comes the other way
// before, so that a result is rounded once.
#pragma once
#include <ptx.cuh>

#include "activation.cuh"
#include "product_rows.cuh"
#include "tiles.cuh"

namespace hifuse::cuda {

// The tile of kRows x kColumns results, which is the block's. A warp owns 16 kM rows and 8 kN columns of them.
template <class T, int kRows, int kColumns, int kM, int kN, int kThreads>
struct Results {
  using Out = Tile<T, kRows, kColumns>;
  using Sums = float[kM][kN][4];

  const ProductParams& p;
  int first, first_column;  // of the tile
  int row, column;          // of this lane's first result, within the tile

  // Adds the bias.
  __device__ __forceinline__ void add_bias(Sums& x) const {
    if (p.bias == nullptr) return;
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = first_column + column + 8 * n + i;
        const float bias = at < p.columns ? number<T>(reinterpret_cast<const Bits<T>*>(p.bias)[at]) : 0.0f;
#pragma unroll
        for (int m = 0; m < kM; ++m) x[m][n][i] += bias, x[m][n][2 + i] += bias;
      }
  }

  __device__ __forceinline__ void activate(Sums& x) const {
    if (p.activation == Activation::gelu)
      each(x, [](float y) { return gelu<T>(y); });
    else if (p.activation == Activation::relu)
      each(x, [](float y) { return y < 0.0f ? 0.0f : y; });  // of NaN NaN
  }

  // All that follows the product. Nobody may read or write the tile's memory any more.
  __device__ __forceinline__ void finish(Out& tile, Sums& x) const {
    add_bias(x);
    if (p.before != nullptr) {
      put(tile, x);
      __syncthreads();
      store(tile, p.before, p.rows, first, kRows);
      __syncthreads();
    }
    activate(x);
    const int rows = p.pool ? p.rows / 4 : p.rows, start = p.pool ? first / 4 : first, some = p.pool ? kRows / 4 : kRows;
    if (p.residual != nullptr) {
      load(tile, p.residual, rows, start, some);
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
    }
    if (p.pool)
      put_pooled(tile, x);
    else
      put(tile, x, p.residual != nullptr);
    __syncthreads();
    store(tile, p.out, rows, start, some);
  }

 private:
  template <class F>
  static __device__ __forceinline__ void each(Sums& x, const F& f) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) x[m][n][i] = f(x[m][n][i]);
  }

  // Two numbers into their place, on top of what is there where that is `added`.
  static __device__ __forceinline__ void put(unsigned char* pair, float a, float b, bool added) {
    if (added) {
      float2 there;
      if constexpr (kIsFloat32<T>)
        there = *reinterpret_cast<const float2*>(pair);
      else
        there = unpack<T>(*reinterpret_cast<const uint32_t*>(pair));
      a += there.x;
      b += there.y;
    }
    Out::write(pair, a, b);
  }

  __device__ __forceinline__ void put(Out& tile, const Sums& x, bool added = false) const {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        unsigned char* const pair = tile.pair(row + 16 * m, column + 8 * n);
        put(pair, x[m][n][0], x[m][n][1], added);
        put(pair + Out::kEightRows, x[m][n][2], x[m][n][3], added);
      }
  }

  // The means of four rows each, which neighbouring lanes have.
  __device__ __forceinline__ void put_pooled(Out& tile, Sums& x) const {
    each(x, [](float y) {
      y += __shfl_xor_sync(0xffffffffu, y, 4);
      return (y + __shfl_xor_sync(0xffffffffu, y, 8)) * 0.25f;
    });
    if (threadIdx.x / 4 % 4) return;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          put(tile.pair((row + 16 * m + 8 * i) / 4, column + 8 * n), x[m][n][2 * i], x[m][n][2 * i + 1], p.residual != nullptr);
  }

  // Calls f(row, chunk, its first byte in a map of rows from `start` on, how many of its elements are there) for each chunk.
  template <class F>
  __device__ __forceinline__ void chunks(int rows, int start, int some, const F& f) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < some * Out::kChunks; i += kThreads) {
      const int r = i / Out::kChunks, c = i % Out::kChunks, at = first_column + c * kOfChunk<T>;
      const int count = start + r < rows ? min(p.columns - at, kOfChunk<T>) : 0;
      f(r, c, (int64_t(start + r) * p.columns + at) * int(sizeof(T)), count);
    }
  }

  // Zeros are where no result is.
  __device__ __forceinline__ void load(Out& tile, const unsigned char* from, int rows, int start, int some) const {
    chunks(rows, start, some, [&](int r, int c, int64_t byte, int count) {
      if (p.out_aligned)
        cp_async_16(&tile.at(r, c), count > 0 ? from + byte : from, count > 0);
      else
        copy_elements<T>(tile.at(r, c), from + byte, count);
    });
  }

  __device__ __forceinline__ void store(const Out& tile, unsigned char* to, int rows, int start, int some) const {
    chunks(rows, start, some, [&](int r, int c, int64_t byte, int count) {
      const uint4& chunk = tile.at(r, c);
      if (p.out_aligned && count > 0) {
        *reinterpret_cast<uint4*>(to + byte) = chunk;
      } else {
#pragma unroll 1
        for (int e = 0; e < count; ++e) reinterpret_cast<Bits<T>*>(to + byte)[e] = reinterpret_cast<const Bits<T>*>(&chunk)[e];
      }
    });
  }
};

}  // namespace hifuse::cuda
