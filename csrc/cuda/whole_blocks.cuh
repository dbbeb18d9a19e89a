// What kernels of whole blocks have in common: rows in shared memory, products with weights that come from memory as operands,
// and the norm of rows.
#pragma once
#include <ptx.cuh>

#include "activation.cuh"
#include "tiles.cuh"

namespace hifuse::cuda {

// kRows rows of kColumns numbers of 16 bits, 16 bytes apart. So the same chunk of eight rows lies in banks of its own, and runs
// of 64 bytes do whose rows are four apart.
template <class T, int kRows, int kColumns>
struct ApartRows {
  static_assert(sizeof(T) == 2 && kColumns % 16 == 0);
  static constexpr int kChunks = kColumns / 8;

  uint4 chunk[kRows * (kChunks + 1)];

  __device__ __forceinline__ uint4& at(int row, int c) { return chunk[row * (kChunks + 1) + c]; }
  __device__ __forceinline__ const uint4& at(int row, int c) const { return chunk[row * (kChunks + 1) + c]; }
  // Where the numbers from `column` on lie, as Word: two or four of them, of one chunk.
  template <class Word>
  __device__ __forceinline__ Word& word(int row, int column) {
    return reinterpret_cast<Word*>(&at(row, column / 8))[column % 8 * 2 / int(sizeof(Word))];
  }
  // Step `step` of 16 columns of the 16 rows from `row` on, as a left operand.
  __device__ __forceinline__ Left<T> left(int row, int step) const {
    return left_of_rows<T>(*this, row + left_row(), 2 * step + left_chunk());
  }
};

// x += left W^T, kTiles tiles of 16 rows and kColumns tiles of 8 columns, over 32 kSteps channels. `left(m, step)` gives an
// operand of 16 channels. `weight` is that of the first column: of each 8 columns and 32 channels, lane 4 g + t has 16 bytes,
// the channels 2t.. of column g, then 2t + 8.., 2t + 16.. and 2t + 24... It passes through L1, which keeps it from tile to
// tile.
template <class T, int kSteps, int kTiles, int kColumns, class LeftOf>
__device__ __forceinline__ void multiply_packed(float (&x)[kTiles][kColumns][4], const LeftOf& left, const uint4* weight) {
  const uint4* const mine = weight + threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    uint4 b[kColumns];
#pragma unroll
    for (int n = 0; n < kColumns; ++n) b[n] = mine[(n * kSteps + k) * 32];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const Left<T> a = left(m, 2 * k + half);
#pragma unroll
        for (int n = 0; n < kColumns; ++n) mma_m16n8k16<T>(x[m][n], a.r, half ? b[n].z : b[n].x, half ? b[n].w : b[n].y);
      }
  }
}

// The norm of a row, of sums over the distances of its numbers from one of them. Equal numbers leave nothing, to the last bit.
// That one is at most as far from the mean as the root of their count times their spread, so the variance errs by 2^-23 of it
// for each number at most.
struct Centred {
  float rest, scale;
  __device__ __forceinline__ Centred(float sum, float squares, float inverse, float eps) {
    const float mean = sum * inverse;
    scale = rsqrtf(fmaxf(squares * inverse - mean * mean, 0.0f) + eps);
    rest = -mean * scale;
  }
  __device__ __forceinline__ float operator()(float distance) const { return fmaf(distance, scale, rest); }
};

// there + gelu(a), there + gelu(b), in place of two numbers.
template <class T>
__device__ __forceinline__ void add_gelu(uint32_t& pair, float a, float b) {
  const float2 there = unpack<T>(pair);
  pair = pack<T>(there.x + gelu<T>(a), there.y + gelu<T>(b));
}

}  // namespace hifuse::cuda
