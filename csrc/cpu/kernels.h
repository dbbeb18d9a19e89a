// What a kernel is given, and the table of kernels of one instruction set. Knows no torch and no Python.
#pragma once

#include <cstdint>

namespace hifuse {

enum class DType { float32, bfloat16, float16, float64 };

// Runs body(context, begin, end) over pieces of [0, count) on the caller's threads; `grain` is the smallest worthwhile piece.
struct Parallel {
  void (*run)(int64_t count, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t));

  template <class Body>
  void operator()(int64_t count, int64_t grain, const Body& body) const {
    run(count, grain, const_cast<Body*>(&body),
        [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); });
  }
};

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
  Map<void*> grad_qkv;    // [B, H, W, 3C]
  void* grad_bias_table;  // [(2M-1)^2, heads]
  void* grad_qkv_bias;    // [3C]: what the padded tokens contribute
};

struct KernelTable {
  void (*window_attention_forward)(const WindowAttentionForward&, const Parallel&);
  void (*window_attention_backward)(const WindowAttentionBackward&, const Parallel&);
};

}  // namespace hifuse
