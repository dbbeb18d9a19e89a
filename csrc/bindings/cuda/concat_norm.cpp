// Gates, concatenation and layer normalisation in CUDA, for Python.
#include "bindings/cuda/typed.h"

namespace hifuse {
namespace {

// batch, pixels, channels, maps; dtypes of three maps and three gates, kinds of gates; dtypes of weight, bias, and the result
// or its gradient; multiprocessors; for the backward also whether the gradient of each gate of channels is wanted; eps
cuda::ConcatNorm concat_norm(const Sizes& sizes, const Numbers& numbers, const std::vector<Given>& maps,
                             const std::vector<Given>& gates, const Given& weight, const Given& bias) {
  cuda::ConcatNorm op{sizes.at(0), sizes.at(1), sizes.at(2), static_cast<int>(sizes.at(3)), static_cast<float>(numbers.at(0)),
                      {},          {},          {},          typed(weight, sizes, 13),      typed(bias, sizes, 14)};
  for (int i = 0; i < 3; ++i) {
    op.map[i] = typed(maps.at(i), sizes, 4 + i);
    op.gate[i] = typed(gates.at(i), sizes, 7 + i);
    op.kind[i] = static_cast<cuda::Gate>(sizes.at(10 + i));
  }
  return op;
}

void concat_norm_forward(const Sizes& sizes, const Numbers& numbers, const Given& map0, const Given& map1, const Given& map2,
                         const Given& gate0, const Given& gate1, const Given& gate2, const Given& weight, const Given& bias,
                         const Given& out, Stream stream) {
  check(cuda::concat_norm_forward(concat_norm(sizes, numbers, {map0, map1, map2}, {gate0, gate1, gate2}, weight, bias),
                                  typed_result(out, sizes, 15), static_cast<int>(sizes.at(16)), stream_of(stream)));
}

int64_t concat_norm_backward_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  const std::vector<Given> none(3, Given{0});
  return cuda::concat_norm_backward_scratch(concat_norm(sizes, numbers, none, none, {0}, {0}), multiprocessors);
}

void concat_norm_backward(const Sizes& sizes, const Numbers& numbers, const Given& map0, const Given& map1, const Given& map2,
                          const Given& gate0, const Given& gate1, const Given& gate2, const Given& weight, const Given& grad,
                          const Given& dmap0, const Given& dmap1, const Given& dmap2, const Given& pixel_gate0,
                          const Given& pixel_gate1, const Given& pixel_gate2, const Given& channel_gates,
                          const Given& grad_weight, const Given& grad_bias, const Given& scratch, Stream stream) {
  check(cuda::concat_norm_backward(concat_norm(sizes, numbers, {map0, map1, map2}, {gate0, gate1, gate2}, weight, {0}),
                                   typed(grad, sizes, 15),
                                   {{pointer<void*>(dmap0), pointer<void*>(dmap1), pointer<void*>(dmap2)},
                                    {pointer<float*>(pixel_gate0), pointer<float*>(pixel_gate1), pointer<float*>(pixel_gate2)},
                                    {sizes.at(17) != 0, sizes.at(18) != 0, sizes.at(19) != 0},
                                    pointer<float*>(channel_gates),
                                    pointer<float*>(grad_weight),
                                    pointer<float*>(grad_bias)},
                                   pointer<void*>(scratch), static_cast<int>(sizes.at(16)), stream_of(stream)));
}

}  // namespace

void bind_concat_norm(pybind11::module_& m) {
  m.def("concat_norm_forward", &concat_norm_forward);
  m.def("concat_norm_backward_scratch", &concat_norm_backward_scratch);
  m.def("concat_norm_backward", &concat_norm_backward);
}

}  // namespace hifuse
