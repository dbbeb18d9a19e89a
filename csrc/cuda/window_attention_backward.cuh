// The backward of window attention where a window is one block of tokens. A warp owns 16 queries: it computes their weights p
// again, dp = do v^T, ds = p (dp - sum of p dp) and dq = ds k. Then it owns 16 keys: dv = p^T do and dk = ds^T q, with p and ds
// of all warps out of shared memory. The gradient of the position bias, the sum of ds over windows, stays in registers.
#pragma once
#include "window_attention_sums.cuh"

namespace hifuse::cuda {

// The block (head, share), of at least one window. Rows of the tiles beyond the window are zero; as left operands, the last
// token stands for them, whose rows of p and ds are finite where its own are, and meet zeros in the products with do and q.
template <class T, int kHeadDim, int kWindow>
struct WindowAttentionBackwardWhole {
  static constexpr const char* kName = "window_attention_backward";
  static constexpr int kThreads = 128, kBlocks = 3, kStages = 2;
  static constexpr int kTokens = kWindow * kWindow, kRows = kThreads / 2, kTiles = (kTokens + 7) / 8, kOut = kHeadDim / 8;
  static constexpr int kSteps = kRows / kStep<T>;
  static_assert(kTokens > kRows - 16 && kTokens <= kRows);
  using Tokens = Tile<T, kRows, kHeadDim>;
  using Pairs = Tile<T, kRows, kRows>;  // query, key
  using QkvLoads = WindowLoads<Tokens, kWindow, kThreads, 3, kStages>;
  using GradLoads = WindowLoads<Tokens, kWindow, kThreads, 1, kStages>;
  using Params = BackwardParams;
  struct Shared {
    union {
      struct {
        Tokens q[kStages], k[kStages], v[kStages], grad[kStages];
        Pairs p, ds;
      };
      float bias[kRows][8 * kTiles];  // after the last window
    };
    PaddedSums<kThreads / 32, 3, kHeadDim> padded;
  };

  static __device__ __forceinline__ void put(Pairs& pairs, int row, const float (&x)[kTiles][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      unsigned char* pair = pairs.pair(row + lane / 4, 8 * n + lane % 4 * 2);
      Pairs::write(pair, x[n][0], x[n][1]);
      Pairs::write(pair + Pairs::kEightRows, x[n][2], x[n][3]);
    }
  }

