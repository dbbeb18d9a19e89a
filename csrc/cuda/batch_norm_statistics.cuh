// The statistics of batch normalisation: the mean and the variance of each channel, by parts of the pixels that are merged.
#pragma once
#include <launch.cuh>

#include "columns.cuh"
#include "rows.cuh"

namespace hifuse::cuda {

// Pixels go to blocks of threads in shares, a tile at a time.
struct PixelShares {
  int rows, channels;
  bool vectors;
};

// Count, mean, and sum of squared differences from it, of numbers that were met so far. The mean is a sum of two: rounded to
// one, a mean of 10000 would cost the differences between means three digits.
template <class T>
struct Moments {
  T count, mean, low, squares;

  // Those of other numbers; `share` is their count over that of all.
  __device__ __forceinline__ void merge(T more, T other_mean, T other_low, T other_squares, T share) {
    const T high = other_mean - mean, rest = other_low - low, delta = high + rest, step = high * share;
    squares += other_squares + delta * delta * (count * share);
    const T sum = mean + step;
    low += rest * share + (step - (sum - mean));
    mean = sum;
    count += more;
  }
  __device__ __forceinline__ void merge(const Moments& other) {
    const T all = count + other.count;
    merge(other.count, other.mean, other.low, other.squares, all > T(0) ? other.count / all : T(0));
  }
};

// The block (slice, share). A thread takes four pixels at a time, whose statistics are those of numbers in registers.
struct BatchNormStatistics {
  static constexpr const char* kName = "batch_norm_statistics";
  static constexpr int kThreads = kColumnThreads, kBlocks = 4, kWarps = kThreads / 32, kTile = 4;
  struct Params {
    PixelShares shape;
    Typed x;
    float* parts;  // [4, shares, channels]: as Moments
  };
  struct Shared {
    Moments<float> moments[kWarps][kColumnChannels];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const PixelShares& s = p.shape;
    const Column c(blockIdx.x, s.channels);
    Moments<float> moments[8] = {};
    float count = 0.0f;
    for (int64_t first = int64_t(blockIdx.y) * kTile * kColumnRows + c.row; first < s.rows;
         first += int64_t(gridDim.y) * kTile * kColumnRows) {
      float x[kTile][8], more = 0.0f;
#pragma unroll
      for (int k = 0; k < kTile; ++k) {
        const int64_t row = first + k * kColumnRows;
        load_eight(x[k], p.x, row * s.channels + c.channel, row < s.rows ? c.left : 0, s.vectors);
        more += row < s.rows ? 1.0f : 0.0f;
      }
      const float each = 1.0f / more, share = more / (count + more);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float sum = 0.0f, missed = 0.0f, tile_squares = 0.0f;
#pragma unroll
        for (int k = 0; k < kTile; ++k) sum += x[k][j];
        const float about = sum * each;
#pragma unroll
        for (int k = 0; k < kTile; ++k) {
          const float centred = first + k * kColumnRows < s.rows ? x[k][j] - about : 0.0f;
          missed += centred;
          tile_squares = fmaf(centred, centred, tile_squares);
        }
        missed *= each;  // by rounding the mean
        moments[j].count = count;
        moments[j].merge(more, about, missed, fmaxf(tile_squares - missed * missed * more, 0.0f), share);
      }
      count += more;
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      Moments<float> m = moments[j];
#pragma unroll
      for (int other = kColumnLanes; other < 32; other *= 2)
        m.merge({__shfl_xor_sync(0xffffffffu, m.count, other), __shfl_xor_sync(0xffffffffu, m.mean, other),
                 __shfl_xor_sync(0xffffffffu, m.low, other), __shfl_xor_sync(0xffffffffu, m.squares, other)});
      if (lane < kColumnLanes) shared.moments[warp][lane * 8 + j] = m;
    }
    __syncthreads();
    if (warp > 0 || c.first + lane >= s.channels) return;
    Moments<float> m = shared.moments[0][lane];
    for (int other = 1; other < kWarps; ++other) m.merge(shared.moments[other][lane]);
    const int64_t size = int64_t(gridDim.y) * s.channels, at = int64_t(blockIdx.y) * s.channels + c.first + lane;
    p.parts[at] = m.count;
    p.parts[size + at] = m.mean;
    p.parts[2 * size + at] = m.low;
    p.parts[3 * size + at] = m.squares;
  }
};

// A block has 32 channels, and a warp of it a run of the shares. In float64.
struct BatchNormMerge {
  static constexpr const char* kName = "batch_norm_merge";
  static constexpr int kThreads = 256, kBlocks = 4, kWarps = kThreads / 32;
  struct Params {
    const float* parts;
    int shares, channels;
    float* mean;
    float* var;
  };
  struct Shared {
    Moments<double> moments[kWarps][32];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, channel = blockIdx.x * 32 + lane;
    const int run = (p.shares + kWarps - 1) / kWarps, end = min((warp + 1) * run, p.shares);
    const int64_t size = int64_t(p.shares) * p.channels;
    Moments<double> m{};
    if (channel < p.channels)
#pragma unroll 4
      for (int share = warp * run; share < end; ++share) {
        const int64_t at = int64_t(share) * p.channels + channel;
        m.merge({p.parts[at], p.parts[size + at], p.parts[2 * size + at], p.parts[3 * size + at]});
      }
    shared.moments[warp][lane] = m;
    __syncthreads();
    if (warp > 0 || channel >= p.channels) return;
    for (int other = 1; other < kWarps; ++other) m.merge(shared.moments[other][lane]);
    p.mean[channel] = static_cast<float>(m.mean + m.low);
    p.var[channel] = static_cast<float>(m.squares / (m.count > 0.0 ? m.count : 1.0));
  }
};

}  // namespace hifuse::cuda
