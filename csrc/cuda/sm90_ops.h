// What the kernels for sm_90a alone are given, and their entry points, which promise what those of kernels.h do. A library that
// was built for other architectures has none of them. Maps are contiguous, of bfloat16 or float16.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace hifuse::cuda {

// out = residual + gelu(u expand^T + expand_bias) project^T + project_bias, row by row. Rows of the maps and of the weights
// begin at multiples of 16 bytes.
struct MlpSm90 {
  DType dtype;  // of all
  int64_t rows;
  int64_t depth;             // a multiple of 8, up to 288 with up to 96 columns, else up to 576
  int64_t hidden;            // a multiple of 128
  int64_t columns;           // a multiple of 8, up to 192
  const void* u;             // [rows, depth]
  const void* expand;        // [hidden, depth]
  const void* expand_bias;   // [hidden]
  const void* project;       // [columns, hidden]
  const void* project_bias;  // [columns]
  const void* residual;      // [rows, columns] or null
  void* out;                 // [rows, columns]
};
const char* mlp_sm90(const MlpSm90& op, int multiprocessors, void* stream);

// out = z + gelu(conv(z)): 3x3, dense, zero padded.
struct MixerSm90 {
  DType dtype;  // of all
  int64_t batch, height, width;
  int64_t channels;    // 288, or a multiple of 64
  const void* z;       // [batch, height, width, channels]
  const void* weight;  // [channels, 9, channels]
  void* out;           // like z
};
const char* mixer_sm90(const MixerSm90& op, int multiprocessors, void* stream);

}  // namespace hifuse::cuda
