// The entry point of the fuse path.
#include "fuse_path.cuh"

namespace hifuse::cuda {

template <class T>
static const char* fuse_path_of(const FusePath& op, void* stream) {
  using Kernel = FusePathKernel<T>;
  const int64_t pixels = op.batch * op.height * op.width;
  return launch<Kernel>(dim3(static_cast<unsigned>((pixels + Kernel::kPixels - 1) / Kernel::kPixels)),
                        {{static_cast<const unsigned char*>(op.local_map), static_cast<const unsigned char*>(op.global_map)},
                         static_cast<const uint4*>(op.weights),
                         op.biases,
                         static_cast<unsigned char*>(op.out),
                         static_cast<int>(pixels),
                         static_cast<int>(op.channels),
                         op.eps},
                        stream);
}

const char* fuse_path(const FusePath& op, void* stream) {
  if (op.channels % 8 || op.channels < 8 || op.channels > kNarrow) return "channels must be a multiple of 8 from 8 to 96";
  if (op.batch * op.height * op.width >= INT32_MAX / 2) return "the maps have more than 2^30 pixels";
  switch (op.dtype) {
    case DType::bfloat16: return fuse_path_of<bf16>(op, stream);
    case DType::float16: return fuse_path_of<f16>(op, stream);
    default: return "whole blocks have kernels for bfloat16 and float16";
  }
}

}  // namespace hifuse::cuda
