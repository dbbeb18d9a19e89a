// The gated concatenation of the frozen network in CUDA, for Python.
#include "bindings/cuda/given.h"
#include "cuda/map_ops.h"

namespace hifuse {
namespace {

// dtype, batch, height, width, channels, squeezed, twice; eps
cuda::GatedConcat gated_concat_of(const Sizes& sizes, const Numbers& numbers) {
  cuda::GatedConcat op{};
  op.dtype = static_cast<DType>(sizes.at(0));
  op.batch = sizes.at(1);
  op.height = sizes.at(2);
  op.width = sizes.at(3);
  op.channels = sizes.at(4);
  op.squeezed = sizes.at(5);
  op.twice = sizes.at(6) != 0;
  op.eps = static_cast<float>(numbers.at(0));
  return op;
}

int64_t gated_concat_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::gated_concat_scratch(gated_concat_of(sizes, numbers), multiprocessors);
}

void gated_concat(const Sizes& sizes, const Numbers& numbers, const Given& local_map, const Given& global_map, const Given& x,
                  const Given& filters, const Given& filter_bias, const Given& squeeze, const Given& expand, const Given& scale,
                  const Given& shift, const Given& out, const Given& scratch, Stream stream) {
  cuda::GatedConcat op = gated_concat_of(sizes, numbers);
  op.local_map = pointer(local_map);
  op.global_map = pointer(global_map);
  op.x = pointer(x);
  op.filters = pointer<const float*>(filters);
  op.filter_bias = pointer<const float*>(filter_bias);
  op.squeeze = pointer<const float*>(squeeze);
  op.expand = pointer<const float*>(expand);
  op.scale = pointer<const float*>(scale);
  op.shift = pointer<const float*>(shift);
  op.out = pointer<void*>(out);
  check(cuda::gated_concat(op, pointer<void*>(scratch), stream_of(stream)));
}

}  // namespace

void bind_gated_concat(pybind11::module_& m) {
  m.def("gated_concat_scratch", &gated_concat_scratch);
  m.def("gated_concat", &gated_concat);
}

}  // namespace hifuse
