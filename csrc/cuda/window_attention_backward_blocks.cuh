// The backward of window attention for windows of any size, in two kernels. In both, a warp owns 16 rows of the matrix of
// scores, or of its transpose, and nothing that it computes leaves its registers before it is a result.
//
// The first owns queries: over the blocks of keys once for the statistics of its rows, and once more for dq and the gradient of
// the position bias. The second owns keys: over the blocks of queries for dk and dv.
#pragma once
#include "window_attention_launch.h"
#include "window_attention_sums.cuh"

namespace hifuse::cuda {

template <class T, int kHeadDim>
struct BackwardBlocks {
  static constexpr int kRows = backward_block_of_tokens(kIsFloat32<T>, kHeadDim), kThreads = 2 * kRows, kTiles = kRows / 8,
                       kOut = kHeadDim / 8;
  static constexpr int kSteps = kRows / kStep<T>, kStages = 2;
  static constexpr int kBlocks = 256 / kThreads;  // 255 registers a thread
  using Tokens = Tile<T, kRows, kHeadDim>;

  // Of each row of scores: the largest, one over the sum of the exponentials, the sum of p dp; kRows of each, block by block.
  static constexpr int kStatistics = 3 * kRows;
  static __device__ __forceinline__ float* statistics(const BackwardParams& p, int index, int blocks, int block) {
    return p.statistics + ((int64_t(index) * p.sizes.heads + blockIdx.x) * blocks + block) * kStatistics;
  }
};

// ---- Queries ------------------------------------------------------------------------------------------------------------

// The block (head, share, block of queries), of at least one window. The sum of ds over its windows lies in scratch memory that
// is its own, in the order of the accumulators: each thread adds to what it wrote itself.
template <class T, int kHeadDim>
struct WindowAttentionBackwardQueries : BackwardBlocks<T, kHeadDim> {
  using Base = BackwardBlocks<T, kHeadDim>;
  using Base::kRows, Base::kThreads, Base::kTiles, Base::kOut, Base::kSteps, Base::kStages;
  using typename Base::Tokens;
  static constexpr const char* kName = "window_attention_backward_queries";
  using Params = BackwardParams;
  struct Shared {
    Tokens q[2], grad[2], k[kStages], v[kStages];
    float table[kLargestTable];
    PaddedSums<kThreads / 32, 1, kHeadDim> padded;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Sizes& s = p.sizes;
    const int head = blockIdx.x, first = blockIdx.z * kRows, row = threadIdx.x / 32 * 16, left = row + left_row();
    const int blocks = gridDim.z, of_head = head * s.head_chunks * 16, stride = s.row_bytes;
    const TableBias<false> bias{shared.table};
    bias.template load<kThreads>(shared.table, s, p.bias_table, head);
    shared.padded.clear();
    const WarpRows<Tokens, 0> rows(s, row, first);
    const int part = blockIdx.y * blocks + blockIdx.z;
    float4* const sums = p.bias_sums + (int64_t(part) * s.heads + head) * (blocks * kTiles * kThreads);

    const auto load = [&](const Window& w, int step, int window_stage, int stage) {
      const auto part = [&](Tokens& tile, const Read& map, const unsigned char* padding, int first, int from) {
        load_tokens<kThreads>(tile, map, padding, s, w, first, s.head_chunks, from);
      };
      const int block = step < blocks ? step : step - blocks;
      if (step == 0) {
        part(shared.q[window_stage], p.qkv, p.padding, first, of_head);
        part(shared.grad[window_stage], p.grad, nullptr, first, of_head);
      }
      part(shared.k[stage], p.qkv, p.padding, block * kRows, of_head + stride);
      part(shared.v[stage], p.qkv, p.padding, block * kRows, of_head + 2 * stride);
    };
    const Window next_window = Window::at(s.grid, gridDim.y);
    Window w = Window::at(s.grid, blockIdx.y), ahead = w;
    int window_stage = 0, stage = 0;
    load(w, 0, 0, 0);
    cp_async_commit();
    for (int index = blockIdx.y; index < s.windows; index += gridDim.y, window_stage ^= 1, w = ahead) {
      float top[2] = {kLowest, kLowest}, total[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f}, dq[kOut][4] = {};
      for (int step = 0; step < 2 * blocks; ++step, stage ^= 1) {
        const bool last = step + 1 == 2 * blocks;  // of this window
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, and nobody reads the other one any more
        if (last) ahead.advance(s.grid, next_window);
        if (!last || index + int(gridDim.y) < s.windows) load(ahead, last ? 0 : step + 1, window_stage ^ int(last), stage ^ 1);
        cp_async_commit();

        const int block = step < blocks ? step : step - blocks;
        float x[kTiles][4], y[kTiles][4];
        row_products<T>(x, shared.q[window_stage], left, shared.k[stage]);
        bias.scores(x, s, w, first + row, block * kRows);
        row_products<T>(y, shared.grad[window_stage], left, shared.v[stage]);
        if (step < blocks) {
          add_statistics(top, total, delta, x, y);
          if (step == blocks - 1) finish_statistics(Base::statistics(p, index, blocks, blockIdx.z), row, top, total, delta);
        } else {
          gradients(x, y, top, total, delta);
          add_bias(sums + block * kTiles * kThreads, y, index == int(blockIdx.y));
          if (p.need_map) column_products<T, kSteps>(dq, [&](int i) { return left_of_sums<T>(y, i); }, shared.k[stage]);
        }
      }
      if (!p.need_map) continue;
      if (p.padding_parts && !w.whole(s.grid)) shared.padded.template add<0>(s, w, first + row, 0, dq, s.scale);
      const float scale[2] = {s.scale, s.scale};
      __syncwarp();  // the warp has read its rows of q
      rows.put(shared.q[window_stage], dq, scale);
      __syncwarp();
      rows.store(s, shared.q[window_stage], p.grad_qkv, w, s.head_chunks, of_head);
    }

