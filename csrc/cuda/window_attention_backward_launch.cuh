// The launches of the backward for one dtype, see window_attention_forward_launch.cuh.
#pragma once
#include "window_attention_backward.cuh"
#include "window_attention_backward_blocks.cuh"
#include "window_attention_launch.h"

namespace hifuse::cuda {

template <class T>
const char* window_attention_backward_of(const WindowAttentionBackward& a, const BackwardPlan& plan, void* scratch,
                                         void* stream) {
  const WindowAttentionShape& s = a.shape;
  const Sizes sizes = sizes_of<T>(s);
  const bool padded = sizes.grid.rows.length < sizes.grid.rows.padded || sizes.grid.columns.length < sizes.grid.columns.padded;
  const auto at = [&](int64_t offset) { return reinterpret_cast<float*>(static_cast<unsigned char*>(scratch) + offset); };
  const BackwardParams p{sizes,
                         bytes_of(a.grad, sizeof(T)),
                         bytes_of(a.qkv, sizeof(T)),
                         static_cast<const float*>(a.bias_table),
                         static_cast<const unsigned char*>(a.qkv_bias),
                         bytes_of(a.grad_qkv, sizeof(T)),
                         a.grad_qkv.data != nullptr,
                         a.grad_bias_table ? at(plan.table_parts) : nullptr,
                         padded && a.grad_qkv_bias ? at(plan.padding_parts) : nullptr,
                         at(plan.statistics),
                         reinterpret_cast<float4*>(at(plan.bias_sums))};
  const dim3 grid(sizes.heads, plan.shares, plan.blocks);
  const char* error = nullptr;
  if constexpr (!kIsFloat32<T>)
    if (plan.whole) error = launch<WindowAttentionBackwardWhole<T, 32, 7>>(grid, p, stream);
  if (!plan.whole)
    error = with_head_dim(s.head_dim, [&]<int kHeadDim>() {
      const char* error = launch<WindowAttentionBackwardQueries<T, kHeadDim>>(grid, p, stream);
      if (error == nullptr && p.need_map) error = launch<WindowAttentionBackwardKeys<T, kHeadDim>>(grid, p, stream);
      return error;
    });
  return error;
}

}  // namespace hifuse::cuda
