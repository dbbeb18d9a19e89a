// The entry point of the MLP for sm_90a.
#include <algorithm>

#include "mlp_sm90.cuh"
#include "sm90_ops.h"

namespace hifuse::cuda {

template <class Kernel>
static const char* launch_mlp(const MlpSm90& op, int multiprocessors, void* stream) {
  MlpParams p{};
  const char* error = map_matrix(p.u, op.u, op.rows, op.depth, op.depth, Kernel::kRows);
  if (error == nullptr) error = map_matrix(p.expand, op.expand, op.hidden, op.depth, op.depth, Kernel::kUnits);
  if (error == nullptr) error = map_matrix(p.project, op.project, op.columns, op.hidden, op.hidden, Kernel::kMostColumns);
  if (error != nullptr) return error;
  p.expand_bias = static_cast<const unsigned char*>(op.expand_bias);
  p.finish = {static_cast<const unsigned char*>(op.project_bias), static_cast<const unsigned char*>(op.residual),
              static_cast<unsigned char*>(op.out), static_cast<int>(op.rows), static_cast<int>(op.columns)};
  p.hidden = static_cast<int>(op.hidden);
  const int64_t tiles = (op.rows + Kernel::kRows - 1) / Kernel::kRows;
  return launch<Kernel>(dim3(static_cast<unsigned>(std::min<int64_t>(tiles, multiprocessors))), p, stream);
}

template <class T>
static const char* mlp_of(const MlpSm90& op, int multiprocessors, void* stream) {
  if (op.depth <= 288 && op.columns <= 96) return launch_mlp<MlpKernel<T, 288, 96, 2, 64, 5>>(op, multiprocessors, stream);
  return launch_mlp<MlpKernel<T, 576, 192, 1, 128, 3>>(op, multiprocessors, stream);
}

const char* mlp_sm90(const MlpSm90& op, int multiprocessors, void* stream) {
  if (op.depth % 8 || op.depth < 8 || op.depth > 576) return "the depth must be a multiple of 8 from 8 to 576";
  if (op.columns % 8 || op.columns < 8 || op.columns > 192) return "the columns must be a multiple of 8 from 8 to 192";
  if (op.hidden % 128 || op.hidden < 128 || op.hidden >= INT32_MAX) return "the hidden units must be a multiple of 128";
  if (op.rows >= INT32_MAX - 256) return "the maps have more than 2^31 pixels";
  if (op.rows == 0) return nullptr;
  switch (op.dtype) {
    case DType::bfloat16: return mlp_of<bf16>(op, multiprocessors, stream);
    case DType::float16: return mlp_of<f16>(op, multiprocessors, stream);
    default: return "the kernels for sm_90a are for bfloat16 and float16";
  }
}

}  // namespace hifuse::cuda
