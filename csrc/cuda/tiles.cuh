// Tiles of rows in shared memory, and products of them on tensor cores by mma.sync.
//
// A warp computes 16 rows of a product. Its accumulators are tiles of 16 x 8: thread 4 g + t holds the elements (g, 2t), (g, 2t
// + 1), (g + 8, 2t), (g + 8, 2t + 1). They are the left operand of the next product as they are.
//
// float32 goes as three products of tf32 numbers (3xTF32). The two small ones have a sum of their own: tensor cores cut off
// sums where units for float32 round, and in one sum of all three the cuts add up to more than the tolerance rule allows. An
// infinity gives NaN in such a product: it meets the small part of the other number, which may be zero or of the other sign.
#pragma once
#include <cstdint>
#include <ptx.cuh>

namespace hifuse::cuda {

template <class T>
inline constexpr bool kIsFloat32 = sizeof(T) == 4;

// ---- Tiles --------------------------------------------------------------------------------------------------------------

// kRows rows of kColumns numbers, in chunks of 16 bytes. The chunks of a row are permuted, so that one chunk of each of eight
// neighbouring rows lies in banks of its own: ldmatrix reads them at once.
template <class T, int kRows, int kColumns>
struct Tile {
  static constexpr int kChunks = kColumns * int(sizeof(T)) / 16;  // of a row
  static constexpr int kWidth = kColumns;
  static constexpr int kAll = kRows * kChunks;
  static_assert(kChunks % 4 == 0 || kChunks == 2);

  uint4 chunk[kAll];

  static __device__ __forceinline__ int place(int row, int c) {
    constexpr int kShift = kChunks % 8 == 0 ? 0 : kChunks % 4 == 0 ? 1 : 2, kMask = (8 >> kShift) - 1;
    return row * kChunks + (c ^ (row >> kShift & kMask));
  }
  __device__ __forceinline__ uint4& at(int row, int c) { return chunk[place(row, c)]; }
  __device__ __forceinline__ const uint4& at(int row, int c) const { return chunk[place(row, c)]; }

  // Where the pair of numbers at columns `column`, even, and `column` + 1 lies; the pair eight rows further is as far for all.
  static constexpr int kEightRows = 8 * kChunks * 16;
  __device__ __forceinline__ unsigned char* pair(int row, int column) {
    constexpr int kOfChunk = 16 / int(sizeof(T));
    return reinterpret_cast<unsigned char*>(&at(row, column / kOfChunk)) + column % kOfChunk * int(sizeof(T));
  }
  static __device__ __forceinline__ void write(unsigned char* pair, float first, float second) {
    if constexpr (kIsFloat32<T>)
      *reinterpret_cast<float2*>(pair) = float2{first, second};
    else
      *reinterpret_cast<uint32_t*>(pair) = pack<T>(first, second);
  }
};

// ---- Operands and sums --------------------------------------------------------------------------------------------------

// A float32 number as a sum of two tf32 numbers, to 2^-23 of it.
__device__ __forceinline__ void split(uint32_t number, uint32_t& big, uint32_t& small) {
  const float x = __uint_as_float(number);
  big = to_tf32(x);
  small = to_tf32(x - __uint_as_float(big));
}

// 16 rows of a left operand, 32 bytes of each: 16 numbers of 16 bits, or 8 of float32.
template <class T>
struct Left {
  uint32_t r[4];
  __device__ __forceinline__ void set(int i, uint32_t number) { r[i] = number; }
};
template <>
struct Left<float> {
  uint32_t big[4], small[4];
  __device__ __forceinline__ void set(int i, uint32_t number) { split(number, big[i], small[i]); }
};

// 8 columns of a right operand, as deep as Left.
template <class T>
struct Right {
  uint32_t r[2];
  __device__ __forceinline__ void set(int i, uint32_t number) { r[i] = number; }
};
template <>
struct Right<float> {
  uint32_t big[2], small[2];
  __device__ __forceinline__ void set(int i, uint32_t number) { split(number, big[i], small[i]); }
};

// 16 x 8 results while they are summed up.
template <class T>
struct Sum {
  float sum[4];
  __device__ __forceinline__ float operator[](int i) const { return sum[i]; }
  __device__ __forceinline__ void add(const Left<T>& a, const Right<T>& b) { mma_m16n8k16<T>(sum, a.r, b.r[0], b.r[1]); }
};
template <>
struct Sum<float> {
  float sum[4], small[4];
  __device__ __forceinline__ float operator[](int i) const { return sum[i] + small[i]; }
  __device__ __forceinline__ void add(const Left<float>& a, const Right<float>& b) {
    mma_m16n8k8_tf32(small, a.small, b.big[0], b.big[1]);
    mma_m16n8k8_tf32(small, a.big, b.small[0], b.small[1]);
    mma_m16n8k8_tf32(sum, a.big, b.big[0], b.big[1]);
  }
};

// ---- Operands out of tiles ----------------------------------------------------------------------------------------------

// Rows of a tile as a left operand: this lane gives row `row` and chunk `chunk`, which are those of `left_row` and `left_chunk`
// from where the operand begins.
__device__ __forceinline__ int left_row() { return threadIdx.x % 16; }
__device__ __forceinline__ int left_chunk() { return threadIdx.x % 32 / 16; }

template <class T, class Tile>
__device__ __forceinline__ Left<T> left_of_rows(const Tile& tile, int row, int chunk) {
  uint32_t r[4];
  ldmatrix_x4(r, &tile.at(row, chunk));
  Left<T> a;
#pragma unroll
  for (int i = 0; i < 4; ++i) a.set(i, r[i]);
  return a;
}

// The transpose of rows `row`.., columns `column`.. of a tile of 16-bit numbers as a left operand.
template <class T, class Tile>
__device__ __forceinline__ Left<T> left_of_columns(const Tile& tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  Left<T> a;
  ldmatrix_x4_transposed(a.r, &tile.at(row + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2));
  return a;
}

// Step `step` of accumulators as a left operand; zeros beyond the last tile. In float32, columns are in another order, which is
// that of `right_of_columns`.
template <class T, int kTiles>
__device__ __forceinline__ Left<T> left_of_sums(const float (&x)[kTiles][4], int step) {
  Left<T> a;
  if constexpr (kIsFloat32<T>) {
    a.set(0, __float_as_uint(x[step][0]));
    a.set(1, __float_as_uint(x[step][2]));
    a.set(2, __float_as_uint(x[step][1]));
    a.set(3, __float_as_uint(x[step][3]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = 2 * step + i / 2;
      a.set(i, n < kTiles ? pack<T>(x[n < kTiles ? n : 0][i % 2 * 2], x[n < kTiles ? n : 0][i % 2 * 2 + 1]) : 0u);
    }
  }
  return a;
}

// The transposes of 16 rows of a tile as two right operands.
template <class T, class Tile>
__device__ __forceinline__ void right_of_rows(Right<T> (&b)[2], const Tile& tile, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  ldmatrix_x4(r, &tile.at(row + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2));
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / 2].set(i % 2, r[i]);
}

// Rows from `row` on, as many as a step takes, and 16 columns of a tile as two right operands.
template <class T, class Tile>
__device__ __forceinline__ void right_of_columns(Right<T> (&b)[2], const Tile& tile, int row, int column) {
  // In float32 the places of a step are four; ahead of a loop they would take more registers than there are.
  const int lane = kIsFloat32<T> ? computed_here(threadIdx.x % 32) : int(threadIdx.x % 32);
  if constexpr (kIsFloat32<T>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = column + i / 2 * 8 + lane / 4;
      const uint4& chunk = tile.at(row + lane % 4 * 2 + i % 2, at / 4);
      b[i / 2].set(i % 2, reinterpret_cast<const uint32_t*>(&chunk)[at % 4]);
    }
  } else {
    uint32_t r[4];
    ldmatrix_x4_transposed(r, &tile.at(row + lane % 16, column / 8 + lane / 16));
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].set(i % 2, r[i]);
  }
}

