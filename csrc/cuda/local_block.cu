// The entry point of the local block.
#include "local_block.cuh"

namespace hifuse::cuda {

template <class T, int kChannels>
static const char* launch_local_block(const LocalBlock& op, void* stream) {
  using Kernel = LocalBlockKernel<T, kChannels>;
  const int64_t rows = (op.height + Kernel::kHeight - 1) / Kernel::kHeight,
                columns = (op.width + Kernel::kWidth - 1) / Kernel::kWidth;
  return launch<Kernel>(dim3(static_cast<unsigned>(op.batch * rows * columns)),
                        {static_cast<const unsigned char*>(op.x), op.taps, op.filter_bias, static_cast<const uint4*>(op.weight),
                         op.bias, static_cast<unsigned char*>(op.out), static_cast<int>(op.height), static_cast<int>(op.width),
                         static_cast<int>(op.channels), static_cast<int>(rows), static_cast<int>(columns), op.eps},
                        stream);
}

template <class T>
static const char* local_block_of(const LocalBlock& op, void* stream) {
  if (op.channels <= kNarrow) return launch_local_block<T, kNarrow>(op, stream);
  return launch_local_block<T, kWide>(op, stream);
}

const char* local_block(const LocalBlock& op, void* stream) {
  if (op.channels % 8 || op.channels < 8 || op.channels > kWide) return "channels must be a multiple of 8 from 8 to 192";
  // Tiles have pixels that are not on the map.
  if (op.batch * (op.height + 8) * (op.width + 16) >= INT32_MAX) return "the maps have more than 2^31 pixels";
  switch (op.dtype) {
    case DType::bfloat16: return local_block_of<bf16>(op, stream);
    case DType::float16: return local_block_of<f16>(op, stream);
    default: return "whole blocks have kernels for bfloat16 and float16";
  }
}

}  // namespace hifuse::cuda
