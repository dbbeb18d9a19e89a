// The forward of window attention. A warp owns 16 queries of a window of a head; while it computes, the next tokens are on
// their way into the other stage of the block's shared memory.
#pragma once
#include <launch.cuh>

#include "window_attention_launch.h"
#include "window_attention_scores.cuh"

namespace hifuse::cuda {

struct ForwardParams {
  Sizes sizes;
  Read qkv;
  const float* bias_table;
  const unsigned char* padding;  // q, k, v of a padded token, like a row of qkv; or null for zeros
  Written out;
};

// ---- Windows that are one block of tokens -------------------------------------------------------------------------------

// The block (head, share), of at least one window. Rows of the tiles beyond the window are zero but in q, where the last token
// stands for them: what a row of no token computes is finite where that token's row is.
template <class T, int kHeadDim, int kWindow>
struct WindowAttentionForwardWhole {
  static constexpr const char* kName = "window_attention_forward";
  static constexpr int kThreads = 128, kBlocks = 4, kStages = 2;
  static constexpr int kTokens = kWindow * kWindow, kRows = kThreads / 2, kTiles = (kTokens + 7) / 8;
  static_assert(kTokens > kRows - 16 && kTokens <= kRows);
  using Tokens = Tile<T, kRows, kHeadDim>;
  using Loads = WindowLoads<Tokens, kWindow, kThreads, 3, kStages>;
  using Params = ForwardParams;
  struct Shared {
    Tokens q[kStages], k[kStages], v[kStages];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Sizes& s = p.sizes;
    const int head = blockIdx.x, row = threadIdx.x / 32 * 16, left = min(row + left_row(), kTokens - 1);
    const int of_head = head * kHeadDim * int(sizeof(T)), stride = s.row_bytes;
    clear_rows<kTokens, kThreads>(shared.q, 3 * kStages);
    const WindowBias<kWindow, kTiles> bias(s, p.bias_table, head, row);
    const Loads loads(p.qkv, of_head, stride);
    const WarpRowsOfWhole<Tokens, kWindow> rows(s, row);

    const Window step = Window::at(s.grid, gridDim.y);
    Window w = Window::at(s.grid, blockIdx.y);
    int stage = 0;
    loads.start(shared.q[0], p.qkv, p.padding, s, w, w.whole(s.grid), of_head, stride);
    cp_async_commit();
    for (int index = blockIdx.y; index < s.windows; index += gridDim.y, stage ^= 1, w.advance(s.grid, step)) {
      cp_async_wait<0>();
      __syncthreads();  // this stage is there, and nobody reads the other one any more
      if (index + int(gridDim.y) < s.windows) {
        Window next = w;
        next.advance(s.grid, step);
        loads.start(shared.q[stage ^ 1], p.qkv, p.padding, s, next, next.whole(s.grid), of_head, stride);
      }
      cp_async_commit();

      float x[kTiles][4], top[2] = {kLowest, kLowest}, total[2] = {0.0f, 0.0f}, out[kHeadDim / 8][4] = {};
      row_products<T>(x, shared.q[stage], left, shared.k[stage]);
      bias.scores(x, s, w);
      raise(top, x);
      exponentials(x, top, total);
      column_products<T, kRows / kStep<T>>(out, [&](int i) { return left_of_sums<T>(x, i); }, shared.v[stage]);

      const float factor[2] = {reciprocal_fast(row_sum(total[0])), reciprocal_fast(row_sum(total[1]))};
      __syncwarp();  // the warp has read its rows of q
      rows.put(shared.q[stage], out, factor);
      __syncwarp();
      rows.store(shared.q[stage], p.out, rows.targets(s, p.out, w, w.whole(s.grid)), of_head);
    }
  }
};

// ---- Windows of any size ------------------------------------------------------------------------------------------------

// The block (head, share, block of queries), of at least one window. Keys come block by block, with an online softmax.
template <class T, int kHeadDim>
struct WindowAttentionForwardBlocks {
  static constexpr const char* kName = "window_attention_forward_blocks";
  static constexpr int kRows = block_of_tokens(kIsFloat32<T>, kHeadDim), kThreads = 2 * kRows, kTiles = kRows / 8;
  static constexpr int kBlocks = kThreads == 64 ? 4 : kHeadDim <= 64 ? 3 : 2, kStages = 2;
  using Tokens = Tile<T, kRows, kHeadDim>;
  using Params = ForwardParams;
  struct Shared {
    Tokens q[2], k[kStages], v[kStages];
    float table[kLargestTable];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Sizes& s = p.sizes;
    const int head = blockIdx.x, first = blockIdx.z * kRows, row = threadIdx.x / 32 * 16, left = row + left_row();
    const int blocks = gridDim.z, of_head = head * s.head_chunks * 16, stride = s.row_bytes;
    const TableBias<false> bias{shared.table};
    bias.template load<kThreads>(shared.table, s, p.bias_table, head);
    const WarpRows<Tokens, 0> rows(s, row, first);

    const auto load = [&](const Window& w, int block, int window_stage, int stage) {
      const auto part = [&](Tokens& tile, int first, int which) {
        load_tokens<kThreads>(tile, p.qkv, p.padding, s, w, first, s.head_chunks, of_head + which * stride);
      };
      if (block == 0) part(shared.q[window_stage], first, 0);
      part(shared.k[stage], block * kRows, 1);
      part(shared.v[stage], block * kRows, 2);
    };
    const Window step = Window::at(s.grid, gridDim.y);
    Window w = Window::at(s.grid, blockIdx.y), ahead = w;
    int window_stage = 0, stage = 0;
    load(w, 0, 0, 0);
    cp_async_commit();
    for (int index = blockIdx.y; index < s.windows; index += gridDim.y, window_stage ^= 1, w = ahead) {
      float top[2] = {kLowest, kLowest}, total[2] = {0.0f, 0.0f}, out[kHeadDim / 8][4] = {};
      for (int block = 0; block < blocks; ++block, stage ^= 1) {
        const bool last = block + 1 == blocks;  // of this window
        cp_async_wait<0>();
        __syncthreads();  // this stage is there, and nobody reads the other one any more
        if (last) ahead.advance(s.grid, step);
        if (!last || index + int(gridDim.y) < s.windows) load(ahead, last ? 0 : block + 1, window_stage ^ int(last), stage ^ 1);
        cp_async_commit();

        float x[kTiles][4], before[2] = {top[0], top[1]};
        row_products<T>(x, shared.q[window_stage], left, shared.k[stage]);
        bias.scores(x, s, w, first + row, block * kRows);
        raise(top, x);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float shrink = exp2_fast(before[i] - top[i]);
          total[i] *= shrink;
#pragma unroll
          for (int n = 0; n < kHeadDim / 8; ++n) out[n][2 * i] *= shrink, out[n][2 * i + 1] *= shrink;
        }
        exponentials(x, top, total);
        column_products<T, kRows / kStep<T>>(out, [&](int i) { return left_of_sums<T>(x, i); }, shared.v[stage]);
      }
      const float factor[2] = {reciprocal_fast(row_sum(total[0])), reciprocal_fast(row_sum(total[1]))};
      __syncwarp();  // the warp has read its rows of q
      rows.put(shared.q[window_stage], out, factor);
      __syncwarp();
      rows.store(s, shared.q[window_stage], p.out, w, s.head_chunks, of_head);
    }
  }
};

}  // namespace hifuse::cuda
