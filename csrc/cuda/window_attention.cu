// The entry points of window attention: which kernels serve a call.
#include "kernels.h"
#include "storage.cuh"
#include "sum_of_parts.h"
#include "window_attention_launch.h"

namespace hifuse::cuda {

// In a file for each dtype.
template <class T>
const char* window_attention_forward_of(const WindowAttentionForward& a, int multiprocessors, void* stream);
template <class T>
const char* window_attention_backward_of(const WindowAttentionBackward& a, const BackwardPlan& plan, void* scratch,
                                         void* stream);

const char* window_attention_forward(const WindowAttentionForward& a, int multiprocessors, void* stream) {
  if (const char* reason = why_not(a.shape)) return reason;
  if (!is_aligned(a.shape, a.qkv) || !is_aligned(a.shape, a.out)) return kUnaligned;
  switch (a.shape.dtype) {
    case DType::float32: return window_attention_forward_of<float>(a, multiprocessors, stream);
    case DType::bfloat16: return window_attention_forward_of<bf16>(a, multiprocessors, stream);
    case DType::float16: return window_attention_forward_of<f16>(a, multiprocessors, stream);
    default: return "there is no kernel for float64";
  }
}

// Strides are not known here: scratch memory for whichever kernels.
int64_t window_attention_backward_scratch(const WindowAttentionShape& shape, int multiprocessors) {
  return std::max(plan_backward(shape, true, multiprocessors).bytes, plan_backward(shape, false, multiprocessors).bytes);
}

const char* window_attention_backward(const WindowAttentionBackward& a, void* scratch, int multiprocessors, void* stream) {
  if (const char* reason = why_not(a.shape)) return reason;
  if (!is_aligned(a.shape, a.qkv) || !is_aligned(a.shape, a.grad) || !is_aligned(a.shape, a.grad_qkv)) return kUnaligned;
  const bool whole = is_whole(a.shape) && is_near(a.shape, a.qkv) && is_near(a.shape, a.grad) && is_near(a.shape, a.grad_qkv);
  const BackwardPlan plan = plan_backward(a.shape, whole, multiprocessors);
  const char* error = nullptr;
  switch (a.shape.dtype) {
    case DType::float32: error = window_attention_backward_of<float>(a, plan, scratch, stream); break;
    case DType::bfloat16: error = window_attention_backward_of<bf16>(a, plan, scratch, stream); break;
    case DType::float16: error = window_attention_backward_of<f16>(a, plan, scratch, stream); break;
    default: return "there is no kernel for float64";
  }
  if (error != nullptr) return error;

  const WindowAttentionShape& s = a.shape;
  const bool padded = s.height % s.window_size || s.width % s.window_size;
  const auto job = [&](int64_t parts, void* out, int64_t count, int64_t of) {
    const auto* in = reinterpret_cast<const float*>(static_cast<const unsigned char*>(scratch) + parts);
    return PartsJob{in, static_cast<float*>(out), count, of};
  };
  const int64_t side = 2 * s.window_size - 1;
  return sum_of_parts({job(plan.table_parts, a.grad_bias_table, side * side * s.num_heads, plan.parts),
                       job(plan.padding_parts, a.grad_qkv_bias, 3 * s.num_heads * s.head_dim, padded ? plan.parts : 0)},
                      stream);
}

}  // namespace hifuse::cuda
