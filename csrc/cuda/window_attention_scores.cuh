// Scores of window attention: scale q k^T + position bias + mask, in units of log2.
//
// The bias is the same in all windows of a head. Where a window is one block of tokens of a known size, its elements stay in
// registers from window to window, and what the mask may part is two words of bits. Else the head's table lies in shared
// memory.
#pragma once
#include <cmath>

#include "window_attention_windows.cuh"

namespace hifuse::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kMask = -100.0f * kLog2e;
inline constexpr int kLargestWindow = 16, kLargestTable = (2 * kLargestWindow - 1) * (2 * kLargestWindow - 1);

// Entry of the table for a query and a key is code(query) - code(key) + that of the offset 0.
template <int kWindow>
__device__ __forceinline__ int bias_code(const Sizes& s, int token) {
  return token + row_of<kWindow>(s, token) * (side_of<kWindow>(s) - 1);
}
template <int kWindow>
__device__ __forceinline__ int bias_center(const Sizes& s) {
  return kWindow ? 2 * kWindow * (kWindow - 1) : s.bias_center;
}

// The region of a token in a window that both axes split: 2 for the lower part, 1 for the right one.
template <int kWindow>
__device__ __forceinline__ int region_of(const Sizes& s, int token) {
  const int side = side_of<kWindow>(s), row = row_of<kWindow>(s, token), edge = side - s.grid.rows.shift;
  return 2 * int(row >= edge) + int(token - row * side >= edge);
}

// Windows of kWindow x kWindow tokens: the bias of a thread's accumulators, kTiles tiles of keys. `row` is the first row of the
// warp.
template <int kWindow, int kTiles>
struct WindowBias {
  static constexpr int kTokens = kWindow * kWindow;
  static_assert(kTiles * 4 <= 32, "a bit for each accumulator");

  float bias[kTiles][4];
  uint32_t apart[2];  // bits of accumulators whose query and key the seam of columns parts, and that of rows

  __device__ __forceinline__ WindowBias(const Sizes& s, const float* table, int head, int row) {
    const int lane = threadIdx.x % 32;
    apart[0] = apart[1] = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = min(row + lane / 4 + i / 2 * 8, kTokens - 1), key = 8 * n + lane % 4 * 2 + i % 2;
        const int entry = bias_code<kWindow>(s, query) - bias_code<kWindow>(s, key) + bias_center<kWindow>(s);
        bias[n][i] = key < kTokens ? table[entry * s.heads + head] * kLog2e : -INFINITY;
        const int parted = key < kTokens ? region_of<kWindow>(s, query) ^ region_of<kWindow>(s, key) : 0;
        apart[0] |= uint32_t(parted & 1) << (4 * n + i);
        apart[1] |= uint32_t(parted >> 1) << (4 * n + i);
      }
  }

  // Of products q k^T, in their place.
  __device__ __forceinline__ void scores(float (&x)[kTiles][4], const Sizes& s, const Window& w) const {
    const float scale = s.scale * kLog2e;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[n][i] = fmaf(x[n][i], scale, bias[n][i]);
    const int seams = w.seams(s.grid);
    if (seams == 0) return;
    const uint32_t parted = (seams & 1 ? apart[0] : 0u) | (seams & 2 ? apart[1] : 0u);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (parted >> (4 * n + i) & 1) x[n][i] += kMask;
  }
};

// Any window: rows of the accumulators are queries and columns keys, or with kKeyRows the other way round.
template <bool kKeyRows>
struct TableBias {
  const float* table;  // in shared memory, of the head

  // Brings the table of a head to shared memory; there after a barrier.
  template <int kThreads>
  static __device__ __forceinline__ void load(float* shared, const Sizes& s, const float* table, int head) {
    const int entries = 2 * bias_center<0>(s) + 1;
    for (int i = threadIdx.x; i < entries; i += kThreads) shared[i] = table[i * s.heads + head] * kLog2e;
  }

  // Of products in their place; `row` and `column` are tokens, those of the warp's first row and of the first tile. -inf for
  // columns beyond the window.
  template <int kTiles>
  __device__ __forceinline__ void scores(float (&x)[kTiles][4], const Sizes& s, const Window& w, int row, int column) const {
    const int lane = threadIdx.x % 32, tokens = tokens_of<0>(s), center = bias_center<0>(s), seams = w.seams(s.grid);
    const float scale = s.scale * kLog2e;
    int code[2], region[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = min(row + lane / 4 + 8 * i, tokens - 1);
      code[i] = bias_code<0>(s, token), region[i] = region_of<0>(s, token);
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = column + 8 * n + lane % 4 * 2 + j, token = min(at, tokens - 1);
        const int of_column = bias_code<0>(s, token), its_region = region_of<0>(s, token);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int entry = center + (kKeyRows ? of_column - code[i] : code[i] - of_column);
          const float mask = (region[i] ^ its_region) & seams ? kMask : 0.0f;
          x[n][2 * i + j] = at < tokens ? fmaf(x[n][2 * i + j], scale, table[entry]) + mask : -INFINITY;
        }
      }
  }
};

// ---- Softmax ------------------------------------------------------------------------------------------------------------

inline constexpr float kLowest = -3.0e38f;  // before the first score of a row; what a score of -inf lies below

// The largest of each row so far, `top` before.
template <int kTiles>
__device__ __forceinline__ void raise(float (&top)[2], const float (&x)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], x[n][i]);
  top[0] = row_max(top[0]), top[1] = row_max(top[1]);
}

// exp(x - largest of the row) in place, and what the thread has of the row's sum. Weights below 2^-126 are zero.
template <int kTiles>
__device__ __forceinline__ void exponentials(float (&x)[kTiles][4], const float (&top)[2], float (&total)[2]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[n][i] = exp2_fast(x[n][i] - top[i / 2]);
      total[i / 2] += x[n][i];
    }
}

}  // namespace hifuse::cuda
