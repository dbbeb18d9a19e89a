// The gated concatenation of the frozen network in two kernels: what the gates look at, in one pass over two maps; then the
// gates themselves, the three maps side by side, and their norm.
//
// A block of the second kernel has pixels of one image. It computes the gates of the image's channels again, which is little,
// and those of its own pixels.
#include <algorithm>
#include <launch.cuh>

#include "columns.cuh"
#include "rows.cuh"

namespace hifuse::cuda {

inline constexpr int kMostOfGates = 1024;  // channels and units

// The larger one; NaN is larger than any number.
__device__ __forceinline__ float larger(float a, float b) { return b > a || b != b ? b : a; }

struct GateSizes {
  int images, height, width, channels;
  int slices, shares;  // of the channels, and of the pixels of an image
  bool vectors;

  __host__ __device__ int pixels() const { return height * width; }
};

// The largest value and the sum over the pixels of each share of g, and the largest value and the mean over the channels of
// each pixel of l.
template <DType kDType>
struct GateStatistics {
  static constexpr const char* kName = "gate_statistics";
  static constexpr int kThreads = kColumnThreads, kBlocks = 6, kWarps = kThreads / 32;
  struct Params {
    GateSizes sizes;
    const void *local_map, *global_map;
    int lanes;              // of a pixel of l
    int of_global;          // blocks for g, which come first
    float *largest, *sums;  // [images, shares, channels]
    float2* of_pixels;      // [images, height, width]
  };
  struct Shared {
    float largest[kWarps][kColumnChannels], sum[kWarps][kColumnChannels];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    if (int(blockIdx.x) < p.of_global)
      over_pixels(p, shared);
    else
      over_channels(p, int(blockIdx.x) - p.of_global);
  }

 private:
  static __device__ __forceinline__ void over_pixels(const Params& p, Shared& shared) {
    const GateSizes& s = p.sizes;
    const int part = blockIdx.x / s.slices, image = part / s.shares, share = part - image * s.shares;
    const Column c(blockIdx.x % s.slices, s.channels);
    const int begin = static_cast<int>(int64_t(share) * s.pixels() / s.shares);
    const int end = static_cast<int>(int64_t(share + 1) * s.pixels() / s.shares);
    float largest[8], sum[8] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j) largest[j] = -__builtin_huge_valf();
#pragma unroll 2
    for (int pixel = begin + c.row; pixel < end; pixel += kColumnRows) {
      float x[8];
      load_eight(x, {p.global_map, kDType}, (int64_t(image) * s.pixels() + pixel) * s.channels + c.channel, c.left, s.vectors);
#pragma unroll
      for (int j = 0; j < 8; ++j) largest[j] = larger(largest[j], x[j]), sum[j] += x[j];
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int other = kColumnLanes; other < 32; other *= 2) {
        largest[j] = larger(largest[j], __shfl_xor_sync(0xffffffffu, largest[j], other));
        sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], other);
      }
      if (lane < kColumnLanes) shared.largest[warp][lane * 8 + j] = largest[j], shared.sum[warp][lane * 8 + j] = sum[j];
    }
    __syncthreads();
    if (warp > 0 || c.first + lane >= s.channels) return;
    float most = shared.largest[0][lane], total = shared.sum[0][lane];
    for (int other = 1; other < kWarps; ++other)
      most = larger(most, shared.largest[other][lane]), total += shared.sum[other][lane];
    const int64_t at = int64_t(part) * s.channels + c.first + lane;
    p.largest[at] = most;
    p.sums[at] = total;
  }

  static __device__ __forceinline__ void over_channels(const Params& p, int block) {
    const GateSizes& s = p.sizes;
    const int lane = threadIdx.x % p.lanes, pixel = block * (kThreads / p.lanes) + threadIdx.x / p.lanes;
    const bool kept = pixel < s.images * s.pixels();
    float most = -__builtin_huge_valf(), sum = 0.0f;
    for (int channel = lane * 8; channel < s.channels; channel += p.lanes * 8) {
      const int left = kept ? s.channels - channel : 0;
      float x[8];
      load_eight(x, {p.local_map, kDType}, int64_t(pixel) * s.channels + channel, left, s.vectors);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (j < left) most = larger(most, x[j]);
        sum += x[j];
      }
    }
    for (int other = p.lanes / 2; other > 0; other /= 2) {
      most = larger(most, __shfl_xor_sync(0xffffffffu, most, other));
      sum += __shfl_xor_sync(0xffffffffu, sum, other);
    }
    if (lane == 0 && kept) p.of_pixels[pixel] = float2{most, sum / static_cast<float>(s.channels)};
  }
};

