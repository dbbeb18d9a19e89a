// Tensor maps: what the copy engine of sm_90 is told of a tensor of 16-bit numbers. A launcher makes them, a kernel is given
// them in its Params.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace hifuse::cuda {

using TensorMap = CUtensorMap;

// The driver's function of this name, which no library has to be linked for; null where the driver is too old.
template <class Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  if (cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result) != cudaSuccess) return nullptr;
  return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Function*>(found) : nullptr;
}

// A matrix [rows, columns], for boxes of `box_rows` rows, 256 at most, and 64 columns. `row_stride` in numbers, a multiple of
// 8; data aligned to 16 bytes. Returns null, or what is wrong.
inline const char* map_matrix(TensorMap& map, const void* data, int64_t rows, int64_t columns, int64_t row_stride,
                              int box_rows) {
  auto* encode = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (!encode) return "the driver knows no tensor maps";
  const cuuint64_t sizes[] = {cuuint64_t(columns), cuuint64_t(rows)}, strides[] = {cuuint64_t(row_stride) * 2};
  const cuuint32_t box[] = {64, cuuint32_t(box_rows)}, steps[] = {1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(data), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver refuses the tensor map of a matrix";
}

// Images [images, height, width, channels], contiguous, for the taps of a 3x3 convolution with a padding of 1: boxes of
// `pixels` pixels, 1024 at most, and 64 channels. `channels` is a multiple of 8; data aligned to 16 bytes.
inline const char* map_images(TensorMap& map, const void* data, int64_t images, int64_t height, int64_t width, int64_t channels,
                              int pixels) {
  auto* encode = driver_function<decltype(cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (!encode) return "the driver knows no tensor maps";
  const cuuint64_t sizes[] = {cuuint64_t(channels), cuuint64_t(width), cuuint64_t(height), cuuint64_t(images)};
  const cuuint64_t strides[] = {cuuint64_t(channels) * 2, cuuint64_t(width * channels) * 2,
                                cuuint64_t(height * width * channels) * 2};
  const int lower[] = {-1, -1}, upper[] = {-1, -1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(data), sizes, strides, lower, upper,
                                 64, cuuint32_t(pixels), steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver refuses the tensor map of images";
}

}  // namespace hifuse::cuda
