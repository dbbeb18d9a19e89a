// The kernels for sm_90a alone, for Python; not there where the library was built without that architecture.
#include "bindings/cuda/given.h"
#include "cuda/sm90_ops.h"

#ifdef HIFUSE_SM90
namespace hifuse {
namespace {

// dtype, rows, depth, hidden units, columns; multiprocessors
void mlp_sm90(const Sizes& sizes, const Numbers&, const Given& u, const Given& expand, const Given& expand_bias,
              const Given& project, const Given& project_bias, const Given& residual, const Given& out, Stream stream) {
  check(cuda::mlp_sm90(
      {static_cast<DType>(sizes.at(0)), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), pointer(u), pointer(expand),
       pointer(expand_bias), pointer(project), pointer(project_bias), pointer(residual), pointer<void*>(out)},
      static_cast<int>(sizes.at(5)), stream_of(stream)));
}

// dtype, batch, height, width, channels; multiprocessors
void mixer_sm90(const Sizes& sizes, const Numbers&, const Given& z, const Given& weight, const Given& out, Stream stream) {
  check(cuda::mixer_sm90({static_cast<DType>(sizes.at(0)), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), pointer(z),
                          pointer(weight), pointer<void*>(out)},
                         static_cast<int>(sizes.at(5)), stream_of(stream)));
}

}  // namespace

void bind_sm90(pybind11::module_& m) {
  m.def("mlp_sm90", &mlp_sm90);
  m.def("mixer_sm90", &mixer_sm90);
}

}  // namespace hifuse
#endif