// The block (image, run of kPixels pixels).
template <DType kDType>
struct GatedConcatNorm {
  static constexpr const char* kName = "gated_concat";
  static constexpr int kThreads = kRowThreads, kBlocks = 4, kWarps = kThreads / 32, kPixels = 64;
  static constexpr int kSide = 7, kReach = kSide / 2, kMost = kMostOfGates;
  struct Params {
    GateSizes sizes;
    RowShape shape;
    const void* maps[3];  // g, l, x
    const float *largest, *sums;
    const float2* of_pixels;
    const float *filters, *filter_bias, *squeeze, *expand;
    int squeezed;
    bool twice;
    const float *scale, *shift;
    void* out;
    float eps;
  };
  struct Shared {
    RowExchange exchange;
    RowParameters scale, shift;
    float2 filters[kSide * kSide];
    float2 of_channels[kMost];           // largest value and mean
    float4 channel_gates[2][kMost / 8];  // in halves of chunks, which lie in banks of their own
    float units[kMost], pixel_gates[kPixels];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const GateSizes& s = p.sizes;
    const RowShape& row_shape = p.shape;
    const int runs = (s.pixels() + kPixels - 1) / kPixels, image = blockIdx.x / runs;
    const int first = (blockIdx.x - image * runs) * kPixels, end = min(first + kPixels, s.pixels());
    shared.scale.load({p.scale, DType::float32}, row_shape);
    shared.shift.load({p.shift, DType::float32}, row_shape);
    for (int i = threadIdx.x; i < kSide * kSide; i += kThreads)
      shared.filters[i] = float2{p.filters[2 * i], p.filters[2 * i + 1]};
    for (int channel = threadIdx.x; channel < s.channels; channel += kThreads) {
      float most = -__builtin_huge_valf(), total = 0.0f;
      for (int share = 0; share < s.shares; ++share) {
        const int64_t at = (int64_t(image) * s.shares + share) * s.channels + channel;
        most = larger(most, p.largest[at]);
        total += p.sums[at];
      }
      shared.of_channels[channel] = float2{most, total / static_cast<float>(s.pixels())};
    }
    __syncthreads();
    squeeze(p, shared);
    for (int i = threadIdx.x; first + i < end; i += kThreads) shared.pixel_gates[i] = pixel_gate(p, shared, image, first + i);
    __syncthreads();
    for (int channel = threadIdx.x; channel < (s.channels + 7) / 8 * 8; channel += kThreads)
      reinterpret_cast<float*>(&shared.channel_gates[channel / 4 % 2][channel / 8])[channel % 4] =
          channel < s.channels ? channel_gate(p, shared, channel) : 0.0f;
    __syncthreads();

    const RowLane l(row_shape);
    RowGroup group(row_shape, shared.exchange);
    for (int pixel = first + l.group; pixel - l.group < end; pixel += row_shape.groups()) {
      const bool kept = pixel < end;
      const int64_t row = int64_t(image) * s.pixels() + pixel;
      RowValues one[1];
      RowValues& x = one[0];
      float scale[1];
#pragma unroll
      for (int i = 0; i < kRowChunks; ++i) {
        const int map = l.left[i] > 0 ? l.part[i] : 0;
        load_eight(x[i], {p.maps[map], kDType}, row * s.channels + l.channel[i], kept ? l.left[i] : 0, row_shape.vectors);
        if (map == 0) {
          const float4 low = shared.channel_gates[0][l.channel[i] / 8], high = shared.channel_gates[1][l.channel[i] / 8];
          x[i][0] *= low.x, x[i][1] *= low.y, x[i][2] *= low.z, x[i][3] *= low.w;
          x[i][4] *= high.x, x[i][5] *= high.y, x[i][6] *= high.z, x[i][7] *= high.w;
        } else if (map == 1) {
          const float gate = kept ? shared.pixel_gates[pixel - first] : 1.0f;
#pragma unroll
          for (int j = 0; j < 8; ++j) x[i][j] *= gate;
        }
      }
      normalise(one, scale, row_shape, l, group, p.eps);
      if (!kept) continue;
#pragma unroll
      for (int i = 0; i < kRowChunks; ++i) {
        float weight[8], bias[8];
        shared.scale.get(weight, row_shape, l, i);
        shared.shift.get(bias, row_shape, l, i);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] = fmaf(x[i][j], weight[j], bias[j]);
        store_eight({p.out, kDType}, row * row_shape.width() + l.column(row_shape, i), x[i], l.left[i], row_shape.vectors);
      }
    }
  }

 private:
  static __device__ __forceinline__ float sigma(float z) { return 1.0f / (1.0f + expf(-z)); }
  static __device__ __forceinline__ float relu(float z) { return z <= 0.0f ? 0.0f : z; }  // NaN stays NaN

  // A warp takes each kWarps-th unit.
  static __device__ __forceinline__ void squeeze(const Params& p, Shared& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int unit = warp; unit < p.squeezed; unit += kWarps) {
      float of_largest = 0.0f, of_mean = 0.0f;
      for (int channel = lane; channel < p.sizes.channels; channel += 32) {
        const float weight = p.squeeze[int64_t(unit) * p.sizes.channels + channel];
        of_largest = fmaf(weight, shared.of_channels[channel].x, of_largest);
        of_mean = fmaf(weight, shared.of_channels[channel].y, of_mean);
      }
#pragma unroll
      for (int other = 16; other > 0; other /= 2) {
        of_largest += __shfl_xor_sync(0xffffffffu, of_largest, other);
        of_mean += __shfl_xor_sync(0xffffffffu, of_mean, other);
      }
      if (lane == 0) shared.units[unit] = relu(of_largest) + relu(of_mean);
    }
  }

  static __device__ __forceinline__ float channel_gate(const Params& p, const Shared& shared, int channel) {
    float total = 0.0f;
    for (int unit = 0; unit < p.squeezed; ++unit)
      total = fmaf(p.expand[int64_t(channel) * p.squeezed + unit], shared.units[unit], total);
    const float gate = sigma(total);
    return p.twice ? sigma(gate) : gate;
  }

  // A pixel takes its 49 neighbours one by one, as the threads beside it do, from the cache.
  static __device__ __forceinline__ float pixel_gate(const Params& p, const Shared& shared, int image, int pixel) {
    const GateSizes& s = p.sizes;
    const int y = pixel / s.width, x = pixel - y * s.width;
    const float2* const of_image = p.of_pixels + int64_t(image) * s.pixels();
    float total = 0.0f;
#pragma unroll 1
    for (int v = max(y - kReach, 0); v <= min(y + kReach, s.height - 1); ++v)
#pragma unroll
      for (int dx = -kReach; dx <= kReach; ++dx) {
        if (x + dx < 0 || x + dx >= s.width) continue;
        const float2 there = of_image[v * s.width + x + dx], tap = shared.filters[(v - y + kReach) * kSide + dx + kReach];
        total = fmaf(there.y, tap.y, fmaf(there.x, tap.x, total));
      }
    return sigma(total + p.filter_bias[0]);
  }
};

