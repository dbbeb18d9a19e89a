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

// Null where not wanted. Those of gates, weight and bias are float32, the last two both or neither; each other one has the
// dtype of its tensor. Gates of channels have their gradients one behind the other in `channel_gates`.
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

// ---- max_mean --------------------------------------------------------------------------------------------------------------

// Of a map [batch, pixels, channels]: over its channels results are [batch, pixels, 2], over its pixels [batch, 2, channels],
// the largest value first. `index` says at which channel or pixel the largest value is.
struct MaxMean {
  int64_t batch, pixels, channels;
  bool over_channels;
};
int64_t max_mean_scratch(const MaxMean& op, int multiprocessors);
const char* max_mean_forward(const MaxMean& op, Typed x, TypedResult out, int* index, void* scratch, void* stream);
const char* max_mean_backward(const MaxMean& op, Typed grad, const int* index, TypedResult dx, void* stream);

// ---- batch_norm ------------------------------------------------------------------------------------------------------------

enum class After { none, relu, gelu, sigmoid };

// Of x [batch, height, width, channels]. `pool` averages the 2x2 patches; the sides are even then.
struct BatchNorm {
  int64_t batch, height, width, channels;
  After after;
  bool pool;
  float eps;
  Typed x, weight, bias;
  const float *mean, *var;  // which batch_norm_statistics gives, or running ones
};

int64_t batch_norm_statistics_scratch(const BatchNorm& op, int multiprocessors);
const char* batch_norm_statistics(const BatchNorm& op, float* mean, float* var, void* scratch, int multiprocessors,
                                  void* stream);
const char* batch_norm_forward(const BatchNorm& op, Typed residual, TypedResult out, int multiprocessors, void* stream);

// Null where not wanted; in training weight and bias are.
struct BatchNormGradients {
  void* x;  // of the dtype of x
  float* weight;
  float* bias;
};
int64_t batch_norm_backward_scratch(const BatchNorm& op, int multiprocessors);
const char* batch_norm_backward(const BatchNorm& op, bool training, Typed grad, const BatchNormGradients& out, void* scratch,
                                int multiprocessors, void* stream);

// ---- depthwise_norm --------------------------------------------------------------------------------------------------------

// x [batch, height, width, channels] is taken in the dtype `taken`, and taps are numbers of that dtype: [9, channels, filled up
// with zeros to a multiple of 8].
struct DepthwiseNorm {
  int64_t batch, height, width, channels;
  float eps;
  DType dtype, taken;
  Map<const void*> x;
  const float* taps;
  Typed filter_bias, weight, bias;
};

const char* depthwise_norm_forward(const DepthwiseNorm& op, TypedResult out, int multiprocessors, void* stream);

// All three or none.
struct DepthwiseNormGradients {
  float* filter_bias;
  float* weight;
  float* bias;
};
// The gradients, and dc, that of the convolution, of the dtype `taken`; null where it is not wanted.
int64_t depthwise_norm_backward_scratch(const DepthwiseNorm& op, int multiprocessors);
const char* depthwise_norm_backward(const DepthwiseNorm& op, Typed grad, void* dc, const DepthwiseNormGradients& out,
                                    void* scratch, int multiprocessors, void* stream);

// Of dc the gradients of x and of the taps, [9, channels]; null where not wanted. Looks at no parameter but the taps.
int64_t depthwise_convolution_backward_scratch(const DepthwiseNorm& op, int multiprocessors);
const char* depthwise_convolution_backward(const DepthwiseNorm& op, const void* dc, void* dx, float* dtaps, void* scratch,
                                           int multiprocessors, void* stream);

// ---- gated_concat ----------------------------------------------------------------------------------------------------------

// The norm of [g', l', x], of maps [batch, height, width, channels] of `dtype`; what is no map is float32. A gate of g is sigma
// of expand (ReLU(squeeze a) + ReLU(squeeze b)), a and b the largest value and the mean of each channel of an image; `twice`
// takes sigma of that. A gate of l is sigma of the 7x7 convolution of the largest value and the mean of each pixel, with zeros
// around.
struct GatedConcat {
  DType dtype;
  int64_t batch, height, width, channels, squeezed;
  bool twice;
  float eps;
  const void *local_map, *global_map, *x;
  const float *filters, *filter_bias;  // [7, 7, 2], [1]
  const float *squeeze, *expand;       // [squeezed, channels], [channels, squeezed]
  const float *scale, *shift;          // [3 channels]
  void* out;                           // [batch, height, width, 3 channels]
};
int64_t gated_concat_scratch(const GatedConcat& op, int multiprocessors);
const char* gated_concat(const GatedConcat& op, void* scratch, void* stream);

}  // namespace hifuse::cuda
