// What the kernels of a CPU are lent and how they pack weights, and the table of kernels of one instruction set.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace hifuse {

// The threads that a kernel is lent: PyTorch's, those of pool.h, or those of who calls the library from C.
struct Parallel {
  int64_t threads;  // how many may work at a time
  void* lender;
  // body(context, task) for each task of [0, count); returns when all are done.
  void (*run)(void* lender, int64_t count, void* context, void (*body)(void*, int64_t));

  template <class Body>
  void each(int64_t tasks, const Body& body) const {
    run(lender, tasks, const_cast<Body*>(&body),
        [](void* context, int64_t task) { (*static_cast<const Body*>(context))(task); });
  }
};

// ---- How weights are packed ------------------------------------------------------------------------------------------------

constexpr int64_t kHidden = 192;  // hidden units of the MLP that exist at a time: its second weight is packed in such blocks

struct PackLinear {
  DType dtype;
  const void* weight;  // [columns, depth, taps]
  int64_t columns;
  int64_t depth;
  int64_t taps;   // those of a chunk of the depth are packed one after the other
  int64_t block;  // depth is packed in blocks of so many, one after the other
  void* packed;
};

struct PackInt8 {
  const int8_t* weight;  // [columns, depth]
  int64_t columns;
  int64_t depth;
  int64_t block;  // as of PackLinear
  int8_t* packed;
};

struct PackStrassen {
  const float* weight;  // [columns, depth]
  int64_t columns;
  int64_t depth;  // even
  float* packed;  // the factors of each pair of panels, see strassen.h
};

constexpr int64_t kTaps = 9;  // of a 3x3 convolution

// Products of a Winograd tile along an axis. With 4 outputs in bfloat16 its points are complex (winograd_complex.h).
constexpr int64_t winograd_products(int64_t tile, DType dtype) {
  return tile + (tile == 4 && dtype == DType::bfloat16 ? 3 : 2);
}

struct PackWinograd {
  const float* weight;  // [columns, depth, 3, 3], or where `transposed` [depth, columns, 3, 3], each filter turned round
  int64_t columns;
  int64_t depth;
  bool transposed;  // the convolution is the gradient of another one's input
  int64_t tile;     // outputs along an axis: 2 or 4
  DType dtype;      // of `packed`
  void* packed;
};

struct PackInt8Filters {
  const int8_t* weight;  // [channels, channels, 3, 3]
  int64_t channels;
  Algorithm algorithm;  // int8: the panels of int8_product_of_taps; int8_winograd2: see cpu/mixer_int8_winograd.cpp
  void* packed;
};

struct KernelTable {
  void (*window_attention_forward)(const WindowAttentionForward&, const Parallel&);
  void (*window_attention_backward)(const WindowAttentionBackward&, const Parallel&);
  void (*pack_linear)(const PackLinear&, const Parallel&);
  void (*pack_strassen)(const PackStrassen&, const Parallel&);
  void (*pack_winograd)(const PackWinograd&, const Parallel&);
  void (*linear)(const Linear&, const Parallel&);
  void (*stem)(const Stem&, const Parallel&);
  void (*gated_concat)(const GatedConcat&, const Parallel&);
  void (*mixer)(const Mixer&, const Parallel&);
  void (*mixer_filters_gradient)(const MixerFiltersGradient&, const Parallel&);
  void (*mlp)(const Mlp&, const Parallel&);
  void (*mean)(const Mean&, const Parallel&);
  void (*pack_int8)(const PackInt8&, const Parallel&);
  void (*pack_int8_filters)(const PackInt8Filters&, const Parallel&);
};

}  // namespace hifuse
