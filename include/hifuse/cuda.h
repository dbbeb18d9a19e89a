/* HiFuse on a CUDA device, without Python: networks frozen for "cuda" by hifuse_fast, and the ops that they are made of.
 *
 * It needs no header of CUDA. What hifuse.h says of messages and threads holds here too. A library that was built without CUDA
 * has these functions as well, and each of them says so.
 */
#ifndef HIFUSE_CUDA_H
#define HIFUSE_CUDA_H

#include "hifuse.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Networks -------------------------------------------------------------------------------------------------------------
 */

/* Memory of the device for weights and maps, from the caller. */
typedef struct hifuse_cuda_memory {
  void* context; /* of the lender */
  /* So many bytes, from a multiple of 256 on, for what is put on the stream from now on; NULL where there are not so many. */
  void* (*take)(void* context, int64_t bytes, void* stream);
  /* Takes memory back. What is on the stream by then may still use it; with stream = NULL nothing does. */
  void (*give)(void* context, void* memory, void* stream);
} hifuse_cuda_memory;

/* Reads a file that was frozen for "cuda", and copies its weights to a device, once. The device is a number from 0 on. With
 * memory = NULL the library asks CUDA for memory, in the order of the stream. Other functions of a network, as
 * hifuse_network_close, are those of hifuse.h. hifuse_network_run takes and gives memory of the host: it copies, and waits for
 * the results. Its threads are not used. */
HIFUSE_API const char* hifuse_network_open_cuda(const char* path, int32_t device, const hifuse_cuda_memory* memory,
                                                hifuse_network** network);

/* Puts a run on a stream, a cudaStream_t of the network's device or NULL for its default one, and never waits. images->data and
 * results, float32 [batch, outputs], are memory of the device. An image has the same bits whatever the batch, but for kernels
 * for sm_90a, and those that Python gives on a device of this kind.
 *
 * The file says what the table of its device said when Python saved it: from how many pixels of all images on an MLP or a mixer
 * is a kernel's for sm_90a, which adds in another order, and whether launches may begin before those before them have ended.
 * hifuse_network_open_cuda refuses a file with such calls where the library or the device has no such kernels.
 *
 * Maps are kept for the next run on this stream. The first run of a larger batch or size on a stream takes memory for them: it
 * cannot be captured into a CUDA graph, later ones can. A graph holds the maps of its stream: launch it on that stream, and not
 * after a run that took more memory. A stream that is destroyed must have done its work before. */
HIFUSE_API const char* hifuse_network_run_cuda(hifuse_network* network, const hifuse_images* images, float* results,
                                               void* stream);

/* ---- Ops ------------------------------------------------------------------------------------------------------------------
 *
 * Maps are contiguous, [batch, height, width, channels], float32, bfloat16 or float16 as `dtype` says, and begin at multiples
 * of 16 bytes. Memory that is written to must not overlap memory that is read. norm(x) is (x - mean) / sqrt(var + eps). GELU is
 * the exact one. All memory is the current device's. Launches begin when those before them have ended.
 */

typedef struct hifuse_cuda_launch {
  void* stream;          /* a cudaStream_t of the current device; or NULL, for its default one */
  void* scratch;         /* memory that the op writes to, from a multiple of 256 bytes on */
  int64_t scratch_bytes; /* at least as many as the function beside the op says */
} hifuse_cuda_launch;

