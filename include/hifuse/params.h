/* What an op of the frozen network is given on a CPU. This is the one list of these fields: the kernels read the same structs
 * (csrc/arguments.h). Functions over them are in hifuse.h.
 *
 * Maps are contiguous, [batch, height, width, channels], float32 or bfloat16 as `dtype` says. Biases, scales, filters and
 * tables are contiguous float32. Weights are packed, by hifuse_pack_matrix and hifuse_pack_filters. Memory that is written to
 * must not overlap memory that is read. norm(x) is (x - mean) / sqrt(var + eps). GELU is the exact one.
 */
#ifndef HIFUSE_PARAMS_H
#define HIFUSE_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

/* Numbers of enumerations. The library's own sources have scoped enumerations of the same numbers. */
#ifndef HIFUSE_SCOPED_ENUMERATIONS
typedef int32_t hifuse_dtype;
typedef int32_t hifuse_rows;
typedef int32_t hifuse_norm;
typedef int32_t hifuse_activation;
typedef int32_t hifuse_algorithm;
#endif

enum { HIFUSE_FLOAT32 = 0, HIFUSE_BFLOAT16 = 1, HIFUSE_FLOAT16 = 2 }; /* float16: on a CUDA device alone, see cuda.h */

/* What a row of a linear is: a pixel; the 2x2 patch of pixels (0, 0), (1, 0), (0, 1), (1, 1) as (row, column); the depthwise
 * 3x3 convolution of a pixel. */
enum { HIFUSE_PIXELS = 0, HIFUSE_PATCHES = 1, HIFUSE_DEPTHWISE = 2 };

/* Which values are normalised together: none; those of a row; those of each pixel of a patch. */
enum { HIFUSE_NO_NORM = 0, HIFUSE_ROW_NORM = 1, HIFUSE_PIXEL_NORM = 2 };

enum { HIFUSE_NO_ACTIVATION = 0, HIFUSE_GELU = 1, HIFUSE_RELU = 2 };

/* How a product or a convolution is computed, which says how its weight is packed. INT8: maps are of floating point, and
 * rounded to 8 bits on their way into a product. */
enum {
  HIFUSE_DIRECT = 0,
  HIFUSE_STRASSEN = 1,
  HIFUSE_WINOGRAD2 = 2,
  HIFUSE_WINOGRAD4 = 3,
  HIFUSE_WINOGRAD4_AT_CALL = 4,
  HIFUSE_DEPTHWISE_CONVOLUTION = 5,
  HIFUSE_INT8 = 6,
  HIFUSE_INT8_WINOGRAD2 = 7 /* of a mixer: the sums of HIFUSE_INT8, of fewer products */
};

/* out = residual + pool(activation(norm(rows) weight^T + bias)) */
typedef struct hifuse_linear_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height; /* of the map that the rows are the pixels of: that of `out`, or with `pool` twice its size */
  int64_t width;
  hifuse_rows rows;
  const void* maps[3];  /* 1 to 3 maps whose channels lie side by side; [B, 2 height, 2 width, C] of patches */
  int64_t channels[3];  /* of each map; 0 where there is none */
  const float* filters; /* with HIFUSE_DEPTHWISE: [9, C] */
  const float* filter_bias;
  hifuse_norm norm;
  float eps;
  hifuse_algorithm algorithm; /* DIRECT; INT8; STRASSEN in float32, the depth a multiple of 32, columns of 64 */
  const void* weight;         /* packed, [columns, depth]; the depth is all channels of a row */
  const float* bias;          /* [columns] */
  const float* scale;         /* of INT8, [columns]: what a sum of each column is multiplied by */
  float inverse;              /* of INT8: what a row is multiplied by before it is rounded */
  int64_t columns;
  hifuse_activation activation;
  bool pool;            /* the mean of 2x2 pixels is taken; of HIFUSE_PIXELS */
  const void* residual; /* like out, or null */
  void* out;            /* [B, height, width, columns], with `pool` of half the height and width */
} hifuse_linear_params;

