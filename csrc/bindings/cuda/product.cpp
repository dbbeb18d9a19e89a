// Products in CUDA and what goes with them, for Python.
#include "bindings/cuda/given.h"

namespace hifuse {
namespace {

constexpr size_t kSizes = 13, kReads = 8, kWrites = 2;  // of a product

// dtype, source, batch, height, width, the channels of three maps, norm, columns, activation, pool, rows of an image; eps
cuda::Product product_of(const int64_t* sizes, double eps) {
  cuda::Product product{};
  product.dtype = static_cast<DType>(sizes[0]);
  product.source = static_cast<cuda::Source>(sizes[1]);
  product.batch = sizes[2];
  product.height = sizes[3];
  product.width = sizes[4];
  for (int i = 0; i < 3; ++i) product.channels[i] = sizes[5 + i];
  product.norm = static_cast<Norm>(sizes[8]);
  product.columns = sizes[9];
  product.activation = static_cast<Activation>(sizes[10]);
  product.pool = sizes[11] != 0;
  product.image_rows = sizes[12];
  product.eps = static_cast<float>(eps);
  return product;
}

// One to three of them: the sizes of each, the numbers of each.
std::vector<cuda::Product> products_of(const Sizes& sizes, const Numbers& numbers) {
  std::vector<cuda::Product> all;
  if (sizes.size() < numbers.size() * kSizes) throw std::invalid_argument("products were given too few sizes");
  for (size_t i = 0; i < numbers.size(); ++i) all.push_back(product_of(sizes.data() + i * kSizes, numbers[i]));
  return all;
}

int64_t products_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  const auto all = products_of(sizes, numbers);
  return cuda::products_scratch(all.data(), static_cast<int>(all.size()), multiprocessors);
}

int product_launches(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  const auto all = products_of(sizes, numbers);
  return cuda::product_launches(all.data(), static_cast<int>(all.size()), multiprocessors);
}

// After the sizes of all, the number of multiprocessors. Tensors: what each reads (three maps, weight, bias, weight and bias of
// the norm, residual), what each writes (result, what goes into the activation), scratch memory, and counters.
void products(const Sizes& sizes, const Numbers& numbers, const pybind11::args& given) {
  auto all = products_of(sizes, numbers);
  const size_t count = all.size();
  if (sizes.size() != count * kSizes + 1 || given.size() != count * (kReads + kWrites) + 3)
    throw std::invalid_argument("products were given too little or too much");
  const auto tensor = [&](size_t i) { return given[i].cast<Given>(); };
  for (size_t i = 0; i < count; ++i) {
    cuda::Product& p = all[i];
    const size_t reads = i * kReads, writes = count * kReads + i * kWrites;
    for (size_t map_of = 0; map_of < 3; ++map_of) p.maps[map_of] = map(tensor(reads + map_of));
    p.weight = pointer(tensor(reads + 3));
    p.bias = pointer(tensor(reads + 4));
    p.norm_weight = pointer<const float*>(tensor(reads + 5));
    p.norm_bias = pointer<const float*>(tensor(reads + 6));
    p.residual = pointer(tensor(reads + 7));
    p.out = pointer<void*>(tensor(writes));
    p.before = pointer<void*>(tensor(writes + 1));
  }
  const size_t rest = count * (kReads + kWrites);
  const cuda::PartsRoom room{pointer<void*>(tensor(rest)), pointer<uint32_t*>(tensor(rest + 1))};
  check(cuda::products(all.data(), static_cast<int>(count), room, static_cast<int>(sizes.back()),
                       stream_of(given[rest + 2].cast<Stream>())));
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
  m.def("products_scratch", &products_scratch);
  m.attr("counting") = pybind11::make_tuple("products_scratch");  // of launches whose blocks count each other, see launch.py
  m.def("product_counters", &cuda::product_counters);
  m.def("product_launches", &product_launches);
  m.def("products", &products);
  m.def("gelu_backward", &gelu_backward);
  m.def("mixer_depthwise", &mixer_depthwise);
}

}  // namespace hifuse