/* out = residual + pool(activation(norm(rows) weight^T + bias)) */
typedef struct hifuse_cuda_linear_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height; /* of the maps */
  int64_t width;
  hifuse_rows rows;    /* HIFUSE_PIXELS or HIFUSE_PATCHES */
  const void* maps[3]; /* 1 to 3 maps whose channels lie side by side; one of HIFUSE_PATCHES */
  int64_t channels[3]; /* of each map; 0 where there is none */
  hifuse_norm norm;
  float eps;
  const void* weight; /* of `dtype`, [columns, depth]; the depth is all channels of a row */
  const void* bias;   /* of `dtype`, [columns] */
  int64_t columns;
  hifuse_activation activation;
  bool pool;            /* the mean of 2x2 pixels is taken; of HIFUSE_PIXELS */
  const void* residual; /* like out, or null */
  void* out;            /* [B, height, width, columns], of half the height and width with `pool` and of HIFUSE_PATCHES */
} hifuse_cuda_linear_params;
HIFUSE_API const char* hifuse_cuda_linear(const hifuse_cuda_linear_params* params, const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_linear_scratch(const hifuse_cuda_linear_params* params, int64_t* bytes);

/* out[i] = norm(conv4x4/4(images) + bias[i]) scale[i] + shift[i] */
typedef struct hifuse_cuda_stem_params {
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
  const void* weight; /* of `dtype`, [2 channels, in_chans, 4, 4] */
  const void* bias;   /* of `dtype`, [2 channels] */
  const float* scale; /* each [2, channels] */
  const float* shift;
  float eps[2];
  void* out[2]; /* each [B, height, width, channels] */
} hifuse_cuda_stem_params;
HIFUSE_API const char* hifuse_cuda_stem(const hifuse_cuda_stem_params* params, const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_stem_scratch(const hifuse_cuda_stem_params* params, int64_t* bytes);

/* out = x + gelu(norm(dwconv3x3(x) + filter_bias) weight^T + bias)
 *
 * `whole`: by one kernel, in bfloat16 or float16, of up to 192 channels, a multiple of 8. Its weight is filled up with zeros to
 * [room, room], where room is 96 or 192, the least that is enough. It lies as [room / 8, room / 32, 32, 8]: of 8 rows and 32
 * columns, the 8 numbers of lane 4 g + t are columns 2t, 2t + 1 of row g, then those 8, 16 and 24 further. */
typedef struct hifuse_cuda_local_block_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  const void* x;
  const float* filters;    /* [9, channels up to a multiple of 8], numbers of `dtype` */
  const void* filter_bias; /* [channels], as bias: of float32 with `whole`, else of `dtype` */
  float eps;
  bool whole;
  const void* weight; /* of `dtype`, [channels, channels] or as above */
  const void* bias;
  const float* ones; /* [channels], unless `whole` */
  const float* zeros;
  void* out;
} hifuse_cuda_local_block_params;
HIFUSE_API const char* hifuse_cuda_local_block(const hifuse_cuda_local_block_params* params, const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_local_block_scratch(const hifuse_cuda_local_block_params* params, int64_t* bytes);

/* out = x + gelu(attention(norm(x) qkv^T + qkv_bias) weight^T + bias), in bfloat16 or float16: of up to 6 heads of up to 32
 * channels, and windows of up to 7 x 7. Weights lie as that of a whole local block, a head filled up to 32 channels. */
typedef struct hifuse_cuda_global_block_params {
  hifuse_window_attention_shape shape;
  float eps;
  const void* x;
  const void* qkv;       /* of `dtype`; rows are (head; q, k, v; channel of the head), columns filled up to the room */
  const float* qkv_bias; /* [heads, 3, 32] */
  const float* padding;  /* the same of a padded token, whose norm is zero */
  const float* table;    /* [heads, 4, 7, 32, 4]: the position bias in the order of accumulators, in units of log2 */
  const void* weight;    /* of `dtype`; columns are (head; channel of the head) */
  const float* bias;     /* [channels] */
  void* out;
} hifuse_cuda_global_block_params;
HIFUSE_API const char* hifuse_cuda_global_block(const hifuse_cuda_global_block_params* params,
                                                const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_global_block_scratch(const hifuse_cuda_global_block_params* params, int64_t* bytes);

/* out = gelu(norm([w_l, w_g]) weight^T + bias), where w_l and w_g are linears of the local and the global map. In bfloat16 or
 * float16, of up to 96 channels, a multiple of 8. Weights lie as that of a whole local block of 96 channels. */
typedef struct hifuse_cuda_fuse_path_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  float eps;
  const void* local_map; /* each [B, height, width, channels] */
  const void* global_map;
  const void* weights; /* of `dtype`: of w_l, of w_g, and the weight's columns for w_l and for w_g, each [96, 96] */
  const float* biases; /* [3, 96]: of w_l, of w_g, and the bias, filled up with zeros */
  void* out;           /* [B, height, width, channels] */
} hifuse_cuda_fuse_path_params;
HIFUSE_API const char* hifuse_cuda_fuse_path(const hifuse_cuda_fuse_path_params* params, const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_fuse_path_scratch(const hifuse_cuda_fuse_path_params* params, int64_t* bytes);

/* out = softmax(scale q k^T + bias + mask) v of every head and shifted window, in place of its tokens. Heads have 8 to 128
 * channels, a multiple of 8. */
typedef struct hifuse_cuda_window_attention_params {
  hifuse_window_attention_shape shape;
  const void* qkv;         /* [B, H, W, 3 num_heads head_dim]: q of all heads, then k, then v */
  const float* bias_table; /* [(2 window_size - 1)^2, num_heads] */
  const void* qkv_bias;    /* of `dtype`, [3 num_heads head_dim], the q, k and v of padded tokens; or NULL */
  void* out;               /* [B, H, W, num_heads head_dim] */
} hifuse_cuda_window_attention_params;
HIFUSE_API const char* hifuse_cuda_window_attention(const hifuse_cuda_window_attention_params* params,
                                                    const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_window_attention_scratch(const hifuse_cuda_window_attention_params* params, int64_t* bytes);

/* out = norm([g', l', x]) scale + shift, where g' is the global map times the gate of its channels, and l' the local map times
 * the gate of its pixels. */
typedef struct hifuse_cuda_gated_concat_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t squeezed;
  const void* local_map; /* each [B, height, width, channels] */
  const void* global_map;
  const void* x;
  const float* filters; /* [7, 7, 2]: of the largest value of a pixel, of its mean */
  const float* filter_bias;
  const float* squeeze; /* [squeezed, channels] */
  const float* expand;  /* [channels, squeezed] */
  const float* scale;   /* [3 channels] */
  const float* shift;
  bool double_sigmoid;
  float eps;
  void* out; /* [B, height, width, 3 channels] */
} hifuse_cuda_gated_concat_params;
HIFUSE_API const char* hifuse_cuda_gated_concat(const hifuse_cuda_gated_concat_params* params,
                                                const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_gated_concat_scratch(const hifuse_cuda_gated_concat_params* params, int64_t* bytes);

/* out = z + gelu(conv3x3(z)) */
typedef struct hifuse_cuda_mixer_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  const void* z;
  bool depthwise;
  bool sm90;          /* as that of an MLP; of a dense mixer of 288 channels, or a multiple of 64 */
  const void* weight; /* of `dtype`, [channels, 3, 3, channels], the channels of z last; `depthwise` [3, 3, channels] */
  void* out;
} hifuse_cuda_mixer_params;
HIFUSE_API const char* hifuse_cuda_mixer(const hifuse_cuda_mixer_params* params, const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_mixer_scratch(const hifuse_cuda_mixer_params* params, int64_t* bytes);

/* out = residual + project gelu(expand u + expand_bias) + project_bias
 *
 * `sm90`: by a kernel that runs on devices of compute capability 9.0 alone, and adds in another order. It is refused elsewhere,
 * and by a library that was built without sm_90a. It is of bfloat16 and float16; the depth is a multiple of 8 up to 288 with up
 * to 96 columns, else up to 576; the hidden units are a multiple of 128; the columns of 8, up to 192. */
typedef struct hifuse_cuda_mlp_params {
  hifuse_dtype dtype;
  int64_t batch;
  int64_t rows; /* of an image */
  int64_t depth;
  int64_t hidden;
  int64_t columns;
  bool sm90;               /* by the kernel for sm_90a, see above */
  const void* u;           /* [B, rows, depth] */
  const void* expand;      /* of `dtype`, as the other ones, [hidden, depth] */
  const void* expand_bias; /* [hidden] */
  const void* project;     /* [columns, hidden] */
  const void* project_bias;
  const void* residual; /* like out, or null */
  void* out;            /* [B, rows, columns] */
} hifuse_cuda_mlp_params;
HIFUSE_API const char* hifuse_cuda_mlp(const hifuse_cuda_mlp_params* params, const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_mlp_scratch(const hifuse_cuda_mlp_params* params, int64_t* bytes);

/* out = the mean over the pixels */
HIFUSE_API const char* hifuse_cuda_mean(const hifuse_mean_params* params, const hifuse_cuda_launch* launch);
HIFUSE_API const char* hifuse_cuda_mean_scratch(const hifuse_mean_params* params, int64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif /* HIFUSE_CUDA_H */
