// Batch normalisation over the channels of a map, with activation, pooling and residual: the output in one pass, and in the
// backward sums over the pixels and another pass.
#include <algorithm>
#include <launch.cuh>

#include "batch_norm_statistics.cuh"
#include "columns.cuh"
#include "rows.cuh"
#include "sum_of_parts.h"

namespace hifuse::cuda {

// ---- The output ---------------------------------------------------------------------------------------------------------

// One function for eight numbers side by side: a loop that is not unrolled would ask for the activation each time.
template <class F>
__device__ __forceinline__ void each_of_eight(float (&z)[8], const F& f) {
#pragma unroll
  for (int j = 0; j < 8; ++j) z[j] = f(z[j]);
}

// Phi(z), of the exact GELU z Phi(z).
__device__ __forceinline__ float normal_cdf(float z) { return 0.5f * (1.0f + erff(z * 0.70710678118654752f)); }
__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// NaN stays NaN.
__device__ __forceinline__ void activate(float (&z)[8], After after) {
  if (after == After::relu) each_of_eight(z, [](float z) { return z <= 0.0f ? 0.0f : z; });
  if (after == After::gelu) each_of_eight(z, [](float z) { return z * normal_cdf(z); });
  if (after == After::sigmoid) each_of_eight(z, sigmoid);
}

// The derivatives in place of z; that of ReLU at NaN is 1, as in PyTorch.
__device__ __forceinline__ void derive(float (&z)[8], After after) {
  if (after == After::none) each_of_eight(z, [](float) { return 1.0f; });
  if (after == After::relu) each_of_eight(z, [](float z) { return z <= 0.0f ? 0.0f : 1.0f; });
  if (after == After::gelu)
    each_of_eight(z, [](float z) { return normal_cdf(z) + z * (0.39894228040143268f * expf(-0.5f * z * z)); });
  if (after == After::sigmoid)
    each_of_eight(z, [](float z) {
      const float y = sigmoid(z);
      return y * (1.0f - y);
    });
}

struct BatchNormChannels {
  Typed weight, bias;
  const float *mean, *var;
  float eps;
};

// What a thread keeps of its channels.
struct BatchNormColumn {
  float weight[8], bias[8], mean[8], scale[8];

  __device__ __forceinline__ BatchNormColumn(const BatchNormChannels& p, const Column& c, bool vectors) {
    load_eight(weight, p.weight, c.channel, c.left, vectors);
    load_eight(bias, p.bias, c.channel, c.left, vectors);
    load_eight(mean, {p.mean, DType::float32}, c.channel, c.left, vectors);
    load_eight(scale, {p.var, DType::float32}, c.channel, c.left, vectors);
#pragma unroll
    for (int j = 0; j < 8; ++j) scale[j] = rsqrtf(scale[j] + p.eps);
  }
};

struct BatchNormForward {
  static constexpr const char* kName = "batch_norm_forward";
  static constexpr int kThreads = kColumnThreads, kBlocks = 6;
  struct Params {
    PixelShares shape;  // of the result
    int width;          // of the result
    BatchNormChannels channels;
    After after;
    bool pool;
    Typed x, residual;
    TypedResult out;
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const PixelShares& s = p.shape;
    const Column c(blockIdx.x, s.channels);
    const BatchNormColumn of(p.channels, c, s.vectors);
    for (int64_t row = int64_t(blockIdx.y) * kColumnRows + c.row; row < s.rows; row += int64_t(gridDim.y) * kColumnRows) {
      // Images have even heights where they are pooled: rows of patches follow each other.
      const int64_t line = p.pool ? row / p.width : 0, corner = 4 * line * p.width + 2 * (row - line * p.width);
      float y[8] = {};
#pragma unroll 1
      for (int pixel = 0; pixel < (p.pool ? 4 : 1); ++pixel) {
        const int64_t from = p.pool ? corner + pixel / 2 * 2 * p.width + pixel % 2 : row;
        float z[8];
        load_eight(z, p.x, from * s.channels + c.channel, c.left, s.vectors);
#pragma unroll
        for (int j = 0; j < 8; ++j) z[j] = fmaf(z[j] - of.mean[j], of.scale[j] * of.weight[j], of.bias[j]);
        activate(z, p.after);
#pragma unroll
        for (int j = 0; j < 8; ++j) y[j] += p.pool ? 0.25f * z[j] : z[j];
      }
      if (p.residual.data) {
        float residual[8];
        load_eight(residual, p.residual, row * s.channels + c.channel, c.left, s.vectors);
#pragma unroll
        for (int j = 0; j < 8; ++j) y[j] += residual[j];
      }
      store_eight(p.out, row * s.channels + c.channel, y, c.left, s.vectors);
    }
  }
};

// ---- The backward -------------------------------------------------------------------------------------------------------

struct BatchNormGradientParams {
  PixelShares shape;  // of x
  int height, width;
  BatchNormChannels channels;
  After after;
  bool pool;
  Typed x, grad;
  float *weight_parts, *bias_parts;  // [shares, channels]
  const float *dweight, *dbias;      // null where statistics are no function of x
  TypedResult dx;

