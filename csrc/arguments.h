// What a kernel is given, on a CPU or a GPU: pointers, sizes and options. Knows no torch and no Python.
#pragma once

#include <cstdint>

namespace hifuse {

enum class DType : int32_t { float32, bfloat16, float16, float64 };
enum class Rows : int32_t { pixels, patches, depthwise };
enum class Norm : int32_t { none, row, pixel };
enum class Activation : int32_t { none, gelu, relu };

// How a product or a convolution is computed, which says how its weight is packed. It was chosen when the weight was packed.
// int8: the maps are of floating point, and quantised on their way into a product.
enum class Algorithm : int32_t { direct, strassen, winograd2, winograd4, winograd4_at_call, depthwise, int8, int8_winograd2 };

constexpr bool in_int8(Algorithm algorithm) { return algorithm == Algorithm::int8 || algorithm == Algorithm::int8_winograd2; }

}  // namespace hifuse

// The structs that C has too are described there, with these enumerations in place of their numbers.
#define HIFUSE_SCOPED_ENUMERATIONS
using hifuse_dtype = hifuse::DType;
using hifuse_rows = hifuse::Rows;
using hifuse_norm = hifuse::Norm;
using hifuse_activation = hifuse::Activation;
using hifuse_algorithm = hifuse::Algorithm;
#include "../include/hifuse/params.h"

namespace hifuse {

// A map [batch, height, width, channels] with channels contiguous; strides in elements.
template <class Pointer>
struct Map {
  Pointer data;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t column_stride;
};

// Tables and biases are float32, or float64 with float64 maps.
using WindowAttentionShape = hifuse_window_attention_shape;

struct WindowAttentionForward {
  WindowAttentionShape shape;
  Map<const void*> qkv;    // [B, H, W, 3C]
  const void* bias_table;  // [(2M-1)^2, heads]
  const void* qkv_bias;    // [3C] or null
  Map<void*> out;          // [B, H, W, C]
};

struct WindowAttentionBackward {
  WindowAttentionShape shape;
  Map<const void*> grad;  // [B, H, W, C]
  Map<const void*> qkv;
  const void* bias_table;
  const void* qkv_bias;
  Map<void*> grad_qkv;    // [B, H, W, 3C]; null with grad_qkv_bias where neither is needed
  void* grad_bias_table;  // [(2M-1)^2, heads], or null
  void* grad_qkv_bias;    // [3C]: what the padded tokens contribute
};

// The prepared ops.
using Linear = hifuse_linear_params;
using Stem = hifuse_stem_params;
using GatedConcat = hifuse_gated_concat_params;
using Mixer = hifuse_mixer_params;
using Mlp = hifuse_mlp_params;
using Mean = hifuse_mean_params;

// The gradient of the filters of a dense mixer. Maps are contiguous, float32.
struct MixerFiltersGradient {
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  const float* grad;  // of the convolution
  const float* z;
  float* out;  // [C, C, 3, 3]
};

}  // namespace hifuse