    __syncthreads();
    if (p.padding_parts) shared.padded.store(s, p.padding_parts + int64_t(part) * 3 * s.channels, head, 0);
    if (!p.table_parts) return;
    const int entries = 2 * bias_center<0>(s) + 1;
    sum_of_entries<0, kThreads>(s, p.table_parts + int64_t(part) * entries * s.heads, head, first, kRows,
                                [&](int query, int key) { return element(sums, query, key); });
  }

 private:
  // Those of the rows so far, for the largest element so far.
  static __device__ __forceinline__ void add_statistics(float (&top)[2], float (&total)[2], float (&delta)[2],
                                                        float (&x)[kTiles][4], const float (&y)[kTiles][4]) {
    const float before[2] = {top[0], top[1]};
    raise(top, x);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float shrink = exp2_fast(before[i] - top[i]);
      total[i] *= shrink, delta[i] *= shrink;
    }
    exponentials(x, top, total);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) delta[i / 2] = fmaf(x[n][i], y[n][i], delta[i / 2]);
  }

  // Of whole rows, `total` turned into its inverse; kept for the keys.
  static __device__ __forceinline__ void finish_statistics(float* kept, int row, const float (&top)[2], float (&total)[2],
                                                           float (&delta)[2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      total[i] = reciprocal_fast(row_sum(total[i]));
      delta[i] = row_sum(delta[i]) * total[i];
      if (lane % 4 != 0) continue;
      const int r = row + lane / 4 + 8 * i;
      kept[r] = top[i], kept[kRows + r] = total[i], kept[2 * kRows + r] = delta[i];
    }
  }

  // y = ds of scores x and products y = do v^T.
  static __device__ __forceinline__ void gradients(const float (&x)[kTiles][4], float (&y)[kTiles][4], const float (&top)[2],
                                                   const float (&inverse)[2], const float (&delta)[2]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) y[n][i] = exp2_fast(x[n][i] - top[i / 2]) * inverse[i / 2] * (y[n][i] - delta[i / 2]);
  }

  static __device__ __forceinline__ void add_bias(float4* sums, const float (&ds)[kTiles][4], bool is_first) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float4 sum = is_first ? float4{0.0f, 0.0f, 0.0f, 0.0f} : sums[n * kThreads + threadIdx.x];
      sum.x += ds[n][0], sum.y += ds[n][1], sum.z += ds[n][2], sum.w += ds[n][3];
      sums[n * kThreads + threadIdx.x] = sum;
    }
  }

  static __device__ __forceinline__ float element(const float4* sums, int query, int key) {
    const int thread = query / 16 * 32 + query % 8 * 4 + key % 8 / 2;
    return reinterpret_cast<const float*>(sums + key / 8 * kThreads + thread)[query % 16 / 8 * 2 + key % 2];
  }
};

// ---- Keys ---------------------------------------------------------------------------------------------------------------

// The block (head, share, block of keys), of at least one window.
template <class T, int kHeadDim>
struct WindowAttentionBackwardKeys : BackwardBlocks<T, kHeadDim> {
  using Base = BackwardBlocks<T, kHeadDim>;
  using Base::kRows, Base::kThreads, Base::kTiles, Base::kOut, Base::kSteps, Base::kStages, Base::kStatistics;
  using typename Base::Tokens;
  static constexpr const char* kName = "window_attention_backward_keys";
  using Params = BackwardParams;
  struct Shared {
    Tokens k[2], v[2], q[kStages], grad[kStages];
    uint4 statistics[kStages][kStatistics / 4];
    float table[kLargestTable];
    PaddedSums<kThreads / 32, 2, kHeadDim> padded;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Sizes& s = p.sizes;
    const int head = blockIdx.x, first = blockIdx.z * kRows, row = threadIdx.x / 32 * 16;
    const int blocks = gridDim.z, of_head = head * s.head_chunks * 16, stride = s.row_bytes;
    const TableBias<true> bias{shared.table};
    bias.template load<kThreads>(shared.table, s, p.bias_table, head);
    shared.padded.clear();

