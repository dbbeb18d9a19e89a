// Whole blocks in CUDA, for Python.
#include "bindings/cuda/given.h"
#include "cuda/block_ops.h"

namespace hifuse {
namespace {

// dtype, batch, height, width, channels; eps
void local_block(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& taps, const Given& filter_bias,
                 const Given& weight, const Given& bias, const Given& out, Stream stream) {
  check(
      cuda::local_block({static_cast<DType>(sizes.at(0)), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4),
                         static_cast<float>(numbers.at(0)), pointer(x), pointer<const float*>(taps),
                         pointer<const float*>(filter_bias), pointer(weight), pointer<const float*>(bias), pointer<void*>(out)},
                        stream_of(stream)));
}

// dtype, batch, height, width, heads, channels of a head, window, shift; scale, eps
void global_block(const Sizes& sizes, const Numbers& numbers, const Given& x, const Given& qkv, const Given& qkv_bias,
                  const Given& padding, const Given& table, const Given& weight, const Given& bias, const Given& out,
                  Stream stream) {
  check(cuda::global_block({{static_cast<DType>(sizes.at(0)), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), sizes.at(5),
                             sizes.at(6), sizes.at(7), numbers.at(0)},
                            static_cast<float>(numbers.at(1)),
                            pointer(x),
                            pointer(qkv),
                            pointer<const float*>(qkv_bias),
                            pointer<const float*>(padding),
                            pointer<const float*>(table),
                            pointer(weight),
                            pointer<const float*>(bias),
                            pointer<void*>(out)},
                           stream_of(stream)));
}

// dtype, batch, height, width, channels; eps
void fuse_path(const Sizes& sizes, const Numbers& numbers, const Given& local_map, const Given& global_map,
               const Given& weights, const Given& biases, const Given& out, Stream stream) {
  check(cuda::fuse_path(
      {static_cast<DType>(sizes.at(0)), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), static_cast<float>(numbers.at(0)),
       pointer(local_map), pointer(global_map), pointer(weights), pointer<const float*>(biases), pointer<void*>(out)},
      stream_of(stream)));
}

}  // namespace

void bind_blocks(pybind11::module_& m) {
  m.def("local_block", &local_block);
  m.def("global_block", &global_block);
  m.def("fuse_path", &fuse_path);
}

}  // namespace hifuse
