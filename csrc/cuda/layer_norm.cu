// Layer normalisation of the pixels or the 2x2 patches of a map.
#include "norm_rows.cuh"
#include "sum_of_parts.h"

namespace hifuse::cuda {

struct MapRows {
  static constexpr const char *kForward = "layer_norm_forward", *kBackward = "layer_norm_backward";
  static constexpr bool kGates = false;

  Map<const void*> x;
  DType dtype;
  void* dx;  // contiguous, or null
  int height, width;
  bool patches, flat;  // flat: row r of a map of pixels begins at number r channels

  // Where the map has the first channel of a row, or of its patch.
  struct Place {
    int image, y, x;
  };
  __device__ __forceinline__ Place place(int row) const {
    const int rows = patches ? (height + 1) / 2 : height, columns = patches ? (width + 1) / 2 : width;
    const int side = patches ? 2 : 1, line = row / columns;
    return {line / rows, line % rows * side, row % columns * side};
  }

  __device__ __forceinline__ void load(RowChunks& e, const RowShape& s, const RowLane& l, int row, bool kept) const {
    const Typed map{x.data, dtype};
    const Place at = flat ? Place{} : place(row);
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      int64_t first = int64_t(row) * s.channels;
      bool on_map = kept;
      if (!flat) {
        const int y = at.y + l.part[i] % 2, column = at.x + l.part[i] / 2;
        on_map = kept && y < height && column < width;
        first = at.image * x.batch_stride + y * x.row_stride + column * x.column_stride;
      }
      e[i] = load_eight(map, first + l.channel[i], on_map ? l.left[i] : 0, s.vectors);
    }
  }
  __device__ __forceinline__ void widen(RowValues& r, const RowChunks& e, const RowShape&, const RowLane&, int, bool) const {
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) cuda::widen(r[i], e[i], dtype);
  }
  __device__ __forceinline__ void store(RowValues& dr, float scale, RowValues&, const RowShape& s, const RowLane& l, RowGroup&,
                                        int row, bool kept) const {
    if (!dx || !kept) return;
    const Place at = patches ? place(row) : Place{};
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      int64_t pixel = row;
      bool on_map = true;
      if (patches) {
        const int y = at.y + l.part[i] % 2, column = at.x + l.part[i] / 2;
        on_map = y < height && column < width;
        pixel = (int64_t(at.image) * height + y) * width + column;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) dr[i][j] *= scale;
      store_eight({dx, dtype}, pixel * s.channels + l.channel[i], dr[i], on_map ? l.left[i] : 0, s.vectors);
    }
  }
};

static int64_t rows_of(const LayerNorm& op) {
  return op.patches ? op.batch * ((op.height + 1) / 2) * ((op.width + 1) / 2) : op.batch * op.height * op.width;
}
static int64_t width_of(const LayerNorm& op) { return op.channels * (op.patches ? 4 : 1); }

static const char* why_not(const LayerNorm& op) {
  if (!is_float(op.dtype)) return kNoFloat64;
  if (!fits(op.patches ? 4 : 1, op.channels)) return kTooWide;
  return too_many(op.batch * op.height * op.width) ? kTooMany : nullptr;
}

static RowShape shape_of(const LayerNorm& op) {
  return row_shape(op.patches ? 4 : 1, op.channels, has_vectors(op.x, op.dtype, op.channels));
}

static MapRows map_rows(const LayerNorm& op, void* dx) {
  const bool flat = !op.patches && op.x.column_stride == op.channels && op.x.row_stride == op.width * op.channels &&
                    op.x.batch_stride == op.height * op.width * op.channels;
  return {op.x, op.dtype, dx, static_cast<int>(op.height), static_cast<int>(op.width), op.patches, flat};
}

template <class Kernel>
static int blocks_of(const LayerNorm& op, int multiprocessors) {
  const int64_t groups = row_shape(op.patches ? 4 : 1, op.channels, false).groups();
  return static_cast<int>(std::min<int64_t>((rows_of(op) + groups - 1) / groups, int64_t(multiprocessors) * Kernel::kBlocks));
}

const char* layer_norm_forward(const LayerNorm& op, TypedResult out, int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  using Kernel = NormForward<MapRows>;
  return launch<Kernel>(dim3(blocks_of<Kernel>(op, multiprocessors)),
                        {map_rows(op, nullptr), shape_of(op), op.weight, op.bias, out, static_cast<int>(rows_of(op)), op.eps},
                        stream);
}

int64_t layer_norm_backward_scratch(const LayerNorm& op, int multiprocessors) {
  return 2 * blocks_of<NormBackward<MapRows>>(op, multiprocessors) * width_of(op) * int64_t(sizeof(float));
}

const char* layer_norm_backward(const LayerNorm& op, Typed grad, const LayerNormGradients& out, void* scratch,
                                int multiprocessors, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  using Kernel = NormBackward<MapRows>;
  const int64_t parts = blocks_of<Kernel>(op, multiprocessors), width = width_of(op);
  float *weight_parts = out.weight ? static_cast<float*>(scratch) : nullptr, *bias_parts = weight_parts + parts * width;
  const char* error = launch<Kernel>(dim3(static_cast<unsigned>(parts)),
                                     {map_rows(op, out.x), shape_of(op), grad, op.weight, weight_parts, bias_parts, nullptr, 1,
                                      static_cast<int>(rows_of(op)), op.eps},
                                     stream);
  if (error || !out.weight) return error;
  return sum_of_parts({{weight_parts, out.weight, width, parts}, {bias_parts, out.bias, width, parts}}, stream);
}

}  // namespace hifuse::cuda
