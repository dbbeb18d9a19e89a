// The Python module of the CUDA kernels: `_cuda`, and `_cuda_emulated`, where the same kernels run on the CPU. It knows no
// torch.
//
// hifuse_fast/backends/cuda/launch.py calls a function here with the op's options, integers and others, then with what it
// reads, what it writes, and the stream.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/kernels.h"
#include "cuda_build_info.h"  // written by CMake

#ifdef HIFUSE_EMULATED
namespace hifuse::cuda {
void bind_emulation(pybind11::module_& module);  // csrc/tests/emulation/bindings.cpp
}
#endif

namespace hifuse {
namespace {

using Sizes = std::vector<int64_t>;
using Numbers = std::vector<double>;
using Given = std::vector<int64_t>;  // a tensor: its address, 0 where there is none, and its strides in elements
using Stream = uintptr_t;

template <class Pointer = const void*>
Pointer pointer(const Given& tensor) {
  return reinterpret_cast<Pointer>(tensor.at(0));
}

template <class Pointer = const void*>
Map<Pointer> map(const Given& tensor) {
  if (tensor.at(0) == 0) return {};
  return {pointer<Pointer>(tensor), tensor.at(1), tensor.at(2), tensor.at(3)};
}

void* stream_of(Stream stream) { return reinterpret_cast<void*>(stream); }

void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

// dtype, batch, height, width, num_heads, head_dim, window_size, shift_size, multiprocessors; scale
WindowAttentionShape attention_shape(const Sizes& sizes, const Numbers& numbers) {
  return {static_cast<DType>(sizes.at(0)),
          sizes.at(1),
          sizes.at(2),
          sizes.at(3),
          sizes.at(4),
          sizes.at(5),
          sizes.at(6),
          sizes.at(7),
          numbers.at(0)};
}

void window_attention_forward(const Sizes& sizes, const Numbers& numbers, const Given& qkv, const Given& bias_table,
                              const Given& qkv_bias, const Given& out, Stream stream) {
  check(cuda::window_attention_forward(
      {attention_shape(sizes, numbers), map(qkv), pointer(bias_table), pointer(qkv_bias), map<void*>(out)},
      static_cast<int>(sizes.at(8)), stream_of(stream)));
}

int64_t window_attention_backward_scratch(const Sizes& sizes, const Numbers& numbers, int multiprocessors) {
  return cuda::window_attention_backward_scratch(attention_shape(sizes, numbers), multiprocessors);
}

void window_attention_backward(const Sizes& sizes, const Numbers& numbers, const Given& grad, const Given& qkv,
                               const Given& bias_table, const Given& qkv_bias, const Given& grad_qkv,
                               const Given& grad_bias_table, const Given& grad_qkv_bias, const Given& scratch, Stream stream) {
  check(cuda::window_attention_backward(
      {attention_shape(sizes, numbers), map(grad), map(qkv), pointer(bias_table), pointer(qkv_bias), map<void*>(grad_qkv),
       pointer<void*>(grad_bias_table), pointer<void*>(grad_qkv_bias)},
      pointer<void*>(scratch), static_cast<int>(sizes.at(8)), stream_of(stream)));
}

}  // namespace
}  // namespace hifuse

PYBIND11_MODULE(HIFUSE_MODULE, m) {
  m.doc() = "The CUDA kernels of hifuse_fast, given addresses, sizes and a stream.";
  m.def("build_info", [] { return std::map<std::string, std::string>{HIFUSE_CUDA_BUILD_INFO}; });
  m.def(
      "listed",
      [] {
        std::vector<std::tuple<std::string, std::string, int, int, int>> all;
        for (const auto& [name, type, threads, blocks, shared_bytes] : hifuse::cuda::listed())
          all.emplace_back(name, type, threads, blocks, shared_bytes);
        return all;
      },
      "Name, mangled type, threads, blocks that a multiprocessor is to hold, and bytes of shared memory of every kernel.");
  m.def("window_attention_forward", &hifuse::window_attention_forward);
  m.def("window_attention_backward_scratch", &hifuse::window_attention_backward_scratch);
  m.def("window_attention_backward", &hifuse::window_attention_backward);
#ifdef HIFUSE_EMULATED
  hifuse::cuda::bind_emulation(m);
#endif
}
