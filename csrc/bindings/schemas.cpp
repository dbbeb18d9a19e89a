// The schemas of all ops of this library.
//
// Ops of functions return fresh tensors and write to nothing that they are given. Ops of the frozen network end in `_out`: they
// write to the maps that they are given and return nothing, which torch.export, its decompositions and torch.compile can reason
// about. Each op has a fake in hifuse_fast/backends/native/fakes.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(hifuse_fast, m) {
  // Functions.
  m.def(
      "window_attention(Tensor qkv, Tensor bias_table, Tensor? qkv_bias, int num_heads, int window_size, int shift_size, "
      "float scale) -> Tensor");
  m.def(
      "window_attention_backward(Tensor grad, Tensor qkv, Tensor bias_table, Tensor? qkv_bias, int num_heads, int window_size, "
      "int shift_size, float scale, bool need_map, bool need_table) -> (Tensor, Tensor, Tensor)");
  m.def("mixer_convolution(Tensor z, Tensor weight, bool transposed) -> Tensor");
  m.def("mixer_filters_gradient(Tensor grad, Tensor z) -> Tensor");

  // Packing: plain tensors in, those of the op below out, in its order. `dtype` is that of the maps.
  m.def("copy_weight(Tensor weight) -> Tensor");
  m.def("pack_linear(Tensor weight, Tensor bias, ScalarType dtype, int algorithm) -> (Tensor, Tensor)");
  m.def("pack_int8(Tensor weight, int block) -> Tensor");
  m.def(
      "pack_local_block(Tensor filters, Tensor filter_bias, Tensor weight, Tensor bias, ScalarType dtype) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pack_stem(Tensor weight, Tensor bias, Tensor scale, Tensor shift, ScalarType dtype) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pack_gated_concat(Tensor filters, Tensor filter_bias, Tensor squeeze, Tensor expand, Tensor scale, Tensor shift) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("pack_mixer(Tensor weight, ScalarType dtype, int algorithm) -> Tensor");
  m.def("pack_mixer_int8(Tensor weight, int algorithm) -> Tensor");
  m.def(
      "pack_mlp(Tensor expand, Tensor expand_bias, Tensor project, Tensor project_bias, ScalarType dtype, int algorithm) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // Ops of the frozen network. `rows`, `norm`, `activation`, `algorithm`: the enumerations of arguments.h by number.
  m.def(
      "window_attention_out(Tensor qkv, Tensor bias_table, Tensor? qkv_bias, Tensor(a!) out, int num_heads, int window_size, "
      "int shift_size, float scale) -> ()");
  m.def(
      "linear_out(Tensor[] maps, Tensor weight, Tensor bias, Tensor? residual, Tensor(a!) out, int rows, int norm, float eps, "
      "int activation, bool pool, int algorithm) -> ()");
  m.def(
      "linear_int8_out(Tensor[] maps, Tensor weight, Tensor scale, Tensor bias, Tensor? residual, Tensor(a!) out, int rows, "
      "int norm, float eps, int activation, bool pool, float inverse) -> ()");
  m.def(
      "local_block_out(Tensor x, Tensor filters, Tensor filter_bias, Tensor weight, Tensor bias, Tensor(a!) out, float eps) "
      "-> ()");
  m.def(
      "local_block_int8_out(Tensor x, Tensor filters, Tensor filter_bias, Tensor weight, Tensor scale, Tensor bias, "
      "Tensor(a!) out, float eps, float inverse) -> ()");
  m.def(
      "stem_out(Tensor images, Tensor weight, Tensor bias, Tensor scale, Tensor shift, Tensor(a!) local_map, "
      "Tensor(b!) global_map, float local_eps, float global_eps) -> ()");
  m.def(
      "gated_concat_out(Tensor local_map, Tensor global_map, Tensor x, Tensor filters, Tensor filter_bias, Tensor squeeze, "
      "Tensor expand, Tensor scale, Tensor shift, Tensor(a!) out, bool double_sigmoid, float eps) -> ()");
  m.def("mixer_out(Tensor z, Tensor weight, Tensor(a!) out, int algorithm) -> ()");
  m.def("mixer_int8_out(Tensor z, Tensor weight, Tensor scale, Tensor(a!) out, float inverse, int algorithm) -> ()");
  m.def(
      "mlp_out(Tensor u, Tensor expand, Tensor expand_bias, Tensor project, Tensor project_bias, Tensor? residual, "
      "Tensor(a!) out, int algorithm) -> ()");
  m.def(
      "mlp_int8_out(Tensor u, Tensor expand, Tensor expand_scale, Tensor expand_bias, Tensor project, Tensor project_scale, "
      "Tensor project_bias, Tensor? residual, Tensor(a!) out, float inverse, float hidden_inverse) -> ()");
  m.def("mean_out(Tensor x, Tensor(a!) out) -> ()");
}
