// Checks of the ops of the frozen network. The Python API has checked all this with friendlier words; here it keeps a direct
// call from touching foreign memory.
#pragma once

#include <initializer_list>

#include "bindings/common.h"

namespace hifuse {

inline DType dtype_of(ScalarType type) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "prepared ops serve float32 and bfloat16");
  return type == ScalarType::Float ? DType::float32 : DType::bfloat16;
}

// The algorithm with this number, one of those that the op has.
Algorithm algorithm_of(const char* op, int64_t number, std::initializer_list<Algorithm> known);

// A map of this shape, contiguous and of the dtype of `like`.
void check_like(const char* name, const Tensor& tensor, const Tensor& like, std::initializer_list<int64_t> shape);

// A plain weight to be packed, of floating point, with this shape; -1 stands for any size from 1 on.
void check_weight(const char* name, const Tensor& weight, std::initializer_list<int64_t> shape);

// A weight [columns, depth] of int8, to be packed.
void check_int8(const char* name, const Tensor& weight, std::initializer_list<int64_t> shape);

// Biases, scales, filters and the like: `count` float32 numbers.
const float* floats(const char* name, const Tensor& tensor, int64_t count);

// What int8 multiplies a value by before it is rounded: a finite positive number.
float inverse_scale(const char* name, double value);

// A packed weight of `count` bytes, in int8.
const void* packed_int8(const char* name, const Tensor& weight, int64_t count);

// A packed weight of `count` elements of the dtype of `like`.
const void* packed(const char* name, const Tensor& weight, const Tensor& like, int64_t count);

}  // namespace hifuse
