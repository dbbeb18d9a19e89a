// Depthwise 3x3 convolution of a map, then layer normalisation over the channels of each pixel.
//
// A group of lanes has two pixels side by side with all their channels. The backward is two kernels: the first convolves again,
// differentiates the normalisation and writes dc, the gradient of the convolution; the second convolves dc with the flipped
// filters, and multiplies its neighbours with x, 32 channels at a time.
#include <launch.cuh>

#include "columns.cuh"
#include "rows.cuh"
#include "sum_of_parts.h"

namespace hifuse::cuda {

inline constexpr int kRun = 2;  // pixels side by side

// The map, and where pixels lie on it. A unit is a run of pixels of a row.
struct ConvolvedMap {
  Map<const void*> x;
  DType dtype, taken;
  const float* taps;  // [9, channels, in chunks of eight], of numbers of the dtype `taken`
  int batch, height, width, chunks;

  __host__ __device__ int runs() const { return (width + kRun - 1) / kRun; }
  __host__ __device__ int units() const { return batch * height * runs(); }

  struct Place {
    int image, y, x;
  };
  __device__ __forceinline__ Place place(int unit) const {
    const int line = unit / runs();
    return {line / height, line % height, (unit - line * runs()) * kRun};
  }
  // Of a contiguous map.
  __device__ __forceinline__ int64_t pixel(const Place& at) const { return (int64_t(at.image) * height + at.y) * width + at.x; }

  // Eight numbers of pixel (y, x) of a map of x's size, zeros beyond its edges.
  __device__ __forceinline__ void load(float (&v)[8], const Place& at, int y, int column, int channel, int left,
                                       bool vectors) const {
    const bool on_map = y >= 0 && y < height && column >= 0 && column < width;
    const int64_t first = at.image * x.batch_stride + y * x.row_stride + column * x.column_stride;
    load_eight(v, {x.data, dtype}, first + channel, on_map ? left : 0, vectors);
    if (taken != dtype) round_to(v, taken);
  }
  __device__ __forceinline__ void load_tap(float (&v)[8], int tap, int chunk) const {
    const float4* p = reinterpret_cast<const float4*>(taps + (int64_t(tap) * chunks + chunk) * 8);
    const float4 a = p[0], b = p[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  }

  // The convolution of a run of pixels, which begins with the filters' biases.
  __device__ __forceinline__ void convolve(RowValues (&c)[kRun], const RowParameters& filter_bias, const RowShape& s,
                                           const RowLane& l, const Place& at, bool kept) const {
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
#pragma unroll
      for (int k = 0; k < kRun; ++k) filter_bias.get(c[k][i], s, l, i);
      if (l.left[i] <= 0) continue;
#pragma unroll 1
      for (int dy = 0; dy < 3; ++dy) {
        float v[kRun + 2][8];
#pragma unroll
        for (int n = 0; n < kRun + 2; ++n)
          load(v[n], at, at.y + dy - 1, at.x + n - 1, l.channel[i], kept ? l.left[i] : 0, s.vectors);
#pragma unroll
        for (int dx = 0; dx < 3; ++dx) {
          float tap[8];
          load_tap(tap, 3 * dy + dx, l.lane + i * s.lanes);
#pragma unroll
          for (int k = 0; k < kRun; ++k)
#pragma unroll
            for (int j = 0; j < 8; ++j) c[k][i][j] = fmaf(v[k + dx][j], tap[j], c[k][i][j]);
        }
      }
    }
  }
};

struct DepthwiseNormForward {
  static constexpr const char* kName = "depthwise_norm_forward";
  static constexpr int kThreads = kRowThreads, kBlocks = 3;
  struct Params {
    ConvolvedMap map;
    RowShape shape;
    Typed filter_bias, weight, bias;
    TypedResult out;
    float eps;
  };
  struct Shared {
    RowExchange exchange;
    RowParameters filter_bias, weight, bias;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const RowShape& s = p.shape;
    const RowLane l(s);
    RowGroup group(s, shared.exchange);
    shared.filter_bias.load(p.filter_bias, s);
    shared.weight.load(p.weight, s);
    shared.bias.load(p.bias, s);
    __syncthreads();
    for (int first = blockIdx.x * s.groups(); first < p.map.units(); first += gridDim.x * s.groups()) {
      const int unit = first + l.group;
      const bool kept = unit < p.map.units();
      const ConvolvedMap::Place at = p.map.place(unit);
      RowValues x[kRun];
      float scale[kRun];
      p.map.convolve(x, shared.filter_bias, s, l, at, kept);
      normalise(x, scale, s, l, group, p.eps);
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        if (!kept || at.x + k >= p.map.width) continue;
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i) {
          float weight[8], bias[8];
          shared.weight.get(weight, s, l, i);
          shared.bias.get(bias, s, l, i);
#pragma unroll
          for (int j = 0; j < 8; ++j) x[k][i][j] = fmaf(x[k][i][j], weight[j], bias[j]);
          store_eight(p.out, (p.map.pixel(at) + k) * s.channels + l.channel[i], x[k][i], l.left[i], s.vectors);
        }
      }
    }
  }
};

