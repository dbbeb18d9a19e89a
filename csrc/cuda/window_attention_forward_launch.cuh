// The launch of the forward for one dtype. A file for each dtype includes it, so that they are compiled side by side.
#pragma once
#include "window_attention_forward.cuh"
#include "window_attention_launch.h"

namespace hifuse::cuda {

template <class Kernel>
const char* launch_forward(const ForwardParams& p, int blocks, int multiprocessors, void* stream) {
  const int shares = shares_of(p.sizes.windows, int64_t(p.sizes.heads) * blocks, int64_t(multiprocessors) * Kernel::kBlocks);
  return launch<Kernel>(dim3(p.sizes.heads, shares, blocks), p, stream);
}

template <class T>
const char* window_attention_forward_of(const WindowAttentionForward& a, int multiprocessors, void* stream) {
  const ForwardParams p{sizes_of<T>(a.shape), bytes_of(a.qkv, sizeof(T)), static_cast<const float*>(a.bias_table),
                        static_cast<const unsigned char*>(a.qkv_bias), bytes_of(a.out, sizeof(T))};
  if constexpr (!kIsFloat32<T>)
    if (is_whole(a.shape) && is_near(a.shape, a.qkv) && is_near(a.shape, a.out))
      return launch_forward<WindowAttentionForwardWhole<T, 32, 7>>(p, 1, multiprocessors, stream);
  return with_head_dim(a.shape.head_dim, [&]<int kHeadDim>() {
    using Kernel = WindowAttentionForwardBlocks<T, kHeadDim>;
    return launch_forward<Kernel>(p, (p.sizes.grid.tokens() + Kernel::kRows - 1) / Kernel::kRows, multiprocessors, stream);
  });
}

}  // namespace hifuse::cuda
