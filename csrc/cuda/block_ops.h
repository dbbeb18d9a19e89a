// What the kernels of whole blocks are given, and their entry points, which promise what those of kernels.h do. Maps are
// contiguous, of bfloat16 or float16. Biases, and what is not a weight, are float32.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace hifuse::cuda {

// Weights are packed for blocks of kNarrow or kWide channels, the fewest that hold the map's, and filled up with zeros. They
// lie in the order of operands, see whole_blocks.cuh.
inline constexpr int kNarrow = 96, kWide = 192;

// out = x + gelu(W norm(dwconv3x3(x) + filter_bias) + bias). Channels are a multiple of 8.
struct LocalBlock {
  DType dtype;
  int64_t batch, height, width, channels;
  float eps;
  const void* x;
  const float* taps;         // [9, channels]
  const float* filter_bias;  // [channels]
  const void* weight;
  const float* bias;  // [channels]
  void* out;
};
const char* local_block(const LocalBlock& op, void* stream);

// out = x + gelu(W attention(qkv norm(x) + qkv_bias) + bias). A head has up to 32 channels, filled up with zeros to 32; windows
// are up to 7 x 7.
struct GlobalBlock {
  WindowAttentionShape shape;
  float eps;
  const void* x;
  const void* qkv;        // rows are (head; q, k, v; channel of the head)
  const float* qkv_bias;  // [heads, 3, 32]
  const float* padding;   // the same of a padded token, whose norm is zero
  const float* table;     // [heads, 4, 7, 32, 4]: the position bias in the order of accumulators, in units of log2
  const void* weight;     // columns are (head; channel of the head)
  const float* bias;      // [channels]
  void* out;
};
const char* global_block(const GlobalBlock& op, void* stream);

// out = gelu(W norm([w_l, w_g]) + b), where w_l and w_g are linears of the local and the global map. Weights are packed for
// kNarrow channels, of which there are no more.
struct FusePath {
  DType dtype;
  int64_t batch, height, width, channels;
  float eps;
  const void *local_map, *global_map;
  const void* weights;  // of w_l, of w_g, then W's columns for each of the two
  const float* biases;  // of w_l, of w_g, and b: [3, kNarrow], zeros beyond the channels
  void* out;
};
const char* fuse_path(const FusePath& op, void* stream);

}  // namespace hifuse::cuda
