// Window attention, forward and backward.
#include <tuple>

#include "bindings/common.h"

namespace hifuse {
namespace {

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Half: return DType::float16;
    case ScalarType::Double: return DType::float64;
    default: STD_TORCH_CHECK(false, "window_attention: qkv must be float32, bfloat16, float16 or float64");
  }
}

Tensor with_contiguous_channels(const Tensor& map) { return map.stride(3) == 1 ? map : torch::stable::contiguous(map); }

Map<const void*> input_map(const Tensor& map) { return {map.const_data_ptr(), map.stride(0), map.stride(1), map.stride(2)}; }
Map<void*> output_map(const Tensor& map) { return {map.mutable_data_ptr(), map.stride(0), map.stride(1), map.stride(2)}; }

// Tables and biases come in the type of the arithmetic, contiguous.
void check_parameter(const char* name, const Tensor& parameter, const Tensor& qkv) {
  const auto type = qkv.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(parameter.is_cpu() && parameter.is_contiguous() && parameter.scalar_type() == type,
                  "window_attention: ", name, " must be contiguous, on the CPU, and float32 (float64 with a float64 map)");
}

// The Python API has checked all this with friendlier words; here it keeps a direct call of the op from touching foreign
// memory.
WindowAttentionShape check_window_attention(const Tensor& qkv, const Tensor& bias_table, const std::optional<Tensor>& qkv_bias,
                                            int64_t num_heads, int64_t window_size, int64_t shift_size, double scale) {
  STD_TORCH_CHECK(qkv.dim() == 4, "window_attention: qkv must be [B, H, W, 3C]");
  STD_TORCH_CHECK(num_heads > 0 && qkv.size(3) > 0 && qkv.size(3) % (3 * num_heads) == 0,
                  "window_attention: qkv must have 3 * num_heads * head_dim channels");
  STD_TORCH_CHECK(window_size >= 1 && window_size <= 16, "window_attention: window_size must be from 1 to 16");
  STD_TORCH_CHECK(shift_size >= 0 && shift_size < window_size, "window_attention: shift_size must be in [0, window_size)");
  const int64_t table_rows = (2 * window_size - 1) * (2 * window_size - 1);
  STD_TORCH_CHECK(bias_table.dim() == 2 && bias_table.size(0) == table_rows && bias_table.size(1) == num_heads,
                  "window_attention: bias_table must be [(2 * window_size - 1)^2, num_heads]");
  check_parameter("bias_table", bias_table, qkv);
  if (qkv_bias) {
    STD_TORCH_CHECK(qkv_bias->dim() == 1 && qkv_bias->size(0) == qkv.size(3), "window_attention: qkv_bias must be [3C]");
    check_parameter("qkv_bias", *qkv_bias, qkv);
  }
  return {dtype_of(qkv), qkv.size(0), qkv.size(1), qkv.size(2), num_heads, qkv.size(3) / (3 * num_heads),
          window_size,   shift_size,  scale};
}

void window_attention_out(const Tensor& qkv, const Tensor& bias_table, const std::optional<Tensor>& qkv_bias, Tensor out,
                          int64_t num_heads, int64_t window_size, int64_t shift_size, double scale) {
  const auto shape = check_window_attention(qkv, bias_table, qkv_bias, num_heads, window_size, shift_size, scale);
  STD_TORCH_CHECK(out.dim() == 4 && out.size(0) == shape.batch && out.size(1) == shape.height && out.size(2) == shape.width &&
                      3 * out.size(3) == qkv.size(3) && out.stride(3) == 1 && out.is_cpu() &&
                      out.scalar_type() == qkv.scalar_type(),
                  "window_attention: out must be [B, H, W, C] like qkv, its channels side by side");
  const Tensor maps = with_contiguous_channels(qkv);
  isa::kernels().window_attention_forward(
      {shape, input_map(maps), bias_table.const_data_ptr(), data_of(qkv_bias), output_map(out)}, threads());
}

Tensor window_attention(const Tensor& qkv, const Tensor& bias_table, const std::optional<Tensor>& qkv_bias, int64_t num_heads,
                        int64_t window_size, int64_t shift_size, double scale) {
  STD_TORCH_CHECK(qkv.dim() == 4, "window_attention: qkv must be [B, H, W, 3C]");
  const Tensor out = torch::stable::new_empty(qkv, {qkv.size(0), qkv.size(1), qkv.size(2), qkv.size(3) / 3});
  window_attention_out(qkv, bias_table, qkv_bias, out, num_heads, window_size, shift_size, scale);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> window_attention_backward(const Tensor& grad, const Tensor& qkv, const Tensor& bias_table,
                                                             const std::optional<Tensor>& qkv_bias, int64_t num_heads,
                                                             int64_t window_size, int64_t shift_size, double scale,
                                                             bool need_map, bool need_table) {
  const auto shape = check_window_attention(qkv, bias_table, qkv_bias, num_heads, window_size, shift_size, scale);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == shape.batch && grad.size(1) == shape.height &&
                      grad.size(2) == shape.width && 3 * grad.size(3) == qkv.size(3) && grad.is_cpu() &&
                      grad.scalar_type() == qkv.scalar_type(),
                  "window_attention_backward: grad must be [B, H, W, C] like qkv");
  const Tensor grads = with_contiguous_channels(grad);
  const Tensor maps = with_contiguous_channels(qkv);
  // What is not needed comes back empty.
  Tensor grad_qkv = torch::stable::new_empty(qkv, {need_map ? shape.batch : 0, shape.height, shape.width, qkv.size(3)});
  Tensor grad_table = torch::stable::new_empty(bias_table, {need_table ? bias_table.size(0) : 0, bias_table.size(1)});
  Tensor grad_bias = torch::stable::new_empty(bias_table, {need_map ? qkv.size(3) : 0});
  isa::kernels().window_attention_backward(
      {shape, input_map(grads), input_map(maps), bias_table.const_data_ptr(), data_of(qkv_bias),
       need_map ? output_map(grad_qkv) : Map<void*>{}, need_table ? grad_table.mutable_data_ptr() : nullptr,
       need_map ? grad_bias.mutable_data_ptr() : nullptr},
      threads());
  return {grad_qkv, grad_table, grad_bias};
}

}  // namespace
}  // namespace hifuse

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) {
  m.impl("window_attention", TORCH_BOX(&hifuse::window_attention));
  m.impl("window_attention_out", TORCH_BOX(&hifuse::window_attention_out));
  m.impl("window_attention_backward", TORCH_BOX(&hifuse::window_attention_backward));
}
