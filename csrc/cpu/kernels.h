// What the kernels of a CPU are lent and how they pack weights, and the table of kernels of one instruction set.
#pragma once

#include <atomic>
#include <cstdint>

#include "arguments.h"

namespace hifuse {

// Runs body(context, begin, end) over pieces of [0, count) on the caller's threads; `grain` is the smallest worthwhile piece.
struct Parallel {
  void (*run)(int64_t count, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t));
  int64_t (*threads)();

  template <class Body>
  void operator()(int64_t count, int64_t grain, const Body& body) const {
    run(count, grain, const_cast<Body*>(&body),
        [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); });
  }

  // body(task) for each task of [0, count). A thread first takes the tasks of its own share, in order: neighbours in number
  // have neighbouring rows or weights, and what one task asks for ahead then serves the next one of the same core. When it has
  // done these, it helps with the shares of the others, so none waits for another that is slower.
  template <class Body>
  void each(int64_t count, const Body& body) const {
    constexpr int64_t kMost = 64;
    struct alignas(64) Share {
      std::atomic<int64_t> taken{0};
    } share[kMost];
    const int64_t wanted = threads() < count ? threads() : count, shares = wanted < kMost ? wanted : kMost;
    (*this)(count, 1, [&](int64_t begin, int64_t) {
      const int64_t own = begin * shares / count;
      for (int64_t i = 0; i < shares; ++i) {
        const int64_t at = (own + i) % shares, first = count * at / shares, last = count * (at + 1) / shares;
        for (int64_t task = first + share[at].taken++; task < last; task = first + share[at].taken++) body(task);
      }
    });
  }
};

// ---- How weights are packed ------------------------------------------------------------------------------------------------

constexpr int64_t kHidden = 192;  // hidden units of the MLP that exist at a time: its second weight is packed in such blocks

struct PackLinear {
  DType dtype;
  const void* weight;  // [columns, depth]
  int64_t columns;
  int64_t depth;
  int64_t column_stride;  // from column to column
  int64_t depth_stride;
  int64_t block;  // depth is packed in blocks of so many, one after the other
  void* packed;
};

struct PackStrassen {
  const float* weight;  // [columns, depth]
  int64_t columns;
  int64_t depth;  // even
  float* packed;  // the factors of each pair of panels, see strassen.h
};

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
};

}  // namespace hifuse
