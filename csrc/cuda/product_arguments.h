// What a product on tensor cores is given. Knows no CUDA.
#pragma once
#include <cstdint>

#include "arguments.h"

namespace hifuse::cuda {

// What the rows of the left side are: the channels of a pixel in each of up to three maps; of the four pixels of a 2x2 patch,
// in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1); or of the nine pixels around one, row by row. Zeros stand for
// pixels that are not on the map.
enum class Source { pixels, patches, taps };

// out = residual + pool(activation(norm(rows) weight^T + bias)).
struct Product {
  DType dtype;  // of all maps, of the weight and the bias
  Source source;
  int64_t batch;
  int64_t height;  // of the maps
  int64_t width;
  Map<const void*> maps[3];  // their channels lie side by side
  int64_t channels[3];       // 0 where there is no map
  Norm norm;                 // of a whole row, or of each pixel of a patch
  float eps;
  const float* norm_weight;  // [depth], or null with norm_bias
  const float* norm_bias;
  const void* weight;  // [columns, depth]
  const void* bias;    // [columns] or null
  int64_t columns;
  Activation activation;
  bool pool;             // mean of the 2x2 patches of the result; of Source::pixels, the height and width even
  const void* residual;  // like out, or null
  int64_t image_rows;    // which decide in which order a sum is added (product_parts.h); 0: those of an image of the maps
  void* before;          // like the rows times the columns, or null: what goes into the activation; not with `pool`
  void* out;             // [batch, height, width, columns], or half the height and width, rounded up
};

// So many products at most are called together. They have one dtype, and do not need each other's results.
inline constexpr int kMostProducts = 3;

// Where blocks leave the parts of sums, and what counts them, see product_parts.h.
struct PartsRoom {
  void* sums;          // scratch memory of products_scratch bytes; null where that is 0
  uint32_t* counters;  // product_counters of them, zero before the call and after it; null where `sums` is
};

// out = grad gelu'(z), all of `length` numbers.
struct GeluGradient {
  DType dtype;
  int64_t length;
  const void* grad;
  const void* z;
  void* out;
  void* activated;  // gelu(z), or null
};

// out = added + gelu(conv(z)): 3x3, zero padded, each channel by itself. Maps are contiguous.
struct DepthwiseConvolution {
  DType dtype;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  const void* z;
  const void* weight;  // [9, channels]
  const void* added;   // or null for zeros
  bool gelu;           // else `added` + conv(z)
  void* before;        // what goes into GELU, or null
  void* out;
};

}  // namespace hifuse::cuda
