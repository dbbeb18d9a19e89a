// The dense mixer on sm_90a: a product of pixels with the weight, over nine taps and all channels. The taps are the map itself,
// shifted: the copy engine finds the pixels, and zeros where there are none.
//
// A block computes 128 pixels by 288 results, each of its warpgroups half of the results. 288 divides all widths of HiFuse.
#pragma once
#include "product_sm90.cuh"

namespace hifuse::cuda {

struct MixerParams {
  TensorMap z, weight;
  Finish finish;
  int height, width, column_tiles, tiles;
};

// Channels are taken kRound at a time, of which the number is a multiple. Where a round ends in half a slab, the other half of
// the weight is the next tap's, and stays out of the product.
template <class T, int kRound>
struct MixerKernel {
  static constexpr const char* kName = "mixer_sm90";
  static constexpr int kReaders = 2, kThreads = (1 + kReaders) * kWarpgroup, kBlocks = 1, kStages = 4;
  static constexpr int kWide = 144, kColumns = kReaders * kWide;  // of a warpgroup, of a block
  static constexpr int kM = 2, kRows = kM * kRowsOfWarpgroup, kTaps = 9;
  struct Step {
    Slab<kRows> pixels;
    Slab<kWide> weight[kReaders];
  };
  using Params = MixerParams;
  struct Shared {
    Ring<Step, kStages, kReaders> ring;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) { run_warpgroups<MixerKernel>(p, shared); }

  static __device__ __forceinline__ int first_row(const Params& p, int tile) { return tile / p.column_tiles * kRows; }
  static __device__ __forceinline__ int first_column(const Params& p, int tile) { return tile % p.column_tiles * kColumns; }

  static __device__ __forceinline__ void copy(const Params& p, Shared& shared) {
    Writer<Step, kStages, kReaders> writer{shared.ring};
    const int channels = p.finish.columns;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
      const int row = first_row(p, tile), line = row / p.width, column = first_column(p, tile);
      for (int c = 0; c < channels; c += kRound)
        for (int tap = 0; tap < kTaps; ++tap)
          for (int i = c; i < c + kRound; i += kSlab)
            writer.fill(sizeof(Step), [&](Step& step, uint64_t* full) {
              copy_pixels(step.pixels.bytes, &p.z, i, row % p.width - 1, line % p.height - 1, line / p.height, tap % 3, tap / 3,
                          full);
              for (int half = 0; half < kReaders; ++half)
                copy_tile(step.weight[half].bytes, &p.weight, tap * channels + i, column + half * kWide, full);
            });
    }
  }

  static __device__ __forceinline__ void multiply(const Params& p, Shared& shared) {
    Reader<Step, kStages, kReaders> reader{shared.ring};
    const int own = int(threadIdx.x) / kWarpgroup - 1, channels = p.finish.columns;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
      float sums[kM][kWide / 2] = {};
      for (int c = 0; c < channels; c += kRound)
        for (int tap = 0; tap < kTaps; ++tap)
#pragma unroll
          for (int i = 0; i < kRound; i += kSlab)
            reader.multiply([&](Step& step) {
#pragma unroll
              for (int k = 0; k < kSlab && i + k < kRound; k += kProductDepth)
#pragma unroll
                for (int m = 0; m < kM; ++m)
                  wgmma<T, kWide>(sums[m], describe(step.pixels.row(m * kRowsOfWarpgroup), k),
                                  describe(step.weight[own].bytes, k), true);
            });
      reader.finish();
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        settle(sums[m]);
        finish<T, kWide, Activation::gelu>(p.finish, sums[m], first_row(p, tile) + m * kRowsOfWarpgroup,
                                           first_column(p, tile) + own * kWide);
      }
    }
  }
};

}  // namespace hifuse::cuda
