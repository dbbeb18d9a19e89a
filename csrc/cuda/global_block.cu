// The entry point of the global block.
#include "global_block.cuh"
#include "window_attention_launch.h"

namespace hifuse::cuda {

template <class T, int kChannels>
static const char* launch_global_block(const GlobalBlock& op, void* stream) {
  using Kernel = GlobalBlockKernel<T, kChannels>;
  const Sizes sizes = sizes_of<T>(op.shape);
  return launch<Kernel>(dim3(static_cast<unsigned>((sizes.windows + Kernel::kWindows - 1) / Kernel::kWindows)),
                        {sizes, static_cast<const unsigned char*>(op.x), static_cast<const uint4*>(op.qkv), op.qkv_bias,
                         op.padding, reinterpret_cast<const float4*>(op.table), static_cast<const uint4*>(op.weight), op.bias,
                         static_cast<unsigned char*>(op.out), op.eps},
                        stream);
}

template <class T>
static const char* global_block_of(const GlobalBlock& op, void* stream) {
  const int64_t heads = op.shape.num_heads;
  if (heads * op.shape.head_dim <= kNarrow && heads <= kNarrow / 32) return launch_global_block<T, kNarrow>(op, stream);
  return launch_global_block<T, kWide>(op, stream);
}

const char* global_block(const GlobalBlock& op, void* stream) {
  const WindowAttentionShape& s = op.shape;
  const int64_t channels = s.num_heads * s.head_dim;
  if (const char* reason = why_not(s)) return reason;
  if (s.head_dim > 32 || channels > kWide || s.num_heads > kWide / 32)
    return "a whole block has up to 6 heads of up to 32 channels";
  if (s.window_size > 7) return "windows of a whole block are up to 7 x 7";
  if (s.batch * s.height * s.width >= INT32_MAX) return "the maps have more than 2^31 pixels";
  switch (s.dtype) {
    case DType::bfloat16: return global_block_of<bf16>(op, stream);
    case DType::float16: return global_block_of<f16>(op, stream);
    default: return "whole blocks have kernels for bfloat16 and float16";
  }
}

}  // namespace hifuse::cuda
