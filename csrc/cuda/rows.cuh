// Rows of numbers in registers: a group of lanes, 1 to all of a block of threads, holds a row, and each lane kRowChunks times
// eight of its numbers. How a row lies in its group depends on its width alone, and so does the order of sums over it.
#pragma once
#include <algorithm>
#include <cstdint>

#include "eight.cuh"

namespace hifuse::cuda {

inline constexpr int kRowThreads = 128, kRowChunks = 3, kWidestRow = kRowThreads * kRowChunks * 8;
using RowValues = float[kRowChunks][8];
using RowChunks = Eight[kRowChunks];

// A row is `parts` runs of `channels` numbers: the maps side by side, the pixels of a patch. A chunk is of one run.
struct RowShape {
  int parts, channels;
  int chunks;  // of a run
  int lanes;   // of a group, a power of two
  bool vectors;

  __host__ __device__ int width() const { return parts * channels; }
  __host__ __device__ int groups() const { return kRowThreads / lanes; }
};

// Whether a group can hold such a row: one of kWidestRow numbers or fewer, where runs are of whole chunks.
inline bool fits(int64_t parts, int64_t channels) { return parts * ((channels + 7) / 8) <= kRowThreads * kRowChunks; }
inline constexpr const char* kTooWide = "rows have more numbers than a block of threads holds";
inline constexpr const char* kTooMany = "the maps have more than 2^30 rows";
inline bool too_many(int64_t rows) { return rows > (int64_t(1) << 30); }

inline RowShape row_shape(int64_t parts, int64_t channels, bool vectors) {
  RowShape shape{static_cast<int>(parts), static_cast<int>(channels), static_cast<int>((channels + 7) / 8), 1, vectors};
  while (shape.lanes * kRowChunks < shape.parts * shape.chunks) shape.lanes *= 2;
  return shape;
}

// What of a row this thread holds: numbers `channel`.. of run `part`, `left` of them; none where that is not positive.
struct RowLane {
  int lane, group;
  int part[kRowChunks], channel[kRowChunks], left[kRowChunks];

  __device__ __forceinline__ explicit RowLane(const RowShape& s) : lane(threadIdx.x % s.lanes), group(threadIdx.x / s.lanes) {
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      const int chunk = lane + i * s.lanes;
      part[i] = chunk / s.chunks;
      channel[i] = chunk % s.chunks * 8;
      left[i] = part[i] < s.parts ? s.channels - channel[i] : 0;
    }
  }
  // Where chunk i lies in a row that is contiguous.
  __device__ __forceinline__ int column(const RowShape& s, int i) const { return part[i] * s.channels + channel[i]; }
};

// What warps of a group tell each other.
struct RowExchange {
  float sums[2][kRowThreads / 32][4];
};

// Sums over a group, for all of its lanes. All threads of the block take part.
class RowGroup {
 public:
  __device__ __forceinline__ RowGroup(const RowShape& s, RowExchange& shared) : lanes_(s.lanes), shared_(shared) {}

  template <int kCount>
  __device__ __forceinline__ void sum(float (&x)[kCount]) {
    for (int other = min(lanes_, 32) / 2; other > 0; other /= 2)
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] += __shfl_xor_sync(0xffffffffu, x[i], other);
    if (lanes_ <= 32) return;
    // The places of two sums take turns: whoever writes to one has passed the barrier behind which the other was read.
    const int warp = threadIdx.x / 32, warps = lanes_ / 32, first = warp / warps * warps;
    if (threadIdx.x % 32 == 0)
#pragma unroll
      for (int i = 0; i < kCount; ++i) shared_.sums[turn_][warp][i] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] = shared_.sums[turn_][first][i];
      for (int other = 1; other < warps; ++other) x[i] += shared_.sums[turn_][first + other][i];
    }
    turn_ ^= 1;
  }
  __device__ __forceinline__ float sum(float x) {
    float one[1] = {x};
    sum(one);
    return one[0];
  }

 private:
  int lanes_, turn_ = 0;
  RowExchange& shared_;
};