// ---- Products -----------------------------------------------------------------------------------------------------------

// How many rows of the right tile a step of `column_products` takes.
template <class T>
inline constexpr int kStep = kIsFloat32<T> ? 8 : 16;

// out = left right^T: 16 rows of one tile with the first 8 kTiles rows of another. `row` is what this lane gives, see left_row.
template <class T, int kTiles, class Tile>
__device__ __forceinline__ void row_products(float (&out)[kTiles][4], const Tile& left, int row, const Tile& right) {
  // In float32, operands and sums are twice as many: unrolled, addresses would take more registers than there are.
  [[maybe_unused]] constexpr int kUnroll = kIsFloat32<T> ? 1 : Tile::kChunks;
  Sum<T> sum[kTiles] = {};
#pragma unroll kUnroll
  for (int chunk = 0; chunk < Tile::kChunks; chunk += 2) {
    const Left<T> a = left_of_rows<T>(left, row, chunk + left_chunk());
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      Right<T> b[2];
      right_of_rows<T>(b, right, 8 * n, chunk);
      sum[n].add(a, b[0]);
      if (n + 1 < kTiles) sum[n + 1 < kTiles ? n + 1 : n].add(a, b[1]);
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) out[n][i] = sum[n][i];
}

// out += left right, where `left(step)` gives the left operand of kStep rows of the right tile.
template <class T, int kSteps, int kOut, class Tile, class LeftOf>
__device__ __forceinline__ void column_products(float (&out)[kOut][4], const LeftOf& left, const Tile& right) {
  Left<T> a[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) a[step] = left(step);
#pragma unroll
  for (int n = 0; n < kOut; n += 2) {
    Sum<T> sum[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i / 4].sum[i % 4] = out[n + i / 4][i % 4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Right<T> b[2];
      right_of_columns<T>(b, right, step * kStep<T>, 8 * n);
      sum[0].add(a[step], b[0]);
      sum[1].add(a[step], b[1]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) out[n + i / 4][i % 4] = sum[i / 4][i % 4];
  }
}

// ---- Rows of accumulators -----------------------------------------------------------------------------------------------

// Over the four threads that hold a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace hifuse::cuda
