// Both ends of the frozen network: the patches of images, the mean over pixels, the result as float32.
#include <launch.cuh>

#include "columns.cuh"
#include "ends.h"
#include "rows.cuh"

namespace hifuse::cuda {

inline constexpr int kPatchSide = 4;

// A thread has four pixels of a row of an image, which lie side by side in a patch. Threads side by side have patches side by
// side: they read what is.
struct StemPatchesKernel {
  static constexpr const char* kName = "stem_patches";
  static constexpr int kThreads = 256, kBlocks = 8;
  struct Params {
    Typed images;
    int64_t strides[4];
    TypedResult out;
    int64_t count;  // of runs of four
    int height, width, in_chans, image_height, image_width;
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= p.count) return;
    const int x = static_cast<int>(i % p.width);
    int64_t rest = i / p.width;
    const int line = static_cast<int>(rest % (kPatchSide * p.height));
    rest /= kPatchSide * p.height;
    const int channel = static_cast<int>(rest % p.in_chans);
    const int64_t image = rest / p.in_chans;

    float values[8] = {};
    const int64_t first = image * p.strides[0] + channel * p.strides[1] + line * p.strides[2];
#pragma unroll
    for (int j = 0; j < kPatchSide; ++j) {
      const int column = kPatchSide * x + j;
      if (line < p.image_height && column < p.image_width) values[j] = load_one(p.images, first + column * p.strides[3]);
    }
    const int64_t row = (image * p.height + line / kPatchSide) * p.width + x;
    const int64_t at = ((row * p.in_chans + channel) * kPatchSide + line % kPatchSide) * kPatchSide;
    if (p.out.dtype == DType::float32)
      static_cast<float4*>(p.out.data)[at / kPatchSide] = float4{values[0], values[1], values[2], values[3]};
    else
      static_cast<uint2*>(p.out.data)[at / kPatchSide] =
          uint2{narrow(values[0], values[1], p.out.dtype), narrow(values[2], values[3], p.out.dtype)};
  }
};

// The block (image, slice of the channels).
struct PixelMeanKernel {
  static constexpr const char* kName = "mean";
  static constexpr int kThreads = kColumnThreads, kBlocks = 4;
  struct Params {
    Typed x;
    TypedResult out;
    int pixels, channels, slices;
    bool vectors;
  };
  struct Shared {
    double sums[kColumnRows][kColumnChannels];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const int64_t image = blockIdx.x / p.slices;
    const Column c(blockIdx.x % p.slices, p.channels);
    double sums[8] = {};
    for (int pixel = c.row; pixel < p.pixels; pixel += kColumnRows) {
      float x[8];
      load_eight(x, p.x, (image * p.pixels + pixel) * p.channels + c.channel, c.left, p.vectors);
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(x[j]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) shared.sums[c.row][c.channel - c.first + j] = sums[j];
    __syncthreads();
    const int lane = threadIdx.x;
    if (lane >= kColumnChannels || c.first + lane >= p.channels) return;
    double total = 0.0;
    for (int row = 0; row < kColumnRows; ++row) total += shared.sums[row][lane];
    store_one(p.out, image * p.channels + c.first + lane, static_cast<float>(total / p.pixels));
  }
};

struct WidenKernel {
  static constexpr const char* kName = "widen";
  static constexpr int kThreads = 256, kBlocks = 8;
  struct Params {
    Typed x;
    float* out;
    int64_t length;
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i < p.length) p.out[i] = load_one(p.x, i);
  }
};

// ---- The entry points ---------------------------------------------------------------------------------------------------

static int64_t blocks_of(int64_t length, int threads) { return (length + threads - 1) / threads; }

const char* stem_patches(const StemPatches& op, void* stream) {
  if (!is_float(op.dtype) || !is_float(op.image_dtype)) return kNoFloat64;
  if (too_many(op.batch * op.height * op.width)) return kTooMany;
  using Kernel = StemPatchesKernel;
  const int64_t count = op.batch * op.in_chans * kPatchSide * op.height * op.width, blocks = blocks_of(count, Kernel::kThreads);
  if (blocks > INT32_MAX || op.height > INT32_MAX / kPatchSide || op.width > INT32_MAX / kPatchSide) return kTooMany;
  Kernel::Params p{{op.images, op.image_dtype},
                   {op.strides[0], op.strides[1], op.strides[2], op.strides[3]},
                   {op.out, op.dtype},
                   count,
                   static_cast<int>(op.height),
                   static_cast<int>(op.width),
                   static_cast<int>(op.in_chans),
                   static_cast<int>(op.image_height),
                   static_cast<int>(op.image_width)};
  return launch<Kernel>(dim3(static_cast<unsigned>(blocks)), p, stream);
}

const char* mean(const PixelMean& op, void* stream) {
  if (!is_float(op.dtype)) return kNoFloat64;
  const int64_t slices = slices_of(op.channels);
  if (op.pixels > INT32_MAX || op.channels > INT32_MAX || op.batch * slices > INT32_MAX) return kTooMany;
  const Map<const void*> rows{op.x, op.pixels * op.channels, op.channels, op.channels};
  return launch<PixelMeanKernel>(dim3(static_cast<unsigned>(op.batch * slices)),
                                 {{op.x, op.dtype},
                                  {op.out, op.dtype},
                                  static_cast<int>(op.pixels),
                                  static_cast<int>(op.channels),
                                  static_cast<int>(slices),
                                  has_vectors(rows, op.dtype, op.channels)},
                                 stream);
}

const char* widen(const Widening& op, void* stream) {
  if (!is_float(op.dtype)) return kNoFloat64;
  const int64_t blocks = blocks_of(op.length, WidenKernel::kThreads);
  if (blocks > INT32_MAX) return kTooMany;
  return launch<WidenKernel>(dim3(static_cast<unsigned>(blocks)), {{op.x, op.dtype}, op.out, op.length}, stream);
}

}  // namespace hifuse::cuda
