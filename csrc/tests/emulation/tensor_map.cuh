// The twins of csrc/cuda/tensor_map.cuh.
#pragma once
#include <cstdint>

namespace hifuse::cuda {

struct TensorMap {
  const uint16_t* data;
  int64_t sizes[4], strides[4];  // in numbers, the innermost dimension first
  int rows;                      // of a box, of 64 numbers each
  bool images;                   // [images, height, width, channels], or a matrix
};

const char* map_matrix(TensorMap& map, const void* data, int64_t rows, int64_t columns, int64_t row_stride, int box_rows);
const char* map_images(TensorMap& map, const void* data, int64_t images, int64_t height, int64_t width, int64_t channels,
                       int pixels);

}  // namespace hifuse::cuda