    const auto load = [&](const Window& w, int index, int block, int window_stage, int stage) {
      const auto part = [&](Tokens& tile, const Read& map, const unsigned char* padding, int first, int from) {
        load_tokens<kThreads>(tile, map, padding, s, w, first, s.head_chunks, from);
      };
      if (block == 0) {
        part(shared.k[window_stage], p.qkv, p.padding, first, of_head + stride);
        part(shared.v[window_stage], p.qkv, p.padding, first, of_head + 2 * stride);
      }
      part(shared.q[stage], p.qkv, p.padding, block * kRows, of_head);
      part(shared.grad[stage], p.grad, nullptr, block * kRows, of_head);
      const float* kept = Base::statistics(p, index, blocks, block);
      for (int i = threadIdx.x; i < kStatistics / 4; i += kThreads)
        cp_async_16(&shared.statistics[stage][i], kept + 4 * i, true);
    };
    const Window next_window = Window::at(s.grid, gridDim.y);
    Window w = Window::at(s.grid, blockIdx.y), ahead = w;
    int window_stage = 0, stage = 0;
    load(w, blockIdx.y, 0, 0, 0);
    cp_async_commit();
    for (int index = blockIdx.y; index < s.windows; index += gridDim.y, window_stage ^= 1, w = ahead) {
      float dk[kOut][4] = {}, dv[kOut][4] = {};
      for (int block = 0; block < blocks; ++block, stage ^= 1) {
        const bool last = block + 1 == blocks;  // of this window
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, and nobody reads the other one any more
        if (last) ahead.advance(s.grid, next_window);
        if (!last || index + int(gridDim.y) < s.windows)
          load(ahead, last ? index + gridDim.y : index, last ? 0 : block + 1, window_stage ^ int(last), stage ^ 1);
        cp_async_commit();

        const int left = computed_here(row + left_row());  // dk and dv want the registers of addresses
        float x[kTiles][4], y[kTiles][4];
        row_products<T>(x, shared.k[window_stage], left, shared.q[stage]);
        bias.scores(x, s, w, first + row, block * kRows);
        const float* statistics = reinterpret_cast<const float*>(shared.statistics[stage]);
        const int queries = tokens_of<0>(s) - block * kRows;
        weights(x, statistics, queries);
        column_products<T, kSteps>(dv, [&](int i) { return left_of_sums<T>(x, i); }, shared.grad[stage]);
        row_products<T>(y, shared.v[window_stage], left, shared.grad[stage]);
        gradients(x, y, statistics, queries);
        column_products<T, kSteps>(dk, [&](int i) { return left_of_sums<T>(y, i); }, shared.q[stage]);
      }
      if (p.padding_parts && !w.whole(s.grid)) {
        shared.padded.template add<0>(s, w, first + row, 0, dk, s.scale);
        shared.padded.template add<0>(s, w, first + row, 1, dv, 1.0f);
      }
      const float scale[2] = {s.scale, s.scale}, one[2] = {1.0f, 1.0f};
      const WarpRows<Tokens, 0> rows(s, computed_here(row), first);
      __syncwarp();  // the warp has read its rows of k and v
      rows.put(shared.k[window_stage], dk, scale);
      rows.put(shared.v[window_stage], dv, one);
      __syncwarp();
      rows.store(s, shared.k[window_stage], p.grad_qkv, w, s.head_chunks, of_head + stride);
      rows.store(s, shared.v[window_stage], p.grad_qkv, w, s.head_chunks, of_head + 2 * stride);
    }

    __syncthreads();
    const int part = blockIdx.y * blocks + blockIdx.z;
    if (p.padding_parts) shared.padded.store(s, p.padding_parts + int64_t(part) * 3 * s.channels, head, 1);
  }

 private:
  // p, transposed, of scores in their place; zeros for queries from `count` on.
  static __device__ __forceinline__ void weights(float (&x)[kTiles][4], const float* statistics, int count) {
    const int lane = computed_here(threadIdx.x % 32);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int query = 8 * n + lane % 4 * 2 + j;
        const float top = statistics[query], inverse = statistics[kRows + query];
#pragma unroll
        for (int i = j; i < 4; i += 2) x[n][i] = query < count ? exp2_fast(x[n][i] - top) * inverse : 0.0f;
      }
  }

  // ds, transposed, of p and of products y = v do^T, in their place; zeros likewise.
  static __device__ __forceinline__ void gradients(const float (&x)[kTiles][4], float (&y)[kTiles][4], const float* statistics,
                                                   int count) {
    const int lane = computed_here(threadIdx.x % 32);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int query = 8 * n + lane % 4 * 2 + j;
        const float delta = statistics[2 * kRows + query];
#pragma unroll
        for (int i = j; i < 4; i += 2) y[n][i] = query < count ? x[n][i] * (y[n][i] - delta) : 0.0f;
      }
  }
};

}  // namespace hifuse::cuda