/* out[i] = norm(conv4x4/4(images) + bias[i]) scale[i] + shift[i] */
typedef struct hifuse_stem_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height; /* of the maps */
  int64_t width;
  hifuse_dtype image_dtype; /* float32 or `dtype` */
  const void* images;       /* [B, in_chans, image_height, image_width]; zeros stand below and to the right of them */
  int64_t strides[4];       /* of images, in elements */
  int64_t image_height;     /* at most 4 height */
  int64_t image_width;
  int64_t in_chans;
  int64_t channels;
  const void* weight; /* packed, DIRECT, [2 channels, 16 in_chans] */
  const float* bias;  /* each [2, channels] */
  const float* scale;
  const float* shift;
  float eps[2];
  void* out[2]; /* each [B, height, width, channels] */
} hifuse_stem_params;

/* out = norm([g', l', x]) scale + shift, where g' is the global map times the gate of its channels, and l' the local map times
 * the gate of its pixels. */
typedef struct hifuse_gated_concat_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t squeezed;
  const void* local_map; /* each [B, height, width, channels] */
  const void* global_map;
  const void* x;
  const float* filters; /* [2, 7, 7]: of the largest value of a pixel, of its mean */
  float filter_bias;
  const float* squeeze; /* [squeezed, channels] */
  const float* expand;  /* [squeezed, channels]: transposed */
  const float* scale;   /* [3 channels] */
  const float* shift;
  bool double_sigmoid;
  float eps;
  void* out; /* [B, height, width, 3 channels] */
} hifuse_gated_concat_params;

/* out = z + gelu(conv3x3(z)) */
typedef struct hifuse_mixer_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  const void* z;
  hifuse_algorithm algorithm; /* DIRECT, DEPTHWISE_CONVOLUTION, WINOGRAD2 or 4, INT8; WINOGRAD4_AT_CALL in float32;
                               * INT8_WINOGRAD2 of up to 3698 channels */
  const void* weight;         /* packed; of DEPTHWISE_CONVOLUTION float32 [9, channels] */
  const float* scale;         /* of INT8 and INT8_WINOGRAD2, as that of hifuse_linear_params */
  float inverse;
  bool convolution; /* out is the convolution alone, without GELU and residual: of WINOGRAD4 */
  void* out;        /* [B, height, width, channels] */
} hifuse_mixer_params;

/* out = residual + project gelu(expand u + expand_bias) + project_bias */
typedef struct hifuse_mlp_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t rows; /* of an image */
  int64_t depth;
  int64_t hidden;
  int64_t columns;
  const void* u;              /* [B, rows, depth] */
  hifuse_algorithm algorithm; /* INT8; or of the first product: DIRECT; STRASSEN in float32, the depth a multiple of 32 */
  const void* expand;         /* packed, [hidden, depth] */
  const float* expand_bias;   /* [hidden] */
  const void* project;        /* packed in blocks of HIFUSE_MLP_BLOCK, [columns, hidden] */
  const float* project_bias;  /* [columns] */
  const float* expand_scale;  /* of INT8, as those of hifuse_linear_params; the hidden units have a scale too */
  const float* project_scale;
  float inverse;
  float hidden_inverse;
  const void* residual; /* like out, or null */
  void* out;            /* [B, rows, columns] */
} hifuse_mlp_params;

/* out = the mean over the pixels */
typedef struct hifuse_mean_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t pixels;
  int64_t channels;
  const void* x; /* [B, pixels, channels] */
  void* out;     /* [B, channels] */
} hifuse_mean_params;

/* A map [batch, height, width, num_heads * head_dim], padded at the right and the bottom to whole windows, and shifted. */
typedef struct hifuse_window_attention_shape {
  hifuse_dtype dtype; /* of the maps; tables and biases are float32 */
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t num_heads;
  int64_t head_dim;
  int64_t window_size; /* 1 to 16 */
  int64_t shift_size;  /* 0 to window_size - 1 */
  double scale;        /* of the products of queries and keys */
} hifuse_window_attention_shape;

#endif /* HIFUSE_PARAMS_H */