  // Of eight numbers: the normalised ones, and the gradient of what the activation was given.
  __device__ __forceinline__ void gradient(float (&normed)[8], float (&dz)[8], const BatchNormColumn& of, const Column& c,
                                           int64_t row) const {
    int64_t from = row;
    if (pool) {
      const int64_t line = row / width, image = line / height;
      from = (image * (height / 2) + (line - image * height) / 2) * (width / 2) + (row - line * width) / 2;
    }
    float grad_of[8];
    load_eight(grad_of, grad, from * shape.channels + c.channel, c.left, shape.vectors);
    load_eight(normed, x, row * shape.channels + c.channel, c.left, shape.vectors);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      normed[j] = (normed[j] - of.mean[j]) * of.scale[j];
      dz[j] = fmaf(normed[j], of.weight[j], of.bias[j]);
    }
    derive(dz, after);
#pragma unroll
    for (int j = 0; j < 8; ++j) dz[j] *= pool ? 0.25f * grad_of[j] : grad_of[j];
  }
};

struct BatchNormBackwardSums {
  static constexpr const char* kName = "batch_norm_backward_sums";
  static constexpr int kThreads = kColumnThreads, kBlocks = 4;
  using Params = BatchNormGradientParams;
  struct Shared {
    ColumnSums<2> sums;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const Column c(blockIdx.x, p.shape.channels);
    const BatchNormColumn of(p.channels, c, p.shape.vectors);
    float sums[2][8] = {};
    for (int64_t row = int64_t(blockIdx.y) * kColumnRows + c.row; row < p.shape.rows; row += int64_t(gridDim.y) * kColumnRows) {
      float normed[8], dz[8];
      p.gradient(normed, dz, of, c, row);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sums[0][j] = fmaf(dz[j], normed[j], sums[0][j]);
        sums[1][j] += dz[j];
      }
    }
    const int64_t part = int64_t(blockIdx.y) * p.shape.channels;
    shared.sums.store(sums, c, p.shape.channels, [&](int i) { return (i ? p.bias_parts : p.weight_parts) + part; });
  }
};

struct BatchNormBackward {
  static constexpr const char* kName = "batch_norm_backward";
  static constexpr int kThreads = kColumnThreads, kBlocks = 4;
  using Params = BatchNormGradientParams;
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const PixelShares& s = p.shape;
    const Column c(blockIdx.x, s.channels);
    const BatchNormColumn of(p.channels, c, s.vectors);
    float dweight[8] = {}, dbias[8] = {};
    if (p.dweight) {
      load_eight(dweight, {p.dweight, DType::float32}, c.channel, c.left, s.vectors);
      load_eight(dbias, {p.dbias, DType::float32}, c.channel, c.left, s.vectors);
    }
    const float each = 1.0f / static_cast<float>(s.rows);
    for (int64_t row = int64_t(blockIdx.y) * kColumnRows + c.row; row < s.rows; row += int64_t(gridDim.y) * kColumnRows) {
      float normed[8], dz[8];
      p.gradient(normed, dz, of, c, row);
      if (p.dweight)
#pragma unroll
        for (int j = 0; j < 8; ++j) dz[j] -= fmaf(normed[j], dweight[j], dbias[j]) * each;
#pragma unroll
      for (int j = 0; j < 8; ++j) dz[j] *= of.scale[j] * of.weight[j];
      store_eight(p.dx, row * s.channels + c.channel, dz, c.left, s.vectors);
    }
  }
};

// ---- Entry points -------------------------------------------------------------------------------------------------------

