// Layer normalisation over the channels of two or three maps side by side, each times its gate. Neither the products nor the
// concatenation are written.
#include "norm_rows.cuh"
#include "sum_of_parts.h"

namespace hifuse::cuda {

struct GatedRows {
  static constexpr const char *kForward = "concat_norm_forward", *kBackward = "concat_norm_backward";
  static constexpr bool kGates = true;

  Typed map[3], gate[3];
  Gate kind[3];
  int pixels;  // of an image
  // Of the backward, null where it is not wanted:
  TypedResult dmap[3];
  float* pixel_gate[3];
  int channel_gate[3];  // the place among the gates of channels whose gradient is wanted, or -1
  int channel_gates;
  bool gates;  // whether the gradient of any gate is wanted

  __device__ __forceinline__ static int run(const RowLane& l, int i) { return l.left[i] > 0 ? l.part[i] : 0; }

  __device__ __forceinline__ void load(RowChunks& e, const RowShape& s, const RowLane& l, int row, bool kept) const {
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i)
      e[i] = load_eight(map[run(l, i)], int64_t(row) * s.channels + l.channel[i], kept ? l.left[i] : 0, s.vectors);
  }
  // The factors of the numbers of chunk i.
  __device__ __forceinline__ void factors(float (&x)[8], const RowShape& s, const RowLane& l, int i, int row, bool kept) const {
    const int m = run(l, i);
    if (kind[m] == Gate::channel) {
      load_eight(x, gate[m], int64_t(row / pixels) * s.channels + l.channel[i], kept ? l.left[i] : 0, s.vectors);
      return;
    }
    const float factor = kind[m] == Gate::pixel && kept ? load_one(gate[m], row) : 1.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = factor;
  }
  __device__ __forceinline__ void widen(RowValues& r, const RowChunks& e, const RowShape& s, const RowLane& l, int row,
                                        bool kept) const {
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      float factor[8];
      cuda::widen(r[i], e[i], map[run(l, i)].dtype);
      factors(factor, s, l, i, row, kept);
#pragma unroll
      for (int j = 0; j < 8; ++j) r[i][j] *= factor[j];
    }
  }

  __device__ __forceinline__ void store(RowValues& dr, float scale, RowValues& dgate, const RowShape& s, const RowLane& l,
                                        RowGroup& group, int row, bool kept) const {
    float of_gate[kRowChunks][2] = {};
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      const int m = run(l, i);
      float x[8];
      if (dmap[m].data) {
        factors(x, s, l, i, row, kept);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] *= scale * dr[i][j];
        store_eight(dmap[m], int64_t(row) * s.channels + l.channel[i], x, kept ? l.left[i] : 0, s.vectors);
      }
      if (gates) {
        load_eight(x, map[m], int64_t(row) * s.channels + l.channel[i], kept ? l.left[i] : 0, s.vectors);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          dgate[i][j] = fmaf(scale * dr[i][j], x[j], dgate[i][j]);
          of_gate[i][j % 2] = fmaf(dr[i][j], x[j], of_gate[i][j % 2]);
        }
      }
    }
    for (int m = 0; m < s.parts; ++m) {
      if (!pixel_gate[m]) continue;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kRowChunks; ++i) sum += l.left[i] > 0 && l.part[i] == m ? of_gate[i][0] + of_gate[i][1] : 0.0f;
      sum = scale * group.sum(sum);
      if (l.lane == 0 && kept) pixel_gate[m][row] = sum;
    }
  }
  // What this block has of the gradients of the gates of an image's channels.
  __device__ __forceinline__ void store_gates(float* parts, RowValues& dgate, RowSums& sums, const RowShape& s,
                                              const RowLane& l, int image, int images) const {
    if (!parts) return;
    sums.store(dgate, s, l, [&](int i) {
      const int place = channel_gate[run(l, i)];
      const int64_t at = (int64_t(blockIdx.x) * channel_gates + place) * images + image;
      return place < 0 ? nullptr : parts + at * s.channels + l.channel[i];
    });
  }
};

static const char* why_not(const ConcatNorm& op) {
  if (op.maps < 2 || op.maps > 3) return "there must be 2 or 3 maps";
  if (!fits(op.maps, op.channels)) return kTooWide;
  return too_many(op.batch * op.pixels) ? kTooMany : nullptr;
}

