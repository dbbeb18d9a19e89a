// What hifuse_fast/backends/cuda/launch.py gives an entry point: the op's options, integers and others, then what it reads,
// what it writes, and the stream. An entry point that has something to say raises it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "cuda/kernels.h"

namespace hifuse {

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

inline void* stream_of(Stream stream) { return reinterpret_cast<void*>(stream); }

inline void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

}  // namespace hifuse
