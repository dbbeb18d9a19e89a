// The gates of the fusion, of the largest values and means of a map.
#include <climits>
#include <launch.cuh>

#include "eight.cuh"
#include "rows.cuh"

namespace hifuse::cuda {

__device__ __forceinline__ float sigma(float z) { return 1.0f / (1.0f + expf(-z)); }

// A thread has a pixel, and takes its 49 neighbours one by one, as the threads beside it do, from the cache.
struct PixelGatesKernel {
  static constexpr const char* kName = "pixel_gates";
  static constexpr int kThreads = 128, kBlocks = 8, kSide = 7, kReach = kSide / 2;
  struct Params {
    int pixels, height, width;
    Typed statistics;
    const float *filters, *bias;
    float* gates;
  };
  struct Shared {
    float filters[kSide * kSide * 2];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    for (int i = threadIdx.x; i < kSide * kSide * 2; i += kThreads) shared.filters[i] = p.filters[i];
    __syncthreads();
    const int pixel = blockIdx.x * kThreads + threadIdx.x;
    if (pixel >= p.pixels) return;
    const int x = pixel % p.width, y = pixel / p.width % p.height;
    float total = 0.0f;
#pragma unroll 1
    for (int dy = -kReach; dy <= kReach; ++dy) {
      if (y + dy < 0 || y + dy >= p.height) continue;
#pragma unroll
      for (int dx = -kReach; dx <= kReach; ++dx) {
        if (x + dx < 0 || x + dx >= p.width) continue;
        const int64_t at = 2 * (pixel + int64_t(dy) * p.width + dx);
        const int tap = 2 * (kSide * (dy + kReach) + dx + kReach);
        total = fmaf(load_one(p.statistics, at), shared.filters[tap], total);
        total = fmaf(load_one(p.statistics, at + 1), shared.filters[tap + 1], total);
      }
    }
    p.gates[pixel] = sigma(total + p.bias[0]);
  }
};

// A block squeezes both vectors of an image, which is little, and expands kThreads channels. A warp takes each kWarps-th unit.
struct ChannelGatesKernel {
  static constexpr const char* kName = "channel_gates";
  static constexpr int kThreads = 128, kBlocks = 8, kWarps = kThreads / 32, kMost = 1024;
  struct Params {
    int channels, squeezed;
    bool twice;
    Typed statistics;
    const float *squeeze, *expand;
    float* gates;
  };
  struct Shared {
    float squeezed[kMost];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const int blocks = (p.channels + kThreads - 1) / kThreads, image = blockIdx.x / blocks;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t first = 2 * int64_t(image) * p.channels;
    for (int unit = warp; unit < p.squeezed; unit += kWarps) {
      float of_largest = 0.0f, of_mean = 0.0f;
      for (int channel = lane; channel < p.channels; channel += 32) {
        const float weight = p.squeeze[int64_t(unit) * p.channels + channel];
        of_largest = fmaf(weight, load_one(p.statistics, first + channel), of_largest);
        of_mean = fmaf(weight, load_one(p.statistics, first + p.channels + channel), of_mean);
      }
      for (int other = 16; other > 0; other /= 2) {
        of_largest += __shfl_xor_sync(0xffffffffu, of_largest, other);
        of_mean += __shfl_xor_sync(0xffffffffu, of_mean, other);
      }
      // NaN stays NaN.
      if (lane == 0) shared.squeezed[unit] = (of_largest <= 0.0f ? 0.0f : of_largest) + (of_mean <= 0.0f ? 0.0f : of_mean);
    }
    __syncthreads();
    const int channel = blockIdx.x % blocks * kThreads + threadIdx.x;
    if (channel >= p.channels) return;
    float total = 0.0f;
    for (int unit = 0; unit < p.squeezed; ++unit)
      total = fmaf(p.expand[int64_t(channel) * p.squeezed + unit], shared.squeezed[unit], total);
    const float gate = sigma(total);
    p.gates[int64_t(image) * p.channels + channel] = p.twice ? sigma(gate) : gate;
  }
};

const char* pixel_gates(const PixelGates& op, float* gates, void* stream) {
  const int64_t pixels = op.batch * op.height * op.width;
  if (too_many(pixels)) return kTooMany;
  using Kernel = PixelGatesKernel;
  return launch<Kernel>(dim3(static_cast<unsigned>((pixels + Kernel::kThreads - 1) / Kernel::kThreads)),
                        {static_cast<int>(pixels), static_cast<int>(op.height), static_cast<int>(op.width), op.statistics,
                         op.filters, op.bias, gates},
                        stream);
}

const char* channel_gates(const ChannelGates& op, float* gates, void* stream) {
  using Kernel = ChannelGatesKernel;
  const int64_t blocks = op.batch * ((op.channels + Kernel::kThreads - 1) / Kernel::kThreads);
  if (op.squeezed > Kernel::kMost) return "gates are squeezed to more than 1024 units";
  if (blocks > INT_MAX) return kTooMany;
  return launch<Kernel>(
      dim3(static_cast<unsigned>(blocks)),
      {static_cast<int>(op.channels), static_cast<int>(op.squeezed), op.twice, op.statistics, op.squeeze, op.expand, gates},
      stream);
}

}  // namespace hifuse::cuda