static const char* why_not(const BatchNorm& op) { return too_many(op.batch * op.height * op.width) ? kTooMany : nullptr; }

// Slices, and shares of the pixels for as many blocks of threads as fit on the device.
template <class Kernel>
static dim3 grid_of(int64_t rows, int64_t channels, int tile, int multiprocessors) {
  const int64_t slices = slices_of(channels), most = (rows + tile * kColumnRows - 1) / (tile * kColumnRows);
  const int64_t wanted = std::clamp<int64_t>(int64_t(multiprocessors) * Kernel::kBlocks / slices, 1, 65535);
  return dim3(static_cast<unsigned>(slices), static_cast<unsigned>(std::min(wanted, most)));
}

static PixelShares shares_of(int64_t rows, int64_t channels) {
  return {static_cast<int>(rows), static_cast<int>(channels), channels % 8 == 0};
}

static BatchNormChannels channels_of(const BatchNorm& op) { return {op.weight, op.bias, op.mean, op.var, op.eps}; }

static dim3 statistics_grid(const BatchNorm& op, int multiprocessors) {
  using Kernel = BatchNormStatistics;
  return grid_of<Kernel>(op.batch * op.height * op.width, op.channels, Kernel::kTile, multiprocessors);
}

int64_t batch_norm_statistics_scratch(const BatchNorm& op, int multiprocessors) {
  return 4 * int64_t(statistics_grid(op, multiprocessors).y) * op.channels * int64_t(sizeof(float));
}

const char* batch_norm_statistics(const BatchNorm& op, float* mean, float* var, void* scratch, int multiprocessors,
                                  void* stream) {
  if (const char* reason = why_not(op)) return reason;
  const dim3 grid = statistics_grid(op, multiprocessors);
  float* const parts = static_cast<float*>(scratch);
  const PixelShares shape = shares_of(op.batch * op.height * op.width, op.channels);
  if (const char* error = launch<BatchNormStatistics>(grid, {shape, op.x, parts}, stream)) return error;
  return launch<BatchNormMerge>(dim3(grid.x), {parts, static_cast<int>(grid.y), shape.channels, mean, var}, stream);
}

const char* batch_norm_forward(const BatchNorm& op, Typed residual, TypedResult out, int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  const int64_t side = op.pool ? 2 : 1, rows = op.batch * (op.height / side) * (op.width / side);
  return launch<BatchNormForward>(grid_of<BatchNormForward>(rows, op.channels, 1, multiprocessors),
                                  {shares_of(rows, op.channels), static_cast<int>(op.width / side), channels_of(op), op.after,
                                   op.pool, op.x, residual, out},
                                  stream);
}

int64_t batch_norm_backward_scratch(const BatchNorm& op, int multiprocessors) {
  const dim3 grid = grid_of<BatchNormBackwardSums>(op.batch * op.height * op.width, op.channels, 1, multiprocessors);
  return 2 * int64_t(grid.y) * op.channels * int64_t(sizeof(float));
}

const char* batch_norm_backward(const BatchNorm& op, bool training, Typed grad, const BatchNormGradients& out, void* scratch,
                                int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  const int64_t rows = op.batch * op.height * op.width;
  const dim3 grid = grid_of<BatchNormBackwardSums>(rows, op.channels, 1, multiprocessors);
  float* const parts = static_cast<float*>(scratch);
  BatchNormGradientParams p{shares_of(rows, op.channels),
                            static_cast<int>(op.height),
                            static_cast<int>(op.width),
                            channels_of(op),
                            op.after,
                            op.pool,
                            op.x,
                            grad,
                            parts,
                            parts + int64_t(grid.y) * op.channels,
                            training ? out.weight : nullptr,
                            training ? out.bias : nullptr,
                            {out.x, op.x.dtype}};
  if (out.weight) {
    if (const char* error = launch<BatchNormBackwardSums>(grid, p, stream)) return error;
    const char* error = sum_of_parts(
        {{p.weight_parts, out.weight, op.channels, grid.y}, {p.bias_parts, out.bias, op.channels, grid.y}}, stream);
    if (error) return error;
  }
  if (!out.x) return nullptr;
  return launch<BatchNormBackward>(grid_of<BatchNormBackward>(rows, op.channels, 1, multiprocessors), p, stream);
}

}  // namespace hifuse::cuda
