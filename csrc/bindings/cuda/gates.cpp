// The gates of the fusion in CUDA, for Python.
#include "bindings/cuda/typed.h"

namespace hifuse {
namespace {

// batch, height, width, dtype of statistics
void pixel_gates(const Sizes& sizes, const Numbers&, const Given& statistics, const Given& filters, const Given& bias,
                 const Given& gates, Stream stream) {
  check(cuda::pixel_gates({sizes.at(0), sizes.at(1), sizes.at(2), typed(statistics, sizes, 3), pointer<const float*>(filters),
                           pointer<const float*>(bias)},
                          pointer<float*>(gates), stream_of(stream)));
}

// batch, channels, squeezed, twice, dtype of statistics
void channel_gates(const Sizes& sizes, const Numbers&, const Given& statistics, const Given& squeeze, const Given& expand,
                   const Given& gates, Stream stream) {
  check(cuda::channel_gates({sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3) != 0, typed(statistics, sizes, 4),
                             pointer<const float*>(squeeze), pointer<const float*>(expand)},
                            pointer<float*>(gates), stream_of(stream)));
}

}  // namespace

void bind_gates(pybind11::module_& m) {
  m.def("pixel_gates", &pixel_gates);
  m.def("channel_gates", &channel_gates);
}

}  // namespace hifuse
