// Columns of a map: a block of threads has 32 channels, of which a thread takes eight, and walks over pixels side by side. So
// sums over pixels are sums of a thread first.
#pragma once
#include "eight.cuh"

namespace hifuse::cuda {

inline constexpr int kColumnThreads = 128, kColumnLanes = 4, kColumnRows = kColumnThreads / kColumnLanes, kColumnChannels = 32;

inline int64_t slices_of(int64_t channels) { return (channels + kColumnChannels - 1) / kColumnChannels; }

// The channels of a thread in slice `slice`: `left` from `channel` on; none where that is not positive.
struct Column {
  int first, channel, left, row;

  __device__ __forceinline__ Column(int slice, int channels)
      : first(slice * kColumnChannels),
        channel(first + threadIdx.x % kColumnLanes * 8),
        left(channels - channel),
        row(threadIdx.x / kColumnLanes) {}
};

// Sums over the threads of a block, of kSums numbers of each channel.
template <int kSums>
struct ColumnSums {
  float sums[kColumnThreads / 32][kSums][kColumnChannels];

  // Sum i of channel 0 goes to out(i).
  template <class Out>
  __device__ __forceinline__ void store(const float (&x)[kSums][8], const Column& c, int channels, const Out& out) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kSums; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float sum = x[i][j];
#pragma unroll
        for (int other = kColumnLanes; other < 32; other *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
        if (lane < kColumnLanes) sums[warp][i][lane * 8 + j] = sum;
      }
    __syncthreads();
    for (int k = threadIdx.x; k < kSums * kColumnChannels; k += kColumnThreads) {
      const int i = k / kColumnChannels, at = k % kColumnChannels;
      if (c.first + at >= channels) continue;
      float sum = sums[0][i][at];
      for (int other = 1; other < kColumnThreads / 32; ++other) sum += sums[other][i][at];
      out(i)[c.first + at] = sum;
    }
  }
};

}  // namespace hifuse::cuda
