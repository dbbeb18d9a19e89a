// The entry points of the CUDA kernels. They allocate nothing and never wait: what a launch says comes back as text, nullptr
// where it was well. Knows no CUDA, so that the bindings need no CUDA compiler.
#pragma once

#include <cstdint>
#include <vector>

#include "arguments.h"
#include "cuda/product_arguments.h"

namespace hifuse::cuda {

// What is known of a kernel before it is compiled. Each one that is launched anywhere is listed when the library is loaded.
struct Listed {
  const char* name;
  const char* type;  // of the kernel's struct, as in the symbol of its machine code
  int threads;
  int blocks;  // that a multiprocessor is to hold
  int shared_bytes;
};

inline std::vector<Listed>& listed() {
  static std::vector<Listed> all;
  return all;
}

// Whether launches of this thread may begin before those before them on their stream have ended: on sm_90 and later, where each
// kernel of ours waits for them before it touches memory. In a CUDA graph that is captured, from CUDA 12.3 on, it stays so.
inline thread_local bool begin_early = false;

// Of all entry points: pointers are of the current device, which has so many multiprocessors, and `stream` is a cudaStream_t of
// it. Maps begin at 16 bytes, and their strides are multiples of 16 bytes; so do scratch memory and rows of padded tokens.

// float32, bfloat16 and float16; head_dim a multiple of 8. The table is float32; qkv_bias, a padded token, is of the maps'
// dtype.
const char* window_attention_forward(const WindowAttentionForward& arguments, int multiprocessors, void* stream);

// Gradients of the table and of qkv_bias are float32. Scratch memory is of as many bytes as the function beside says.
int64_t window_attention_backward_scratch(const WindowAttentionShape& shape, int multiprocessors);
const char* window_attention_backward(const WindowAttentionBackward& arguments, void* scratch, int multiprocessors,
                                      void* stream);

// One to three products, each a linear, half of an MLP, or a convolution: one launch if all their blocks can be on the device
// at the same time, as those of one image are; else one each. Maps may begin anywhere and have any strides, but channels side
// by side. On how many multiprocessors they are counted changes no bit.
int64_t products_scratch(const Product* all, int count, int multiprocessors);
int64_t product_counters(int multiprocessors);
int product_launches(const Product* all, int count, int multiprocessors);
const char* products(const Product* all, int count, const PartsRoom& room, int multiprocessors, void* stream);

const char* gelu_backward(const GeluGradient& arguments, void* stream);
const char* mixer_depthwise(const DepthwiseConvolution& arguments, void* stream);

}  // namespace hifuse::cuda
