// Layer normalisation in CUDA, for Python.
#include "bindings/cuda/typed.h"

namespace hifuse {
namespace {

// dtypes of x, weight and bias; batch, height, width, channels, patches; of the launches the dtype of the result or the
// gradient, multiprocessors; eps
cuda::LayerNorm layer_norm(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& weight, const Given& bias) {
  return {sizes.at(3),          sizes.at(4),      sizes.at(5),
          sizes.at(6),          sizes.at(7) != 0, static_cast<float>(numbers.at(0)),
          dtype(sizes, 0),      map(x),           typed(weight, sizes, 1),
          typed(bias, sizes, 2)};
}

void layer_norm_forward(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& weight, const Given& bias,
                        const Given& out, Stream stream) {
  check(cuda::layer_norm_forward(layer_norm(sizes, numbers, x, weight, bias), typed_result(out, sizes, 8),
                                 static_cast<int>(sizes.at(9)), stream_of(stream)));
}

int64_t layer_norm_backward_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::layer_norm_backward_scratch(layer_norm(sizes, numbers, {0}, {0}, {0}), multiprocessors);
}

void layer_norm_backward(const Sizes& sizes, const Numbers& numbers, const Given& grad, const Given& x, const Given& weight,
                         const Given& grad_x, const Given& grad_weight, const Given& grad_bias, const Given& scratch,
                         Stream stream) {
  check(cuda::layer_norm_backward(layer_norm(sizes, numbers, x, weight, {0}), typed(grad, sizes, 8),
                                  {pointer<void*>(grad_x), pointer<float*>(grad_weight), pointer<float*>(grad_bias)},
                                  pointer<void*>(scratch), static_cast<int>(sizes.at(9)), stream_of(stream)));
}

}  // namespace

void bind_layer_norm(pybind11::module_& m) {
  m.def("layer_norm_forward", &layer_norm_forward);
  m.def("layer_norm_backward_scratch", &layer_norm_backward_scratch);
  m.def("layer_norm_backward", &layer_norm_backward);
}

}  // namespace hifuse
