// What a kernel is given, on a CPU or a GPU: pointers, sizes and options. Knows no torch and no Python.
#pragma once

#include <cstdint>

namespace hifuse {

enum class DType { float32, bfloat16, float16, float64 };

// A map [batch, height, width, channels] with channels contiguous; strides in elements.
template <class Pointer>
struct Map {
  Pointer data;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t column_stride;
};

struct WindowAttentionShape {
  DType dtype;  // of the maps; tables and biases are float32, or float64 with float64 maps
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t num_heads;
  int64_t head_dim;
  int64_t window_size;
  int64_t shift_size;
  double scale;
};

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

// ---- The prepared ops ------------------------------------------------------------------------------------------------------
//
// Maps are contiguous, float32 or bfloat16. Biases, scales and filters are float32. Weights are packed for the library that
// computes.

enum class Rows { pixels, patches, depthwise };
enum class Norm { none, row, pixel };
enum class Activation { none, gelu, relu };

// How a product or a convolution is computed, which says how its weight is packed. It was chosen when the weight was packed.
// int8: the maps are of floating point, and quantised on their way into a product.
enum class Algorithm { direct, strassen, winograd2, winograd4, winograd4_at_call, depthwise, int8 };

struct Linear {
  DType dtype;
  int64_t batch;
  int64_t height;  // of the map that the rows are the pixels of: that of `out`, or with `pool` twice its size
  int64_t width;
  Rows rows;
  const void* maps[3];
  int64_t channels[3];   // of each map; 0 where there is none
  const float* filters;  // with Rows::depthwise: [9, C]
  const float* filter_bias;
  Norm norm;
  float eps;
  Algorithm algorithm;  // direct; int8; strassen in float32, the depth a multiple of 32, columns of 64
  const void* weight;
  const float* bias;
  const float* scale;  // of int8: what a sum of each column is multiplied by
  float inverse;       // of int8: what a row is multiplied by before it is rounded
  int64_t columns;
  Activation activation;
  bool pool;
  const void* residual;  // like out, or null
  void* out;
};

struct Stem {
  DType dtype;
  int64_t batch;
  int64_t height;  // of the maps
  int64_t width;
  DType image_dtype;   // float32 or `dtype`
  const void* images;  // [B, in_chans, image_height, image_width], any strides; zeros stand below and to the right of them
  int64_t strides[4];
  int64_t image_height;
  int64_t image_width;
  int64_t in_chans;
  int64_t channels;
  const void* weight;  // [2C, in_chans * 16]
  const float* bias;   // each [2, C]
  const float* scale;
  const float* shift;
  float eps[2];
  void* out[2];
};

struct GatedConcat {
  DType dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t squeezed;
  const void* local_map;
  const void* global_map;
  const void* x;
  const float* filters;  // [2, 7, 7]
  float filter_bias;
  const float* squeeze;  // [squeezed, C]
  const float* expand;   // [squeezed, C]: transposed
  const float* scale;    // [3C]
  const float* shift;
  bool double_sigmoid;
  float eps;
  void* out;  // [B, H, W, 3C]
};

struct Mixer {
  DType dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  const void* z;
  Algorithm algorithm;  // direct, depthwise, winograd2 or winograd4; winograd4_at_call in float32
  const void* weight;   // packed; depthwise: float32 [9, C]
  bool convolution;     // out is the convolution alone, without GELU and residual: of winograd4
  void* out;
};

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

struct Mlp {
  DType dtype;
  int64_t batch;
  int64_t rows;  // of an image
  int64_t depth;
  int64_t hidden;
  int64_t columns;
  const void* u;
  Algorithm algorithm;  // int8; or of the first product: direct; strassen in float32, the depth a multiple of 32
  const void* expand;
  const float* expand_bias;
  const void* project;
  const float* project_bias;
  const float* expand_scale;  // of int8, as those of Linear; the hidden units have a scale too
  const float* project_scale;
  float inverse;
  float hidden_inverse;
  const void* residual;
  void* out;
};

struct Mean {
  DType dtype;
  int64_t batch;
  int64_t pixels;
  int64_t channels;
  const void* x;
  void* out;  // [B, C]
};

}  // namespace hifuse
