// What the ops over maps that are no products are given, and their entry points: norms, largest values and means, gates. They
// promise what those of kernels.h do. Results are contiguous; what is read is contiguous too, but for the map of layer_norm and
// of depthwise_norm. Each tensor is float32, bfloat16 or float16, whatever the others are.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace hifuse::cuda {

// A tensor, by the address of its first number.
struct Typed {
  const void* data;
  DType dtype;
};
struct TypedResult {
  void* data;  // null where it is not wanted
  DType dtype;
};

// ---- layer_norm ------------------------------------------------------------------------------------------------------------

// Rows are the pixels of x [batch, height, width, channels], or its 2x2 patches of 4 channels numbers.
struct LayerNorm {
  int64_t batch, height, width, channels;
  bool patches;
  float eps;
  DType dtype;  // of x
  Map<const void*> x;
  Typed weight, bias;  // of a row's width; the backward takes no bias
};

const char* layer_norm_forward(const LayerNorm& op, TypedResult out, int multiprocessors, void* stream);

// The gradients of x, whose dtype that of x is, and of weight and bias, float32, both or neither; null where not wanted.
struct LayerNormGradients {
  void* x;
  float* weight;
  float* bias;
};
int64_t layer_norm_backward_scratch(const LayerNorm& op, int multiprocessors);
const char* layer_norm_backward(const LayerNorm& op, Typed grad, const LayerNormGradients& out, void* scratch,
                                int multiprocessors, void* stream);

// ---- concat_norm -----------------------------------------------------------------------------------------------------------

enum class Gate { none, pixel, channel };  // a factor for all; of each pixel [B, H, W]; of each channel of an image [B, C]

// Rows are those of 2 or 3 maps side by side, each times its gate.
struct ConcatNorm {
  int64_t batch, pixels, channels;  // of each map
  int maps;
  float eps;
  Typed map[3], gate[3];
  Gate kind[3];
  Typed weight, bias;  // [maps channels]; the backward takes no bias
};

const char* concat_norm_forward(const ConcatNorm& op, TypedResult out, int multiprocessors, void* stream);

// Null where not wanted. Those of gates, weight and bias are float32, the last two both or neither; each other one has the dtype
// of its tensor. Gates of channels have their gradients one behind the other in `channel_gates`.
struct ConcatNormGradients {
  void* map[3];
  float* pixel_gate[3];
  bool channel_gate[3];
  float* channel_gates;
  float* weight;
  float* bias;
};
int64_t concat_norm_backward_scratch(const ConcatNorm& op, int multiprocessors);
const char* concat_norm_backward(const ConcatNorm& op, Typed grad, const ConcatNormGradients& out, void* scratch,
                                 int multiprocessors, void* stream);

}  // namespace hifuse::cuda
