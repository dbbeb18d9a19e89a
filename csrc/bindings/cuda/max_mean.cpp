// Largest value and mean in CUDA, for Python.
#include "bindings/cuda/typed.h"

namespace hifuse {
namespace {

// batch, pixels, channels, whether over channels; of the launches the dtype of maps and results
cuda::MaxMean max_mean(const Sizes& sizes) { return {sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3) != 0}; }

int64_t max_mean_scratch(const Sizes& sizes, const Numbers&, int multiprocessors) {
  return cuda::max_mean_scratch(max_mean(sizes), multiprocessors);
}

void max_mean_forward(const Sizes& sizes, const Numbers&, const Given& x, const Given& out, const Given& index,
                      const Given& scratch, Stream stream) {
  check(cuda::max_mean_forward(max_mean(sizes), typed(x, sizes, 4), typed_result(out, sizes, 4), pointer<int*>(index),
                               pointer<void*>(scratch), stream_of(stream)));
}

void max_mean_backward(const Sizes& sizes, const Numbers&, const Given& grad, const Given& index, const Given& dx,
                       Stream stream) {
  check(cuda::max_mean_backward(max_mean(sizes), typed(grad, sizes, 4), pointer<const int*>(index), typed_result(dx, sizes, 4),
                                stream_of(stream)));
}

}  // namespace

void bind_max_mean(pybind11::module_& m) {
  m.def("max_mean_scratch", &max_mean_scratch);
  m.def("max_mean_forward", &max_mean_forward);
  m.def("max_mean_backward", &max_mean_backward);
}

}  // namespace hifuse
