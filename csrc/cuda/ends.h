// What the kernels at both ends of the frozen network are given, and their entry points, which promise what those of kernels.h
// do: the patches of images, the mean over the pixels of the last map, and the result as float32.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace hifuse::cuda {

// out[b, y, x] = the 4x4 patch of an image, numbers in the order (channel, row, column); zeros stand below and to the right of
// the image.
struct StemPatches {
  DType dtype;                   // of out
  DType image_dtype;             // float32 or `dtype`
  int64_t batch, height, width;  // of out, in patches
  int64_t in_chans, image_height, image_width;
  int64_t strides[4];  // of images, in elements
  const void* images;  // [batch, in_chans, image_height, image_width]
  void* out;           // [batch, height, width, 16 in_chans]
};
const char* stem_patches(const StemPatches& op, void* stream);

// Sums are float64: exact unless values lie 2^20 apart.
struct PixelMean {
  DType dtype;
  int64_t batch, pixels, channels;
  const void* x;  // [batch, pixels, channels]
  void* out;      // [batch, channels]
};
const char* mean(const PixelMean& op, void* stream);

struct Widening {
  DType dtype;
  int64_t length;
  const void* x;
  float* out;
};
const char* widen(const Widening& op, void* stream);

}  // namespace hifuse::cuda
