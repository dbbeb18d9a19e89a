// Window attention in CUDA, for Python.
#include "bindings/cuda/given.h"

namespace hifuse {
namespace {

// dtype, batch, height, width, num_heads, head_dim, window_size, shift_size, multiprocessors; scale
WindowAttentionShape attention_shape(const Sizes& sizes, const Numbers& numbers) {
  return {static_cast<DType>(sizes.at(0)),
          sizes.at(1),
          sizes.at(2),
          sizes.at(3),
          sizes.at(4),
          sizes.at(5),
          sizes.at(6),
          sizes.at(7),
          numbers.at(0)};
}

void window_attention_forward(const Sizes& sizes, const Numbers& numbers, const Given& qkv, const Given& bias_table,
                              const Given& qkv_bias, const Given& out, Stream stream) {
  check(cuda::window_attention_forward(
      {attention_shape(sizes, numbers), map(qkv), pointer(bias_table), pointer(qkv_bias), map<void*>(out)},
      static_cast<int>(sizes.at(8)), stream_of(stream)));
}

int64_t window_attention_backward_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::window_attention_backward_scratch(attention_shape(sizes, numbers), multiprocessors);
}

void window_attention_backward(const Sizes& sizes, const Numbers& numbers, const Given& grad, const Given& qkv,
                               const Given& bias_table, const Given& qkv_bias, const Given& grad_qkv,
                               const Given& grad_bias_table, const Given& grad_qkv_bias, const Given& scratch, Stream stream) {
  check(cuda::window_attention_backward(
      {attention_shape(sizes, numbers), map(grad), map(qkv), pointer(bias_table), pointer(qkv_bias), map<void*>(grad_qkv),
       pointer<void*>(grad_bias_table), pointer<void*>(grad_qkv_bias)},
      pointer<void*>(scratch), static_cast<int>(sizes.at(8)), stream_of(stream)));
}

}  // namespace

void bind_window_attention(pybind11::module_& m) {
  m.def("window_attention_forward", &window_attention_forward);
  m.def("window_attention_backward_scratch", &window_attention_backward_scratch);
  m.def("window_attention_backward", &window_attention_backward);
}

}  // namespace hifuse
