/* HiFuse on a CPU, without Python: networks frozen by hifuse_fast, and the ops that they are made of. cuda.h has both for a
 * CUDA device.
 *
 * A function that can fail returns NULL, or a message that names the argument. The message is valid until the same thread calls
 * the library again. Functions may be called by several threads at once. The instruction set is chosen when the library is
 * loaded, by what CPU and operating system support; ATEN_CPU_CAPABILITY=default, avx2 or avx512 caps it.
 */
#ifndef HIFUSE_H
#define HIFUSE_H

#include "params.h"

#if defined(__GNUC__)
#define HIFUSE_API __attribute__((visibility("default")))
#else
#define HIFUSE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the library, and the instruction set in use. */
HIFUSE_API const char* hifuse_version(void);
HIFUSE_API const char* hifuse_isa(void);

/* ---- Threads --------------------------------------------------------------------------------------------------------------
 */

/* The threads that a call is lent. Where a pointer to it is NULL, the calling thread does all. No result depends on them. */
typedef struct hifuse_threads {
  int64_t count; /* how many may work at a time, at least 1 */
  void* context; /* of the lender */
  /* Calls task(work, index) once for each index of [0, tasks), by any threads in any order, and returns when all are done. */
  void (*run)(void* context, int64_t tasks, void (*task)(void* work, int64_t index), void* work);
} hifuse_threads;

/* ---- Networks -------------------------------------------------------------------------------------------------------------
 */

/* What OptimizedHiFuse.save of hifuse_fast wrote, version 8 of its files, with all ops on the backend "native", or all on
 * "cuda". */
typedef struct hifuse_network hifuse_network;

typedef struct hifuse_images {
  hifuse_dtype dtype; /* HIFUSE_FLOAT32, or that of the network */
  const void* data;   /* [batch, in_chans, height, width]; in_chans is the network's */
  int64_t batch;
  int64_t height; /* any, from 1 on */
  int64_t width;
  int64_t strides[4]; /* in elements; all 0: contiguous */
} hifuse_images;

/* Reads a file for a CPU. The network keeps nothing of it open. A file is not believed: what does not fit is refused by name.
 */
HIFUSE_API const char* hifuse_network_open(const char* path, hifuse_network** network);
HIFUSE_API void hifuse_network_close(hifuse_network* network);

/* results [batch, outputs], float32: the logits, of a network without classifier the features; of a bfloat16 or float16
 * network its values, widened. An image has the same bits whatever the batch, and those that Python gives on this instruction
 * set. Maps are kept for the next call, once for as many calls as ran at the same time. */
HIFUSE_API const char* hifuse_network_run(hifuse_network* network, const hifuse_images* images, float* results,
                                          const hifuse_threads* threads);

/* Of NULL, these functions give 0 and NULL. */
HIFUSE_API int64_t hifuse_network_in_chans(const hifuse_network* network);
HIFUSE_API int64_t hifuse_network_outputs(const hifuse_network* network);
HIFUSE_API hifuse_dtype hifuse_network_dtype(const hifuse_network* network);

/* The name of a class, UTF-8: that of its training, or its number; NULL where there is no such class. */
HIFUSE_API const char* hifuse_network_class_name(const hifuse_network* network, int64_t index);

/* What the network takes of an image of 8 bits: (value / 255 - mean) / std of R, G and B, in float32. */
typedef struct hifuse_normalisation {
  float mean[3];
  float std[3];
} hifuse_normalisation;
HIFUSE_API hifuse_normalisation hifuse_network_normalisation(const hifuse_network* network);

/* ---- Ops: see params.h ----------------------------------------------------------------------------------------------------
 */

HIFUSE_API const char* hifuse_linear(const hifuse_linear_params* params, const hifuse_threads* threads);
HIFUSE_API const char* hifuse_stem(const hifuse_stem_params* params, const hifuse_threads* threads);
HIFUSE_API const char* hifuse_gated_concat(const hifuse_gated_concat_params* params, const hifuse_threads* threads);
HIFUSE_API const char* hifuse_mixer(const hifuse_mixer_params* params, const hifuse_threads* threads);
HIFUSE_API const char* hifuse_mlp(const hifuse_mlp_params* params, const hifuse_threads* threads);
HIFUSE_API const char* hifuse_mean(const hifuse_mean_params* params, const hifuse_threads* threads);

/* out = softmax(scale q k^T + bias + mask) v of every head and shifted window, in place of its tokens. Heads have 8 to 128
 * channels. */
typedef struct hifuse_window_attention_params {
  hifuse_window_attention_shape shape;
  const void* qkv;         /* [B, H, W, 3 num_heads head_dim]: q of all heads, then k, then v */
  const float* bias_table; /* [(2 window_size - 1)^2, num_heads] */
  const float* qkv_bias;   /* [3 num_heads head_dim], the q, k and v of padded tokens; or NULL */
  void* out;               /* [B, H, W, num_heads head_dim] */
} hifuse_window_attention_params;
HIFUSE_API const char* hifuse_window_attention(const hifuse_window_attention_params* params, const hifuse_threads* threads);

/* ---- Packing: of the weights of ops, once ---------------------------------------------------------------------------------
 */

enum { HIFUSE_MLP_BLOCK = 192 }; /* the depth of the blocks in which the second weight of an MLP is packed */

typedef struct hifuse_pack_matrix_params {
  hifuse_dtype dtype;         /* of the maps; STRASSEN is of float32 */
  hifuse_algorithm algorithm; /* DIRECT, STRASSEN or INT8 */
  const void* weight;         /* [columns, depth], contiguous, of `dtype`; of INT8 int8_t */
  int64_t columns;
  int64_t depth;
  int64_t block; /* HIFUSE_MLP_BLOCK of the second weight of an MLP, else 0 */
} hifuse_pack_matrix_params;

/* A dense 3x3 convolution. That of DEPTHWISE_CONVOLUTION is not packed. */
typedef struct hifuse_pack_filters_params {
  hifuse_dtype dtype;         /* of the maps */
  hifuse_algorithm algorithm; /* as of a mixer */
  const void* weight;         /* [channels, channels, 3, 3], contiguous; of DIRECT in `dtype`, of INT8 and INT8_WINOGRAD2
                               * int8_t, else float32 */
  int64_t channels;
} hifuse_pack_filters_params;

/* `bytes`: how much memory `packed` needs. */
HIFUSE_API const char* hifuse_packed_matrix_size(const hifuse_pack_matrix_params* params, int64_t* bytes);
HIFUSE_API const char* hifuse_pack_matrix(const hifuse_pack_matrix_params* params, void* packed, const hifuse_threads* threads);
HIFUSE_API const char* hifuse_packed_filters_size(const hifuse_pack_filters_params* params, int64_t* bytes);
HIFUSE_API const char* hifuse_pack_filters(const hifuse_pack_filters_params* params, void* packed,
                                           const hifuse_threads* threads);

#ifdef __cplusplus
}
#endif

#endif /* HIFUSE_H */