// ---- The entry point ----------------------------------------------------------------------------------------------------

static constexpr int64_t kShareOfPixels = 8 * kColumnRows;

static int64_t gate_shares(const GatedConcat& op) {
  return std::min<int64_t>((op.height * op.width + kShareOfPixels - 1) / kShareOfPixels, 1024);
}

int64_t gated_concat_scratch(const GatedConcat& op, int) {
  return 8 * (op.batch * op.height * op.width + op.batch * gate_shares(op) * op.channels);
}

template <DType kDType>
static const char* gated_concat_of(const GatedConcat& op, void* scratch, void* stream) {
  using Statistics = GateStatistics<kDType>;
  using Kernel = GatedConcatNorm<kDType>;
  const int64_t pixels = op.batch * op.height * op.width;
  const auto begins = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool vectors = op.channels % 8 == 0 && begins(op.local_map) && begins(op.global_map) && begins(op.x) && begins(op.out);
  const GateSizes sizes{static_cast<int>(op.batch),
                        static_cast<int>(op.height),
                        static_cast<int>(op.width),
                        static_cast<int>(op.channels),
                        static_cast<int>(slices_of(op.channels)),
                        static_cast<int>(gate_shares(op)),
                        vectors};
  const int64_t count = op.batch * sizes.shares * op.channels;
  float2* const of_pixels = static_cast<float2*>(scratch);
  float *const largest = reinterpret_cast<float*>(of_pixels + pixels), *const sums = largest + count;

  int lanes = 1;
  while (lanes < 32 && lanes * 8 * 4 < op.channels) lanes *= 2;
  const int64_t groups = Statistics::kThreads / lanes, of_global = op.batch * sizes.shares * sizes.slices;
  const char* error = launch<Statistics>(
      dim3(static_cast<unsigned>(of_global + (pixels + groups - 1) / groups)),
      {sizes, op.local_map, op.global_map, lanes, static_cast<int>(of_global), largest, sums, of_pixels}, stream);
  if (error != nullptr) return error;

  const int64_t runs = (op.height * op.width + Kernel::kPixels - 1) / Kernel::kPixels;
  return launch<Kernel>(dim3(static_cast<unsigned>(op.batch * runs)),
                        {sizes,
                         row_shape(3, op.channels, vectors),
                         {op.global_map, op.local_map, op.x},
                         largest,
                         sums,
                         of_pixels,
                         op.filters,
                         op.filter_bias,
                         op.squeeze,
                         op.expand,
                         static_cast<int>(op.squeezed),
                         op.twice,
                         op.scale,
                         op.shift,
                         op.out,
                         op.eps},
                        stream);
}

const char* gated_concat(const GatedConcat& op, void* scratch, void* stream) {
  if (!fits(3, op.channels)) return kTooWide;
  if (op.channels > kMostOfGates || op.squeezed > kMostOfGates) return "gates are of more than 1024 channels or units";
  if (too_many(op.batch * op.height * op.width)) return kTooMany;
  switch (op.dtype) {
    case DType::float32: return gated_concat_of<DType::float32>(op, scratch, stream);
    case DType::bfloat16: return gated_concat_of<DType::bfloat16>(op, scratch, stream);
    case DType::float16: return gated_concat_of<DType::float16>(op, scratch, stream);
    default: return kNoFloat64;
  }
}

}  // namespace hifuse::cuda
