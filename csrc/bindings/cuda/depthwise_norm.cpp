// Depthwise convolution and layer normalisation in CUDA, for Python.
#include "bindings/cuda/typed.h"

namespace hifuse {
namespace {

// batch, height, width, channels; dtypes of x, of what it is taken in, of filter_bias, weight, bias, and the result or its
// gradient; multiprocessors; eps
cuda::DepthwiseNorm depthwise_norm(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& taps,
                                   const Given& filter_bias, const Given& weight, const Given& bias) {
  return {sizes.at(0),
          sizes.at(1),
          sizes.at(2),
          sizes.at(3),
          static_cast<float>(numbers.at(0)),
          dtype(sizes, 4),
          dtype(sizes, 5),
          map(x),
          pointer<const float*>(taps),
          typed(filter_bias, sizes, 6),
          typed(weight, sizes, 7),
          typed(bias, sizes, 8)};
}
int depthwise_norm_multiprocessors(const Sizes& sizes) { return static_cast<int>(sizes.at(10)); }

void depthwise_norm_forward(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& taps,
                            const Given& filter_bias, const Given& weight, const Given& bias, const Given& out, Stream stream) {
  check(cuda::depthwise_norm_forward(depthwise_norm(sizes, numbers, x, taps, filter_bias, weight, bias),
                                     typed_result(out, sizes, 9), depthwise_norm_multiprocessors(sizes), stream_of(stream)));
}

int64_t depthwise_norm_backward_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::depthwise_norm_backward_scratch(depthwise_norm(sizes, numbers, {0}, {0}, {0}, {0}, {0}), multiprocessors);
}

void depthwise_norm_backward(const Sizes& sizes, const Numbers& numbers, const Given& grad, const Given& x, const Given& taps,
                             const Given& filter_bias, const Given& weight, const Given& dc, const Given& dfilter_bias,
                             const Given& dweight, const Given& dbias, const Given& scratch, Stream stream) {
  check(cuda::depthwise_norm_backward(depthwise_norm(sizes, numbers, x, taps, filter_bias, weight, {0}), typed(grad, sizes, 9),
                                      pointer<void*>(dc),
                                      {pointer<float*>(dfilter_bias), pointer<float*>(dweight), pointer<float*>(dbias)},
                                      pointer<void*>(scratch), depthwise_norm_multiprocessors(sizes), stream_of(stream)));
}

int64_t depthwise_convolution_backward_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::depthwise_convolution_backward_scratch(depthwise_norm(sizes, numbers, {0}, {0}, {0}, {0}, {0}), multiprocessors);
}

void depthwise_convolution_backward(const Sizes& sizes, const Numbers& numbers, const Given& dc, const Given& x,
                                    const Given& taps, const Given& dx, const Given& dtaps, const Given& scratch,
                                    Stream stream) {
  check(cuda::depthwise_convolution_backward(depthwise_norm(sizes, numbers, x, taps, {0}, {0}, {0}), pointer(dc),
                                             pointer<void*>(dx), pointer<float*>(dtaps), pointer<void*>(scratch),
                                             depthwise_norm_multiprocessors(sizes), stream_of(stream)));
}

}  // namespace

void bind_depthwise_norm(pybind11::module_& m) {
  m.def("depthwise_norm_forward", &depthwise_norm_forward);
  m.def("depthwise_norm_backward_scratch", &depthwise_norm_backward_scratch);
  m.def("depthwise_norm_backward", &depthwise_norm_backward);
  m.def("depthwise_convolution_backward_scratch", &depthwise_convolution_backward_scratch);
  m.def("depthwise_convolution_backward", &depthwise_convolution_backward);
}

}  // namespace hifuse
