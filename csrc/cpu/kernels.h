// What a kernel is given, and the table of kernels of one instruction set. Knows no torch and no Python.
#pragma once

#include <atomic>
#include <cstdint>

namespace hifuse {

enum class DType { float32, bfloat16, float16, float64 };

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

// ---- The prepared ops: maps are contiguous, float32 or bfloat16; biases, scales and filters float32; weights packed --------

enum class Rows { pixels, patches, depthwise };
enum class Norm { none, row, pixel };
enum class Activation { none, gelu, relu };

constexpr int64_t kHidden = 192;  // hidden units of the MLP that exist at a time

struct PackLinear {
  DType dtype;
  const void* weight;  // [columns, depth]
  int64_t columns;
  int64_t depth;
  int64_t block;  // depth is packed in blocks of so many, one after the other
  void* packed;
};

// Products of a Winograd tile along an axis. With 4 outputs in bfloat16 its points are complex (winograd_complex.h).
constexpr int64_t winograd_products(int64_t tile, DType dtype) {
  return tile + (tile == 4 && dtype == DType::bfloat16 ? 3 : 2);
}

struct PackWinograd {
  const float* weight;  // [columns, depth, 3, 3]
  int64_t columns;
  int64_t depth;
  int64_t tile;  // outputs along an axis: 2 or 4
  DType dtype;   // of `packed`
  void* packed;
};

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
  bool strassen;  // `weight` is packed for Strassen's product: float32, the depth a multiple of 32, columns of 64
  const void* weight;
  const float* bias;
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
  const void* images;  // [B, in_chans, 4H, 4W], any strides
  int64_t strides[4];
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
  int64_t tile;        // of Winograd, 2 or 4; 1: direct; 0: depthwise
  bool transform;      // with 4 in float32: the filters are packed as they are, a matrix [C, 9C], and transformed at the call
  const void* weight;  // packed; depthwise: float32 [9, C]
  void* out;
};

struct Mlp {
  DType dtype;
  int64_t batch;
  int64_t rows;  // of an image
  int64_t depth;
  int64_t hidden;
  int64_t columns;
  const void* u;
  bool strassen;  // `expand` has the factors of Strassen's product: float32, depth a multiple of 32
  const void* expand;
  const float* expand_bias;
  const void* project;  // packed in blocks of kHidden
  const float* project_bias;
  const void* residual;
  void* out;
};

struct KernelTable {
  void (*window_attention_forward)(const WindowAttentionForward&, const Parallel&);
  void (*window_attention_backward)(const WindowAttentionBackward&, const Parallel&);
  void (*pack_linear)(const PackLinear&, const Parallel&);
  void (*pack_winograd)(const PackWinograd&, const Parallel&);
  void (*linear)(const Linear&, const Parallel&);
  void (*stem)(const Stem&, const Parallel&);
  void (*gated_concat)(const GatedConcat&, const Parallel&);
  void (*mixer)(const Mixer&, const Parallel&);
  void (*mlp)(const Mlp&, const Parallel&);
};

}  // namespace hifuse
