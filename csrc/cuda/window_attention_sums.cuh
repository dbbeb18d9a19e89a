// Sums of the backward over windows, in an order that does not depend on anything but the launch: each block of threads writes
// its own part, and a last kernel adds the parts up (sum_of_parts.h).
#pragma once
#include <launch.cuh>

#include "window_attention_scores.cuh"

namespace hifuse::cuda {

struct BackwardParams {
  Sizes sizes;
  Read grad, qkv;
  const float* bias_table;
  const unsigned char* padding;  // as in the forward
  Written grad_qkv;
  bool need_map;         // else the table's gradient alone is wanted
  float* table_parts;    // [parts, entries, heads], or null
  float* padding_parts;  // [parts, 3C], or null
  float* statistics;     // see window_attention_backward_blocks.cuh
  float4* bias_sums;
};

// The part of the table's gradient that queries first.. + count of a head's windows have: element(query - first, key) are the
// gradients of their position biases.
template <int kWindow, int kThreads, class Element>
__device__ __forceinline__ void sum_of_entries(const Sizes& s, float* part, int head, int first, int count,
                                               const Element& element) {
  const int side = side_of<kWindow>(s), width = 2 * side - 1;
  for (int entry = threadIdx.x; entry < width * width; entry += kThreads) {
    const int dy = entry / width - (side - 1), dx = entry % width - (side - 1);
    float total = 0.0f;
    for (int y = max(dy, 0); y < min(side + dy, side); ++y) {
      float of_row = 0.0f;  // rows first: one sum of all would round as often as it has summands
      for (int x = max(dx, 0); x < min(side + dx, side); ++x) {
        const int query = y * side + x - first;
        if (query >= 0 && query < count) of_row += element(query, (y - dy) * side + x - dx);
      }
      total += of_row;
    }
    part[entry * s.heads + head] = total;
  }
}

// What padded tokens have of the gradients of q, k and v in a block of threads: sums of a warp, kParts of kHeadDim, in shared
// memory.
template <int kWarps, int kParts, int kHeadDim>
struct PaddedSums {
  float sums[kWarps][kParts][kHeadDim];

  __device__ __forceinline__ void clear() {  // before a barrier
    for (int i = threadIdx.x; i < kWarps * kParts * kHeadDim; i += kWarps * 32) (&sums[0][0][0])[i] = 0.0f;
  }

  // Adds the rows of accumulators, times `factor`, that are padded; `token` is the warp's first row.
  template <int kWindow>
  __device__ __forceinline__ void add(const Sizes& s, const Window& w, int token, int part, const float (&x)[kHeadDim / 8][4],
                                      float factor) {
    const int lane = threadIdx.x % 32;
    float weight[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = token + lane / 4 + 8 * i;
      weight[i] = at < tokens_of<kWindow>(s) && !place_of<kWindow>(s, w, at).on_map(s.grid) ? factor : 0.0f;
    }
    float* const mine = &sums[threadIdx.x / 32][part][lane % 4 * 2];
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float sum = (weight[0] != 0.0f ? x[n][j] * weight[0] : 0.0f) + (weight[1] != 0.0f ? x[n][2 + j] * weight[1] : 0.0f);
        sum += __shfl_xor_sync(0xffffffffu, sum, 4);
        sum += __shfl_xor_sync(0xffffffffu, sum, 8);
        sum += __shfl_xor_sync(0xffffffffu, sum, 16);
        if (lane < 4) mine[8 * n + j] += sum;
      }
  }

  // To [3C], for the head's channels of q, k and v from part `first` on; after a barrier.
  __device__ __forceinline__ void store(const Sizes& s, float* out, int head, int first) const {
    for (int i = threadIdx.x; i < kParts * kHeadDim; i += kWarps * 32) {
      if (i % kHeadDim >= s.head_dim) continue;
      float total = 0.0f;
      for (int warp = 0; warp < kWarps; ++warp) total += sums[warp][i / kHeadDim][i % kHeadDim];
      out[(first + i / kHeadDim) * s.channels + head * s.head_dim + i % kHeadDim] = total;
    }
  }
};

}  // namespace hifuse::cuda
