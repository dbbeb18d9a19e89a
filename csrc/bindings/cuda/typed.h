// Tensors of any dtype, as csrc/cuda/map_ops.h takes them: the sizes of a call say which dtype each has.
#pragma once

#include "bindings/cuda/given.h"
#include "cuda/map_ops.h"

namespace hifuse {

inline DType dtype(const Sizes& sizes, int at) { return static_cast<DType>(sizes.at(at)); }
inline cuda::Typed typed(const Given& tensor, const Sizes& sizes, int at) { return {pointer(tensor), dtype(sizes, at)}; }
inline cuda::TypedResult typed_result(const Given& tensor, const Sizes& sizes, int at) {
  return {pointer<void*>(tensor), dtype(sizes, at)};
}

}  // namespace hifuse
