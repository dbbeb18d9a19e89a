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

// How a tile of results is cut.
template <class T>
struct ProductShape {
  static constexpr int kThreads = 128;
  static constexpr int kM = kIsFloat32<T> ? 2 : 4, kN = 6;  // 16 x 8 results each, of a warp; two warps share rows, two columns
  static constexpr int kRows = 32 * kM, kColumns = 16 * kN, kDepth = 64 / int(sizeof(T)), kSums = kM * kN * 4;
  using Out = Results<T, kRows, kColumns, kM, kN, kThreads>;

  static __device__ __forceinline__ int row() { return threadIdx.x / 64 * (kRows / 2); }  // of this warp
  static __device__ __forceinline__ int column() { return threadIdx.x / 32 % 2 * (kColumns / 2); }
  static __device__ __forceinline__ int first_row(const ProductParams& p, int tile) { return tile / p.column_tiles * kRows; }
  static __device__ __forceinline__ int first_column(const ProductParams& p, int tile) {
    return tile % p.column_tiles * kColumns;
  }
  static __device__ __forceinline__ Out out(const ProductParams& p, int tile) {
    const int lane = threadIdx.x % 32;
    return {p, first_row(p, tile), first_column(p, tile), row() + lane / 4, column() + lane % 4 * 2};
  }
  // Where this thread's sums of a part of a tile lie, kThreads apart.
  static __device__ __forceinline__ float* sums(const ProductParams& p, int tile, int part) {
    return p.sums + (int64_t(part) * p.tiles + tile) * (kSums * kThreads) + threadIdx.x;
  }
};

// The block (tile of rows, tile of columns; part), the columns first. With kParts there may be several products, one behind the
// other, and those of a result are added in parts: by one block that keeps the sum of the parts in shared memory; or each part
// has a block, and the last of them to end adds all, in the same order.
template <class T, bool kParts>
struct ProductTile : ProductShape<T> {
  using Shape = ProductShape<T>;
  using Shape::kColumns, Shape::kDepth, Shape::kM, Shape::kN, Shape::kRows, Shape::kThreads;
  static constexpr const char* kName = kParts ? "product_parts" : "product";
  static constexpr int kBlocks = kIsFloat32<T> || kParts ? 2 : 3, kStages = 3;
  using Left = Tile<T, kRows, kDepth>;
  using Right = Tile<T, kColumns, kDepth>;
  using Rows = LeftRows<T, Left, kRows, kThreads>;
  using Normed = RowNorm<T, Rows>;
  using Params = std::conditional_t<kParts, ProductsParams, ProductParams>;
  struct Stage {
    Left left;
    Right right;
  };
  struct Shared {
    union {
      Stage stage[kStages];
      typename Shape::Out::Out out;
    };
    typename Normed::Statistics statistics;
    float sums[kParts ? Shape::kSums * kThreads : 1];
    unsigned before;  // how many parts of the tile were there
  };

  static __device__ __forceinline__ void run(const Params& params, Shared& shared) {
    if constexpr (kParts) {
      int i = 0, block = blockIdx.x;
      for (; block >= params.product[i].blocks; ++i) block -= params.product[i].blocks;
      const ProductParams& p = params.product[i];
      run(p, shared, block % p.tiles, block / p.tiles);
    } else {
      run(params, shared, blockIdx.x, 0);
    }
  }

  // Calls f(sum, its number).
  template <class F>
  static __device__ __forceinline__ void each(float (&x)[kM][kN][4], const F& f) {
#pragma unroll
    for (int i = 0; i < Shape::kSums; ++i) f(x[i / (4 * kN)][i / 4 % kN][i % 4], i);
  }

 private:
  static __device__ __forceinline__ void run(const ProductParams& p, Shared& shared, int tile, int part) {
    const bool alone = kParts && p.sums != nullptr;  // with a part of its own
    const int first_column = Shape::first_column(p, tile), begin = alone ? part * p.steps_of_part : 0;
    const int end = alone ? min(begin + p.steps_of_part, p.steps) : p.steps;
    Rows rows(p, Shape::first_row(p, tile));
    if (p.norm != Norm::none) Normed::find(shared.statistics, p, rows);
    rows.seek(p, begin);
    Normed norm{rows.segment, rows.channel};

    int ahead = begin;
    const auto start = [&](int stage) {
      if (ahead < end) {
        start_weight<T, kColumns, kThreads>(shared.stage[stage].right, p, first_column, p.segments[rows.segment], rows.channel);
        rows.start(shared.stage[stage].left, p);
        rows.advance(p);
      }
      ++ahead;
      cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i + 1 < kStages; ++i) start(i);

    float x[kM][kN][4] = {};
    int stage = 0, next = kStages - 1, left = p.steps_of_part;
    for (int step = begin; step < end; ++step) {
      cp_async_wait<kStages - 2>();
      if (p.norm != Norm::none) norm.apply(shared.stage[stage].left, shared.statistics, p);
      __syncthreads();  // this stage is there, and nobody reads the one before any more
      start(next);
      multiply(x, shared.stage[stage], Shape::row(), Shape::column());
      stage = stage + 1 == kStages ? 0 : stage + 1;
      next = next + 1 == kStages ? 0 : next + 1;
      if (kParts && --left == 0 && !alone && step + 1 < end) {
        add_part(shared.sums, x, step + 1 == p.steps_of_part);
        left = p.steps_of_part;
      }
    }
    if (alone) {
      float* const sums = Shape::sums(p, tile, part);
      each(x, [&](float& y, int i) { sums[i * kThreads] = y; });
      if (!is_last(p, shared, tile)) return;
      add_all_parts(p, x, tile);
    } else if (kParts && p.parts > 1) {
      each(x, [&](float& y, int i) { y = shared.sums[i * kThreads + threadIdx.x] + y; });
    }
    __syncthreads();  // nobody reads a stage any more
    Shape::out(p, tile).finish(shared.out, x);
  }

  // Whether the blocks of all other parts of a tile have written their sums. Of these blocks one is told so, whichever it is.
  static __device__ __forceinline__ bool is_last(const ProductParams& p, Shared& shared, int tile) {
    __syncthreads();  // all sums of this part are written
    if (threadIdx.x == 0) shared.before = count_arrival(p.counters + tile, p.parts);
    __syncthreads();  // what thread 0 has been told holds for all
    return int(shared.before) + 1 == p.parts;
  }
  // Its own part too: in which order they are added does not depend on who comes last.
  static __device__ __forceinline__ void add_all_parts(const ProductParams& p, float (&x)[kM][kN][4], int tile) {
#pragma unroll 1
    for (int part = 0; part < p.parts; ++part) {
      const float* const sums = Shape::sums(p, tile, part);
      each(x, [&](float& y, int i) { y = part == 0 ? sums[i * kThreads] : y + sums[i * kThreads]; });
    }
  }
  // Adds what this thread has summed up of a part to its sums of the parts before, and begins the next part.
  static __device__ __forceinline__ void add_part(float* sums, float (&x)[kM][kN][4], bool first) {
    each(x, [&](float& y, int i) {
      float& sum = sums[i * kThreads + threadIdx.x];
      sum = first ? y : sum + y;
      y = 0.0f;
    });
  }

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
  static __device__ __forceinline__ void right_operands(cuda::Right<T> (&b)[2], const Right& tile, int row, int chunk,
                                                        int rows) {
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
