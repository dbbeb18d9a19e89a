// Weights in the layout that the kernels of the CPU read (cpu/panel.h, cpu/strassen.h, cpu/winograd_filters.h), in new memory.
// The layout is the same for every instruction set.
#pragma once

#include "bindings/common.h"
#include "cpu/packed_sizes.h"

namespace hifuse {

// [columns, depth] of any floating dtype and strides, for products; the depth in blocks of `block`, or in one where that is 0.
Tensor pack_matrix(const Tensor& weight, ScalarType dtype, Algorithm algorithm, int64_t block = 0);

// [columns, depth] of int8, for products in int8; `block` as above.
Tensor pack_int8(const Tensor& weight, int64_t block = 0);

// [C, C, 3, 3] of any floating dtype and strides, for a dense convolution, or where `transposed` for the gradient of its input.
// That is of Winograd's algorithm.
Tensor pack_filters(const Tensor& weight, ScalarType dtype, Algorithm algorithm, bool transposed = false);

// [C, C, 3, 3] of int8, for a dense convolution in int8.
Tensor pack_int8_filters(const Tensor& weight, Algorithm algorithm);

// What is no matrix of a product stays as it is, in the type of the arithmetic.
Tensor pack_floats(const Tensor& tensor);

}  // namespace hifuse