struct DepthwiseNormBackward {
  static constexpr const char* kName = "depthwise_norm_backward";
  static constexpr int kThreads = kRowThreads, kBlocks = 2;
  struct Params {
    ConvolvedMap map;
    RowShape shape;
    Typed filter_bias, weight, grad;
    void* dc;         // of the dtype `taken`, or null
    float* parts[3];  // [blocks, channels]: of the gradients of filter_bias, weight and bias; or null
    float eps;
  };
  struct Shared {
    RowExchange exchange;
    RowParameters filter_bias, weight;
    RowSums sums;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const RowShape& s = p.shape;
    const RowLane l(s);
    RowGroup group(s, shared.exchange);
    const float count = static_cast<float>(s.channels);
    RowValues sums[3] = {};
    shared.filter_bias.load(p.filter_bias, s);
    shared.weight.load(p.weight, s);
    __syncthreads();
    for (int first = blockIdx.x * s.groups(); first < p.map.units(); first += gridDim.x * s.groups()) {
      const int unit = first + l.group;
      const bool kept = unit < p.map.units();
      const ConvolvedMap::Place at = p.map.place(unit);
      RowValues x[kRun];
      float scale[kRun];
      p.map.convolve(x, shared.filter_bias, s, l, at, kept);
      normalise(x, scale, s, l, group, p.eps);
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        const bool on_map = kept && at.x + k < p.map.width;
        const int64_t pixel = p.map.pixel(at) + k;
        RowValues grad;
        float along[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i) {
          float weight[8];
          shared.weight.get(weight, s, l, i);
          load_eight(grad[i], p.grad, pixel * s.channels + l.channel[i], on_map ? l.left[i] : 0, s.vectors);
          if (!on_map || l.left[i] <= 0) continue;
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            sums[1][i][j] = fmaf(grad[i][j], x[k][i][j], sums[1][i][j]);
            sums[2][i][j] += grad[i][j];
            grad[i][j] *= weight[j];
            along[0] += grad[i][j];
            along[1] = fmaf(grad[i][j], x[k][i][j], along[1]);
          }
        }
        group.sum(along);
        along[0] /= count, along[1] /= count;
        if (!on_map) continue;
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i) {
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            grad[i][j] = scale[k] * fmaf(-x[k][i][j], along[1], grad[i][j] - along[0]);
            sums[0][i][j] += grad[i][j];
          }
          if (p.dc) store_eight({p.dc, p.map.taken}, pixel * s.channels + l.channel[i], grad[i], l.left[i], s.vectors);
        }
      }
    }
    if (!p.parts[0]) return;
#pragma unroll
    for (int sum = 0; sum < 3; ++sum)
      shared.sums.store(sums[sum], s, l, [&](int i) { return p.parts[sum] + int64_t(blockIdx.x) * s.channels + l.channel[i]; });
  }
};

// The block (slice, share). Of the gradient dc of the convolution: that of pixel q is dc at q + n with the tap 1 - n, over the
// neighbours n; that of this tap is the sum of x at q times the same dc.
struct DepthwiseConvolutionBackward {
  static constexpr const char* kName = "depthwise_convolution_backward";
  static constexpr int kThreads = kColumnThreads, kBlocks = 2;
  struct Params {
    ConvolvedMap map, dc;  // dc has the taps
    int channels;
    bool vectors;
    TypedResult dx;
    float* tap_parts;  // [shares, 9, channels], or null
  };
  struct Shared {
    ColumnSums<9> sums;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Column c(blockIdx.x, p.channels);
    float dtaps[9][8] = {};
    for (int unit = blockIdx.y * kColumnRows + c.row; unit < p.map.units(); unit += gridDim.y * kColumnRows) {
      const ConvolvedMap::Place at = p.map.place(unit);
      float x[kRun][8], dx[kRun][8] = {};
#pragma unroll
      for (int k = 0; k < kRun; ++k) p.map.load(x[k], at, at.y, at.x + k, c.channel, c.left, p.vectors);
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) {
        float v[kRun + 2][8];
#pragma unroll
        for (int n = 0; n < kRun + 2; ++n) p.dc.load(v[n], at, at.y + dy - 1, at.x + n - 1, c.channel, c.left, p.vectors);
#pragma unroll
        for (int n = 0; n < 3; ++n) {
          const int tap = 8 - 3 * dy - n;
          float weight[8] = {};
          if (p.dx.data && c.left > 0) p.dc.load_tap(weight, tap, c.channel / 8);
#pragma unroll
          for (int k = 0; k < kRun; ++k)
#pragma unroll
            for (int j = 0; j < 8; ++j) {
              dx[k][j] = fmaf(weight[j], v[k + n][j], dx[k][j]);
              dtaps[tap][j] = fmaf(x[k][j], v[k + n][j], dtaps[tap][j]);
            }
        }
      }
      if (!p.dx.data) continue;
#pragma unroll
      for (int k = 0; k < kRun; ++k)
        if (at.x + k < p.map.width) store_eight(p.dx, (p.map.pixel(at) + k) * p.channels + c.channel, dx[k], c.left, p.vectors);
    }
    if (!p.tap_parts) return;
    shared.sums.store(dtaps, c, p.channels,
                      [&](int tap) { return p.tap_parts + (int64_t(blockIdx.y) * 9 + tap) * p.channels; });
  }
};

