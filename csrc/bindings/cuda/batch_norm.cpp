// Batch normalisation in CUDA, for Python.
#include "bindings/cuda/typed.h"

namespace hifuse {
namespace {

// batch, height, width, channels, activation, pool; dtypes of x, weight and bias; multiprocessors; then those of a launch; eps
cuda::BatchNorm batch_norm(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& weight, const Given& bias,
                           const Given& mean, const Given& var) {
  return {sizes.at(0),
          sizes.at(1),
          sizes.at(2),
          sizes.at(3),
          static_cast<cuda::After>(sizes.at(4)),
          sizes.at(5) != 0,
          static_cast<float>(numbers.at(0)),
          typed(x, sizes, 6),
          typed(weight, sizes, 7),
          typed(bias, sizes, 8),
          pointer<const float*>(mean),
          pointer<const float*>(var)};
}
int batch_norm_multiprocessors(const Sizes& sizes) { return static_cast<int>(sizes.at(9)); }

int64_t batch_norm_statistics_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::batch_norm_statistics_scratch(batch_norm(sizes, numbers, {0}, {0}, {0}, {0}, {0}), multiprocessors);
}

void batch_norm_statistics(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& mean, const Given& var,
                           const Given& scratch, Stream stream) {
  check(cuda::batch_norm_statistics(batch_norm(sizes, numbers, x, {0}, {0}, {0}, {0}), pointer<float*>(mean),
                                    pointer<float*>(var), pointer<void*>(scratch), batch_norm_multiprocessors(sizes),
                                    stream_of(stream)));
}

// dtypes of residual and result
void batch_norm_forward(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& weight, const Given& bias,
                        const Given& mean, const Given& var, const Given& residual, const Given& out, Stream stream) {
  check(cuda::batch_norm_forward(batch_norm(sizes, numbers, x, weight, bias, mean, var), typed(residual, sizes, 10),
                                 typed_result(out, sizes, 11), batch_norm_multiprocessors(sizes), stream_of(stream)));
}

int64_t batch_norm_backward_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::batch_norm_backward_scratch(batch_norm(sizes, numbers, {0}, {0}, {0}, {0}, {0}), multiprocessors);
}

// dtype of the gradient, training
void batch_norm_backward(const Sizes& sizes, const Numbers& numbers, const Given& grad, const Given& x, const Given& weight,
                         const Given& bias, const Given& mean, const Given& var, const Given& dx, const Given& dweight,
                         const Given& dbias, const Given& scratch, Stream stream) {
  check(cuda::batch_norm_backward(batch_norm(sizes, numbers, x, weight, bias, mean, var), sizes.at(11) != 0,
                                  typed(grad, sizes, 10),
                                  {pointer<void*>(dx), pointer<float*>(dweight), pointer<float*>(dbias)},
                                  pointer<void*>(scratch), batch_norm_multiprocessors(sizes), stream_of(stream)));
}

}  // namespace

void bind_batch_norm(pybind11::module_& m) {
  m.def("batch_norm_statistics_scratch", &batch_norm_statistics_scratch);
  m.def("batch_norm_statistics", &batch_norm_statistics);
  m.def("batch_norm_forward", &batch_norm_forward);
  m.def("batch_norm_backward_scratch", &batch_norm_backward_scratch);
  m.def("batch_norm_backward", &batch_norm_backward);
}

}  // namespace hifuse
