// Both ends of the frozen network in CUDA, for Python.
#include "cuda/ends.h"

#include "bindings/cuda/given.h"

namespace hifuse {
namespace {

// dtypes of the patches and of the images; batch, height, width of the patches; channels, height, width of the images
void stem_patches(const Sizes& sizes, const Numbers&, const Given& images, const Given& out, Stream stream) {
  cuda::StemPatches op{static_cast<DType>(sizes.at(0)),
                       static_cast<DType>(sizes.at(1)),
                       sizes.at(2),
                       sizes.at(3),
                       sizes.at(4),
                       sizes.at(5),
                       sizes.at(6),
                       sizes.at(7),
                       {},
                       pointer(images),
                       pointer<void*>(out)};
  for (int i = 0; op.images && i < 4; ++i) op.strides[i] = images.at(1 + i);
  check(cuda::stem_patches(op, stream_of(stream)));
}

// dtype, batch, pixels, channels
void mean(const Sizes& sizes, const Numbers&, const Given& x, const Given& out, Stream stream) {
  check(cuda::mean({static_cast<DType>(sizes.at(0)), sizes.at(1), sizes.at(2), sizes.at(3), pointer(x), pointer<void*>(out)},
                   stream_of(stream)));
}

}  // namespace

void bind_ends(pybind11::module_& m) {
  m.def("stem_patches", &stem_patches);
  m.def("mean", &mean);
}

}  // namespace hifuse