  // p and ds of the warp's queries, out of products x = q k^T and y = do v^T, in their place.
  static __device__ __forceinline__ void gradients(float (&x)[kTiles][4], float (&y)[kTiles][4]) {
    float top[2] = {kLowest, kLowest}, total[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f};
    raise(top, x);
    exponentials(x, top, total);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) delta[i / 2] = fmaf(x[n][i], y[n][i], delta[i / 2]);
    float inverse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) inverse[i] = reciprocal_fast(row_sum(total[i])), delta[i] = row_sum(delta[i]) * inverse[i];
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[n][i] *= inverse[i / 2];
        y[n][i] = x[n][i] * (y[n][i] - delta[i / 2]);
      }
  }

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Sizes& s = p.sizes;
    const int head = blockIdx.x, row = threadIdx.x / 32 * 16, left = min(row + left_row(), kTokens - 1);
    const int of_head = head * kHeadDim * int(sizeof(T)), stride = s.row_bytes;
    clear_rows<kTokens, kThreads>(shared.q, 4 * kStages);
    clear_columns(shared.p);
    clear_columns(shared.ds);
    shared.padded.clear();
    const WindowBias<kWindow, kTiles> bias(s, p.bias_table, head, row);
    const QkvLoads qkv_loads(p.qkv, of_head, stride);
    const GradLoads grad_loads(p.grad, of_head, stride);
    const WarpRowsOfWhole<Tokens, kWindow> rows(s, row);
    float dbias[kTiles][4] = {};

    const auto load = [&](const Window& w, bool whole, int stage) {
      qkv_loads.start(shared.q[stage], p.qkv, p.padding, s, w, whole, of_head, stride);
      grad_loads.start(shared.grad[stage], p.grad, nullptr, s, w, whole, of_head, stride);
    };
    const Window step = Window::at(s.grid, gridDim.y);
    Window w = Window::at(s.grid, blockIdx.y);
    int stage = 0;
    load(w, w.whole(s.grid), 0);
    cp_async_commit();
    for (int index = blockIdx.y; index < s.windows; index += gridDim.y, stage ^= 1, w.advance(s.grid, step)) {
      cp_async_wait<0>();
      __syncthreads();  // this stage is there, and nobody reads the other one, p or ds any more
      if (index + int(gridDim.y) < s.windows) {
        Window next = w;
        next.advance(s.grid, step);
        load(next, next.whole(s.grid), stage ^ 1);
      }
      cp_async_commit();
      const bool whole = w.whole(s.grid);

      float x[kTiles][4], ds[kTiles][4], dq[kOut][4] = {};
      row_products<T>(x, shared.q[stage], left, shared.k[stage]);
      bias.scores(x, s, w);
      row_products<T>(ds, shared.grad[stage], left, shared.v[stage]);
      gradients(x, ds);
      put(shared.p, row, x);
      put(shared.ds, row, ds);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) dbias[n][i] += ds[n][i];
      if (!p.need_map) continue;
      column_products<T, kSteps>(dq, [&](int i) { return left_of_sums<T>(ds, i); }, shared.k[stage]);
      __syncthreads();  // p and ds are there, and nobody reads k and v any more

      float dv[kOut][4] = {}, dk[kOut][4] = {};
      column_products<T, kSteps>(
          dv, [&](int i) { return left_of_columns<T>(shared.p, i * kStep<T>, row); }, shared.grad[stage]);
      column_products<T, kSteps>(dk, [&](int i) { return left_of_columns<T>(shared.ds, i * kStep<T>, row); }, shared.q[stage]);
      if (p.padding_parts && !whole) {
        shared.padded.template add<kWindow>(s, w, row, 0, dq, s.scale);
        shared.padded.template add<kWindow>(s, w, row, 1, dk, s.scale);
        shared.padded.template add<kWindow>(s, w, row, 2, dv, 1.0f);
      }
      // By way of the warp's own rows of k and v.
      const float scale[2] = {s.scale, s.scale}, one[2] = {1.0f, 1.0f};
      const auto targets = rows.targets(s, p.grad_qkv, w, whole);
      rows.put(shared.k[stage], dq, scale);
      rows.put(shared.v[stage], dv, one);
      __syncwarp();
      rows.store(shared.k[stage], p.grad_qkv, targets, of_head);
      rows.store(shared.v[stage], p.grad_qkv, targets, of_head + 2 * stride);
      __syncwarp();
      rows.put(shared.k[stage], dk, scale);
      __syncwarp();
      rows.store(shared.k[stage], p.grad_qkv, targets, of_head + stride);
    }

    __syncthreads();
    const int lane = threadIdx.x % 32;
    if (p.padding_parts) shared.padded.store(s, p.padding_parts + int64_t(blockIdx.y) * 3 * s.channels, head, 0);
    if (!p.table_parts) return;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) shared.bias[row + lane / 4 + i / 2 * 8][8 * n + lane % 4 * 2 + i % 2] = dbias[n][i];
    __syncthreads();
    const int entries = 2 * bias_center<kWindow>(s) + 1;
    sum_of_entries<kWindow, kThreads>(s, p.table_parts + int64_t(blockIdx.y) * entries * s.heads, head, 0, kTokens,
                                      [&](int query, int key) { return shared.bias[query][key]; });
  }

 private:
  // Zeros for keys that no accumulator is of.
  static __device__ __forceinline__ void clear_columns(Pairs& pairs) {
    constexpr int kEach = Pairs::kChunks - kTiles;
    for (int i = threadIdx.x; i < kRows * kEach; i += kThreads) pairs.at(i / kEach, kTiles + i % kEach) = uint4{0, 0, 0, 0};
  }
};

}  // namespace hifuse::cuda
