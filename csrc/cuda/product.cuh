// A product of rows with a weight, with a norm before it and much after it: linears, both halves of an MLP, and convolutions.
//
// A block computes a tile of results, a warp a part of it. While it multiplies, the next steps of both sides are on their way
// into other stages of shared memory. In which order a result's products are added depends on its weights alone.
#pragma once
#include <launch.cuh>

#include "product_results.cuh"
#include "product_rows.cuh"
#include "tiles.cuh"

namespace hifuse::cuda {

// The block (tile of rows, tile of columns), the columns first.
template <class T>
struct ProductTile {
  static constexpr const char* kName = "product";
  static constexpr int kThreads = 128, kBlocks = 3, kStages = 3;
  static constexpr int kM = kIsFloat32<T> ? 2 : 4, kN = 6;  // 16 x 8 results each, of a warp; two warps share rows, two columns
  static constexpr int kRows = 32 * kM, kColumns = 16 * kN, kDepth = 64 / int(sizeof(T));
  using Left = Tile<T, kRows, kDepth>;
  using Right = Tile<T, kColumns, kDepth>;
  using Rows = LeftRows<T, Left, kRows, kThreads>;
  using Out = Results<T, kRows, kColumns, kM, kN, kThreads>;
  using Params = ProductParams;
  struct Stage {
    Left left;
    Right right;
  };
  struct Shared {
    union {
      Stage stage[kStages];
      typename Out::Out out;
    };
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const int first = int(blockIdx.x) / p.column_tiles * kRows, first_column = int(blockIdx.x) % p.column_tiles * kColumns;
    const int warp = threadIdx.x / 32, row = warp / 2 * (kRows / 2), column = warp % 2 * (kColumns / 2);
    Rows rows(p, first);
    RowNorm<T, Rows> norm;
    if (p.norm == Norm::row) norm.find(p, rows, 0, p.count);
    rows.enter(p, 0);

    const auto start = [&](int stage) {
      if (rows.segment < p.count && rows.channel < p.segments[rows.segment].channels) {
        start_weight<T, kColumns, kThreads>(shared.stage[stage].right, p, first_column, p.segments[rows.segment], rows.channel);
        rows.start(shared.stage[stage].left, p);
        rows.advance(p);
      }
      cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i + 1 < kStages; ++i) start(i);

    float x[kM][kN][4] = {};
    int stage = 0, next = kStages - 1;
    for (int step = 0; step < p.steps; ++step) {
      cp_async_wait<kStages - 2>();
      if (p.norm != Norm::none) {
        if (p.norm == Norm::pixel && norm.channel == 0) norm.find(p, rows, norm.segment, norm.segment + 1);
        norm.apply(shared.stage[stage].left, p);
      }
      __syncthreads();  // this stage is there, and nobody reads the one before any more
      start(next);
      multiply(x, shared.stage[stage], row, column);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      next = next + 1 == kStages ? 0 : next + 1;
    }
    __syncthreads();  // nobody reads a stage any more
    const int lane = threadIdx.x % 32;
    Out{p, first, first_column, row + lane / 4, column + lane % 4 * 2}.finish(shared.out, x);
  }

 private:
  // 16 rows further the chunks of a tile are permuted alike.
  template <class Tile>
  static __device__ __forceinline__ const uint4* rows_further(const Tile& tile, int row, int chunk, int rows) {
    return &tile.at(row, chunk) + rows * Tile::kChunks;
  }
  static __device__ __forceinline__ cuda::Left<T> left_operand(const Left& tile, int row, int chunk, int rows) {
    uint32_t r[4];
    ldmatrix_x4(r, rows_further(tile, row + left_row(), chunk + left_chunk(), rows));
    cuda::Left<T> a;
#pragma unroll
    for (int i = 0; i < 4; ++i) a.set(i, r[i]);
    return a;
  }
  static __device__ __forceinline__ void right_operands(cuda::Right<T> (&b)[2], const Right& tile, int row, int chunk, int rows) {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    ldmatrix_x4(r, rows_further(tile, row + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2, rows));
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].set(i % 2, r[i]);
  }

  static __device__ __forceinline__ void multiply(float (&x)[kM][kN][4], const Stage& s, int row, int column) {
    if constexpr (kIsFloat32<T>) {
      // Tensor cores cut off sums where units for float32 round: sums there are kept short.
      cuda::Left<T> a[2][kM];
#pragma unroll
      for (int i = 0; i < 2 * kM; ++i) a[i % 2][i / 2] = left_operand(s.left, row, 2 * (i % 2), 16 * (i / 2));
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        cuda::Right<T> b[2][2];
        right_operands(b[0], s.right, column, 0, 8 * n);
        right_operands(b[1], s.right, column, 2, 8 * n);
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            Sum<T> sum = {};
            sum.add(a[0][m], b[0][half]);
            sum.add(a[1][m], b[1][half]);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[m][n + half][i] += sum[i];
          }
      }
    } else {
#pragma unroll
      for (int chunk = 0; chunk < Left::kChunks; chunk += 2) {
        cuda::Left<T> a[kM];
#pragma unroll
        for (int m = 0; m < kM; ++m) a[m] = left_operand(s.left, row, chunk, 16 * m);
#pragma unroll
        for (int n = 0; n < kN; n += 2) {
          cuda::Right<T> b[2];
          right_operands(b, s.right, column, chunk, 8 * n);
#pragma unroll
          for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) mma_m16n8k16<T>(x[m][n + half], a[m].r, b[half].r[0], b[half].r[1]);
        }
      }
    }
  }
};

}  // namespace hifuse::cuda