// A sum over the numbers of a row that this lane holds: `add(sum, i, j)` is the sum with number j of chunk i, which lies beyond
// the row for numbers that are zero.
template <class F>
__device__ __forceinline__ float lane_sum(const RowLane& l, const F& add) {
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowChunks; ++i) {
    float sum[2] = {0.0f, 0.0f};  // two sums, which err less than one
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j % 2] = add(sum[j % 2], i, j);
    total += l.left[i] > 0 ? sum[0] + sum[1] : 0.0f;
  }
  return total;
}

// (x - mean) / sqrt(var + eps) in place of x, and 1 / sqrt(var + eps), of kRows rows side by side. Chunks that hold nothing of
// the row are anything after.
//
// Centred twice: the rounding of the first mean, times 1 / sqrt(eps), would be seen in a row of equal values.
template <int kRows>
__device__ __forceinline__ void normalise(RowValues (&x)[kRows], float (&scale)[kRows], const RowShape& s, const RowLane& l,
                                          RowGroup& group, float eps) {
  const float count = static_cast<float>(s.width());
#pragma unroll
  for (int turn = 0; turn < 2; ++turn) {
    float mean[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) mean[k] = lane_sum(l, [&](float sum, int i, int j) { return sum + x[k][i][j]; });
    group.sum(mean);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      mean[k] /= count;
#pragma unroll
      for (int i = 0; i < kRowChunks; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) x[k][i][j] = s.vectors || j < l.left[i] ? x[k][i][j] - mean[k] : 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kRows; ++k)
    scale[k] = lane_sum(l, [&](float sum, int i, int j) { return fmaf(x[k][i][j], x[k][i][j], sum); });
  group.sum(scale);
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    scale[k] = rsqrtf(scale[k] / count + eps);
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) x[k][i][j] *= scale[k];
  }
}

// A number of each place of a row, for all groups of a block: a weight, a bias. In halves of chunks, which lie in banks of
// their own. The threads that read them stand behind a barrier.
struct RowParameters {
  float4 half[2][kRowThreads * kRowChunks];

  __device__ __forceinline__ void load(const Typed& tensor, const RowShape& s) {
    for (int chunk = threadIdx.x; chunk < s.parts * s.chunks; chunk += kRowThreads) {
      const int channel = chunk % s.chunks * 8;
      float x[8];
      load_eight(x, tensor, chunk / s.chunks * s.channels + channel, s.channels - channel, s.vectors);
      half[0][chunk] = float4{x[0], x[1], x[2], x[3]};
      half[1][chunk] = float4{x[4], x[5], x[6], x[7]};
    }
  }
  // Those of chunk i of a lane; where that holds nothing of the row, those of another one.
  __device__ __forceinline__ void get(float (&x)[8], const RowShape& s, const RowLane& l, int i) const {
    const int chunk = l.left[i] > 0 ? l.lane + i * s.lanes : 0;
    const float4 a = half[0][chunk], b = half[1][chunk];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  }
};

// Adds what the groups of a block have of each number of a row. All threads take part; the sums of chunk i go to out(i), unless
// that is null.
struct RowSums {
  float sums[kRowThreads / 32][kRowChunks * 8][32];

  template <class Out>
  __device__ __forceinline__ void store(RowValues& x, const RowShape& s, const RowLane& l, const Out& out) {
    constexpr int kWarps = kRowThreads / 32;
    for (int other = s.lanes; other < 32; other *= 2)
#pragma unroll
      for (int i = 0; i < kRowChunks; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] += __shfl_xor_sync(0xffffffffu, x[i][j], other);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = max(s.lanes / 32, 1);
    __syncthreads();  // what lay here has been read
#pragma unroll
    for (int i = 0; i < kRowChunks * 8; ++i) sums[warp][i][lane] = x[i / 8][i % 8];
    __syncthreads();
    if (l.group > 0) return;
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      float* const to = l.left[i] > 0 ? out(i) : nullptr;
      if (!to) continue;
#pragma unroll 1
      for (int j = 0; j < min(l.left[i], 8); ++j) {
        float sum = 0.0f;
        for (int other = warp; other < kWarps; other += warps) sum += sums[other][8 * i + j][lane];
        to[j] = sum;
      }
    }
  }
};

}  // namespace hifuse::cuda
