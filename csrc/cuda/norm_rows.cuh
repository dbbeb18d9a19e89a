// Layer normalisation of rows, forward and backward, for any `Rows`: what a row is, and where its gradient goes.
//
//     struct Rows {
//       static constexpr const char *kForward, *kBackward;   // names of the kernels
//       static constexpr bool kGates;                        // rows have factors, which have gradients
//       void load(RowChunks&, const RowShape&, const RowLane&, int row, bool kept) const;   // zeros where it is not kept
//       void widen(RowValues&, const RowChunks&, const RowShape&, const RowLane&, int row, bool kept) const;
//       void store(RowValues& gradient, float scale, ...) const;   // of a row, to be multiplied by `scale`
//     };
#pragma once
#include <launch.cuh>

#include "rows.cuh"

namespace hifuse::cuda {

// Each group of lanes takes each gridDim-th row, and loads the next one while it computes.
template <class Rows>
struct NormForward {
  static constexpr const char* kName = Rows::kForward;
  static constexpr int kThreads = kRowThreads, kBlocks = 4;
  struct Params {
    Rows rows;
    RowShape shape;
    Typed weight, bias;
    TypedResult out;
    int count;
    float eps;
  };
  struct Shared {
    RowExchange exchange;
    RowParameters weight, bias;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const RowShape& s = p.shape;
    const RowLane l(s);
    RowGroup group(s, shared.exchange);
    shared.weight.load(p.weight, s);
    shared.bias.load(p.bias, s);
    __syncthreads();
    const int step = gridDim.x * s.groups();
    int row = blockIdx.x * s.groups() + l.group;
    RowChunks next;
    p.rows.load(next, s, l, row, row < p.count);
    for (int first = row - l.group; first < p.count; first += step, row += step) {
      RowValues one[1];
      RowValues& x = one[0];
      float scale[1];
      p.rows.widen(x, next, s, l, row, row < p.count);
      p.rows.load(next, s, l, row + step, row + step < p.count);
      normalise(one, scale, s, l, group, p.eps);
      if (row >= p.count) continue;
#pragma unroll
      for (int i = 0; i < kRowChunks; ++i) {
        float weight[8], bias[8];
        shared.weight.get(weight, s, l, i);
        shared.bias.get(bias, s, l, i);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] = fmaf(x[i][j], weight[j], bias[j]);
        store_eight(p.out, int64_t(row) * s.width() + l.column(s, i), x[i], l.left[i], s.vectors);
      }
    }
  }
};

// The statistics are computed again. A block (share, image) takes its share of the pixels of each gridDim.y-th image, so that
// sums over an image, which are gradients of gates, do not depend on how many images there are.
template <class Rows>
struct NormBackward {
  static constexpr const char* kName = Rows::kBackward;
  static constexpr int kThreads = kRowThreads, kBlocks = Rows::kGates ? 2 : 3;
  struct Params {
    Rows rows;
    RowShape shape;
    Typed grad, weight;
    float* weight_parts;  // [parts, width], as those of the bias; or null
    float* bias_parts;
    float* gate_parts;  // [shares, channel gates that are wanted, images, channels], or null
    int images, pixels;
    float eps;
  };
  struct Shared {
    RowExchange exchange;
    RowParameters weight;
    RowSums sums;
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const RowShape& s = p.shape;
    const RowLane l(s);
    RowGroup group(s, shared.exchange);
    const float count = static_cast<float>(s.width());
    RowValues dweight = {}, dbias = {};
    shared.weight.load(p.weight, s);
    __syncthreads();
    for (int image = blockIdx.y; image < p.images; image += gridDim.y) {
      RowValues dgate = {};
      for (int first = blockIdx.x * s.groups(); first < p.pixels; first += gridDim.x * s.groups()) {
        const bool kept = first + l.group < p.pixels;
        const int row = image * p.pixels + first + l.group;
        RowChunks chunks;
        RowValues one[1], grad;
        RowValues& x = one[0];
        float scale[1];
        p.rows.load(chunks, s, l, row, kept);
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i)
          load_eight(grad[i], p.grad, int64_t(row) * s.width() + l.column(s, i), kept ? l.left[i] : 0, s.vectors);
        p.rows.widen(x, chunks, s, l, row, kept);
        normalise(one, scale, s, l, group, p.eps);
        float sums[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i) {
          float weight[8], of_chunk[2][2] = {};
          shared.weight.get(weight, s, l, i);
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            dweight[i][j] = fmaf(grad[i][j], x[i][j], dweight[i][j]);
            dbias[i][j] += grad[i][j];
            const float scaled = grad[i][j] * weight[j];
            of_chunk[0][j % 2] += scaled;
            of_chunk[1][j % 2] = fmaf(scaled, x[i][j], of_chunk[1][j % 2]);
          }
          sums[0] += of_chunk[0][0] + of_chunk[0][1];
          sums[1] += of_chunk[1][0] + of_chunk[1][1];
        }
        group.sum(sums);
        const float mean = sums[0] / count, along = sums[1] / count;
        // The scale comes last: gradients of gates are sums of these numbers times those of the map, which may cancel.
#pragma unroll
        for (int i = 0; i < kRowChunks; ++i) {
          float weight[8];
          shared.weight.get(weight, s, l, i);
#pragma unroll
          for (int j = 0; j < 8; ++j) x[i][j] = fmaf(-x[i][j], along, fmaf(grad[i][j], weight[j], -mean));
        }
        p.rows.store(x, scale[0], dgate, s, l, group, row, kept);
      }
      if constexpr (Rows::kGates) p.rows.store_gates(p.gate_parts, dgate, shared.sums, s, l, image, p.images);
    }
    if (!p.weight_parts) return;
    const int64_t part = (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * s.width();
    shared.sums.store(dweight, s, l, [&](int i) { return p.weight_parts + part + l.column(s, i); });
    shared.sums.store(dbias, s, l, [&](int i) { return p.bias_parts + part + l.column(s, i); });
  }
};

}  // namespace hifuse::cuda
