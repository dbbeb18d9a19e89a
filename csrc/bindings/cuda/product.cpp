// Products in CUDA and what goes with them, for Python.
#include "bindings/cuda/given.h"

namespace hifuse {
namespace {

// dtype, source, batch, height, width, the channels of three maps, norm, columns, activation, pool, rows of an image; eps
cuda::Product product_of(const Sizes& sizes, const Numbers& numbers) {
  cuda::Product product{};
  product.dtype = static_cast<DType>(sizes.at(0));
  product.source = static_cast<cuda::Source>(sizes.at(1));
  product.batch = sizes.at(2);
  product.height = sizes.at(3);
  product.width = sizes.at(4);
  for (int i = 0; i < 3; ++i) product.channels[i] = sizes.at(5 + i);
  product.norm = static_cast<Norm>(sizes.at(8));
  product.columns = sizes.at(9);
  product.activation = static_cast<Activation>(sizes.at(10));
  product.pool = sizes.at(11) != 0;
  product.image_rows = sizes.at(12);
  product.eps = static_cast<float>(numbers.at(0));
  return product;
}

int64_t product_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::product_scratch(product_of(sizes, numbers), multiprocessors);
}

void product(const Sizes& sizes, const Numbers& numbers, const Given& first, const Given& second, const Given& third,
             const Given& weight, const Given& bias, const Given& norm_weight, const Given& norm_bias, const Given& residual,
             const Given& out, const Given& before, const Given& parts, Stream stream) {
  cuda::Product p = product_of(sizes, numbers);
  p.maps[0] = map(first);
  p.maps[1] = map(second);
  p.maps[2] = map(third);
  p.weight = pointer(weight);
  p.bias = pointer(bias);
  p.norm_weight = pointer<const float*>(norm_weight);
  p.norm_bias = pointer<const float*>(norm_bias);
  p.residual = pointer(residual);
  p.out = pointer<void*>(out);
  p.before = pointer<void*>(before);
  p.parts = pointer<void*>(parts);
  check(cuda::product(p, stream_of(stream)));
}

// dtype, length
void gelu_backward(const Sizes& sizes, const Numbers&, const Given& grad, const Given& z, const Given& out,
                   const Given& activated, Stream stream) {
  check(cuda::gelu_backward(
      {static_cast<DType>(sizes.at(0)), sizes.at(1), pointer(grad), pointer(z), pointer<void*>(out), pointer<void*>(activated)},
      stream_of(stream)));
}

// dtype, batch, height, width, channels, gelu
void mixer_depthwise(const Sizes& sizes, const Numbers&, const Given& z, const Given& weight, const Given& added,
                     const Given& out, const Given& before, Stream stream) {
  check(cuda::mixer_depthwise({static_cast<DType>(sizes.at(0)), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4), pointer(z),
                               pointer(weight), pointer(added), sizes.at(5) != 0, pointer<void*>(before), pointer<void*>(out)},
                              stream_of(stream)));
}

}  // namespace

void bind_product(pybind11::module_& m) {
  m.def("product_scratch", &product_scratch);
  m.def("product", &product);
  m.def("gelu_backward", &gelu_backward);
  m.def("mixer_depthwise", &mixer_depthwise);
}

}  // namespace hifuse