static RowShape shape_of(const ConcatNorm& op) { return row_shape(op.maps, op.channels, op.channels % 8 == 0); }

static GatedRows gated_rows(const ConcatNorm& op) {
  GatedRows rows{};
  for (int i = 0; i < 3; ++i) {
    rows.map[i] = op.map[i], rows.gate[i] = op.gate[i], rows.kind[i] = op.kind[i];
    rows.channel_gate[i] = -1;
  }
  rows.pixels = static_cast<int>(op.pixels);
  return rows;
}

const char* concat_norm_forward(const ConcatNorm& op, TypedResult out, int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  using Kernel = NormForward<GatedRows>;
  const RowShape shape = shape_of(op);
  const int64_t rows = op.batch * op.pixels, blocks = (rows + shape.groups() - 1) / shape.groups();
  return launch<Kernel>(dim3(static_cast<unsigned>(std::min<int64_t>(blocks, int64_t(multiprocessors) * Kernel::kBlocks))),
                        {gated_rows(op), shape, op.weight, op.bias, out, static_cast<int>(rows), op.eps}, stream);
}

// How the backward is cut: an image into shares of about kRows rows a group of lanes, whatever the batch, and the images into
// as many columns as there are blocks of threads for.
struct ConcatNormPlan {
  static constexpr int kRows = 12;
  int64_t shares, columns, gates;
  int64_t width, gate_floats;

  ConcatNormPlan(const ConcatNorm& op, int64_t gates, int multiprocessors) : gates(gates) {
    const int64_t rows = shape_of(op).groups() * kRows;
    shares = std::min<int64_t>((op.pixels + rows - 1) / rows, 1024);
    const int64_t blocks = int64_t(multiprocessors) * NormBackward<GatedRows>::kBlocks;
    columns = std::min<int64_t>(std::clamp<int64_t>(blocks / std::max<int64_t>(shares, 1), 1, 65535), op.batch);
    width = op.maps * op.channels;
    gate_floats = shares * gates * op.batch * op.channels;
  }
  int64_t parts() const { return shares * columns; }
  int64_t floats() const { return gate_floats + 2 * parts() * width; }
};

int64_t concat_norm_backward_scratch(const ConcatNorm& op, int multiprocessors) {
  return ConcatNormPlan(op, op.maps, multiprocessors).floats() * int64_t(sizeof(float));
}

const char* concat_norm_backward(const ConcatNorm& op, Typed grad, const ConcatNormGradients& out, void* scratch,
                                 int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  GatedRows rows = gated_rows(op);
  for (int i = 0; i < op.maps; ++i) {
    rows.dmap[i] = {out.map[i], op.map[i].dtype};
    rows.pixel_gate[i] = out.pixel_gate[i];
    if (out.channel_gate[i]) rows.channel_gate[i] = rows.channel_gates++;
    rows.gates = rows.gates || out.channel_gate[i] || out.pixel_gate[i];
  }
  const ConcatNormPlan plan(op, rows.channel_gates, multiprocessors);
  float* const gate_parts = static_cast<float*>(scratch);
  float *const weight_parts = gate_parts + plan.gate_floats, *const bias_parts = weight_parts + plan.parts() * plan.width;
  const bool parameters = out.weight != nullptr;
  const char* error = launch<NormBackward<GatedRows>>(
      dim3(static_cast<unsigned>(plan.shares), static_cast<unsigned>(plan.columns)),
      {rows, shape_of(op), grad, op.weight, parameters ? weight_parts : nullptr, parameters ? bias_parts : nullptr,
       rows.channel_gates ? gate_parts : nullptr, static_cast<int>(op.batch), static_cast<int>(op.pixels), op.eps},
      stream);
  if (error) return error;
  return sum_of_parts(
      {{weight_parts, out.weight, plan.width, plan.parts()},
       {bias_parts, out.bias, plan.width, plan.parts()},
       {gate_parts, rows.channel_gates ? out.channel_gates : nullptr, plan.gates * op.batch * op.channels, plan.shares}},
      stream);
}

}  // namespace hifuse::cuda