// ---- Entry points -------------------------------------------------------------------------------------------------------

static const char* why_not(const DepthwiseNorm& op) {
  if (!fits(1, op.channels)) return kTooWide;
  return too_many(op.batch * op.height * op.width) ? kTooMany : nullptr;
}

static ConvolvedMap map_of(const DepthwiseNorm& op) {
  return {op.x,
          op.dtype,
          op.taken,
          op.taps,
          static_cast<int>(op.batch),
          static_cast<int>(op.height),
          static_cast<int>(op.width),
          static_cast<int>((op.channels + 7) / 8)};
}

static RowShape shape_of(const DepthwiseNorm& op) {
  return row_shape(1, op.channels, has_vectors(op.x, op.dtype, op.channels));
}

template <class Kernel>
static int blocks_of(const DepthwiseNorm& op, int multiprocessors) {
  const int64_t groups = shape_of(op).groups(), units = map_of(op).units();
  return static_cast<int>(std::min<int64_t>((units + groups - 1) / groups, int64_t(multiprocessors) * Kernel::kBlocks));
}

const char* depthwise_norm_forward(const DepthwiseNorm& op, TypedResult out, int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  using Kernel = DepthwiseNormForward;
  return launch<Kernel>(dim3(blocks_of<Kernel>(op, multiprocessors)),
                        {map_of(op), shape_of(op), op.filter_bias, op.weight, op.bias, out, op.eps}, stream);
}

int64_t depthwise_norm_backward_scratch(const DepthwiseNorm& op, int multiprocessors) {
  return 3 * blocks_of<DepthwiseNormBackward>(op, multiprocessors) * op.channels * int64_t(sizeof(float));
}

const char* depthwise_norm_backward(const DepthwiseNorm& op, Typed grad, void* dc, const DepthwiseNormGradients& out,
                                    void* scratch, int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  const int64_t blocks = blocks_of<DepthwiseNormBackward>(op, multiprocessors), size = blocks * op.channels;
  const bool parameters = out.filter_bias != nullptr;
  float* const parts = parameters ? static_cast<float*>(scratch) : nullptr;
  const char* error = launch<DepthwiseNormBackward>(
      dim3(static_cast<unsigned>(blocks)),
      {map_of(op), shape_of(op), op.filter_bias, op.weight, grad, dc, {parts, parts + size, parts + 2 * size}, op.eps}, stream);
  if (error || !parameters) return error;
  return sum_of_parts({{parts, out.filter_bias, op.channels, blocks},
                       {parts + size, out.weight, op.channels, blocks},
                       {parts + 2 * size, out.bias, op.channels, blocks}},
                      stream);
}

static dim3 convolution_grid(const DepthwiseNorm& op, int multiprocessors) {
  const int64_t slices = slices_of(op.channels), most = (map_of(op).units() + kColumnRows - 1) / kColumnRows;
  const int64_t wanted = int64_t(multiprocessors) * DepthwiseConvolutionBackward::kBlocks / slices;
  return dim3(static_cast<unsigned>(slices),
              static_cast<unsigned>(std::min<int64_t>(std::clamp<int64_t>(wanted, 1, 65535), most)));
}

int64_t depthwise_convolution_backward_scratch(const DepthwiseNorm& op, int multiprocessors) {
  return 9 * int64_t(convolution_grid(op, multiprocessors).y) * op.channels * int64_t(sizeof(float));
}

const char* depthwise_convolution_backward(const DepthwiseNorm& op, const void* dc, void* dx, float* dtaps, void* scratch,
                                           int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  const ConvolvedMap map = map_of(op);
  ConvolvedMap of_dc = map;
  of_dc.x = {dc, op.height * op.width * op.channels, op.width * op.channels, op.channels};
  of_dc.dtype = op.taken;
  const dim3 grid = convolution_grid(op, multiprocessors);
  float* const parts = dtaps ? static_cast<float*>(scratch) : nullptr;
  const char* error = launch<DepthwiseConvolutionBackward>(
      grid, {map, of_dc, static_cast<int>(op.channels), shape_of(op).vectors, {dx, op.dtype}, parts}, stream);
  if (error || !dtaps) return error;
  return sum_of_parts({{parts, dtaps, 9 * op.channels, grid.y}}, stream);
}

}  // namespace hifuse::cuda
