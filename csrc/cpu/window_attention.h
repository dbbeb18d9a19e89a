// Shifted-window attention over an un-partitioned map. What forward and backward share: the sizes, the tokens of a window, and
// packing one head of it into dense rows.
//
// A task is one window of one head: about 49 x 32 elements of q, k and v, which together with the weights fit in L1.
// Everything between packing and unpacking is dense arithmetic in the type T, whatever the map is stored in.
#pragma once

#include <limits>

#include "cpu/counts.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/storage.h"
#include "geometry.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

void window_attention_forward(const WindowAttentionForward&, const Parallel&);
void window_attention_backward(const WindowAttentionBackward&, const Parallel&);

constexpr double kLog2E = 1.4426950408889634;
constexpr double kMask = -100.0;  // additive, as the official code has it

// Scores are kept in units of log2, so that softmax needs no multiplication before its 2^x.
template <class T>
struct WindowSizes {
  explicit WindowSizes(const WindowAttentionShape& shape)
      : grid(shape.height, shape.width, shape.window_size, shape.shift_size),
        window(shape.window_size),
        tokens(grid.tokens()),
        keys(round_up(tokens, kLanes<T>)),
        head_dim(shape.head_dim),
        dim(round_up(shape.head_dim, kLanes<T>)),
        table_rows((2 * window - 1) * (2 * window - 1)),
        log2_scale(static_cast<T>(shape.scale * kLog2E)) {}

  WindowGrid grid;
  int64_t window;
  int64_t tokens;  // N
  int64_t keys;    // N, padded to whole vectors: length of a row of scores
  int64_t head_dim;
  int64_t dim;         // head_dim, padded: length of a row of q, k, v
  int64_t table_rows;  // (2M-1)^2
  T log2_scale;        // of q.k
};

// One window of one image.
struct Place {
  int64_t image;
  int64_t row;
  int64_t column;
};

template <class T>
inline Place place_of(const WindowSizes<T>& sizes, int64_t window_index) {
  const int64_t columns = sizes.grid.columns.windows, windows = sizes.grid.windows();
  return {window_index / windows, window_index % windows / columns, window_index % columns};
}

constexpr int64_t kPadded = -1;

// offsets[token] = where its first channel lies in the map, in elements, or kPadded.
template <class T, class Pointer>
inline void locate(const WindowSizes<T>& sizes, const Place& place, const Map<Pointer>& map, int64_t* offsets) {
  const Axis& rows = sizes.grid.rows;
  const Axis& columns = sizes.grid.columns;
  for (int64_t y = 0; y < sizes.window; ++y) {
    const int64_t row = rows.source(place.row * sizes.window + y);
    const int64_t start = place.image * map.batch_stride + row * map.row_stride;
    for (int64_t x = 0; x < sizes.window; ++x) {
      const int64_t column = columns.source(place.column * sizes.window + x);
      const bool inside = row < rows.length && column < columns.length;
      *offsets++ = inside ? start + column * map.column_stride : kPadded;
    }
  }
}

// regions[token], as numbers that vectors compare.
template <class T>
inline void mark_regions(const WindowSizes<T>& sizes, const Place& place, T* regions) {
  for (int64_t y = 0; y < sizes.window; ++y)
    for (int64_t x = 0; x < sizes.window; ++x)
      *regions++ = static_cast<T>(3 * sizes.grid.rows.region(place.row * sizes.window + y) +
                                  sizes.grid.columns.region(place.column * sizes.window + x));
}

// rows[i, 0:head_dim] = the channels from `channel` on of the `count` tokens at `offsets`; of `padding` (or 0) for a padded
// one.
template <class Stored, class T>
inline void pack(const WindowSizes<T>& sizes, const void* map, const int64_t* offsets, int64_t count, int64_t channel,
                 const T* padding, T* rows) {
  for (int64_t i = 0; i < count; ++i) {
    T* const row = rows + i * sizes.dim;
    if (offsets[i] != kPadded)
      widen_row(static_cast<const Stored*>(map) + offsets[i] + channel, row, sizes.head_dim);
    else
      for (int64_t d = 0; d < sizes.head_dim; ++d) row[d] = padding ? padding[channel + d] : T(0);
  }
}

// Ask for the lines that `pack` will read.
template <class Stored, class T>
inline void prefetch(const WindowSizes<T>& sizes, const void* map, const int64_t* offsets, int64_t count, int64_t channel) {
  constexpr int64_t kLine = 64 / sizeof(Stored);
  for (int64_t i = 0; i < count; ++i) {
    if (offsets[i] == kPadded) continue;
    const Stored* const row = static_cast<const Stored*>(map) + offsets[i] + channel;
    for (int64_t d = 0; d < sizes.head_dim; d += kLine)
      __builtin_prefetch(row + d, 0, 2);  // into L2: L1 is full of the task at hand
  }
}

// columns[d, i] = rows[i, d] for as many rows as a vector is wide; columns are `keys` long.
template <class T>
inline void transpose(const WindowSizes<T>& sizes, const T* rows, T* columns) {
  for (int64_t d = 0; d < sizes.dim; d += kLanes<T>)
    transpose_square(rows + d, sizes.dim, columns + d * sizes.keys, sizes.keys);
}

// The position bias of one head, [tokens, keys] in log2 units, expanded from the table when the head changes.
template <class T>
class Bias {
 public:
  Bias(const WindowSizes<T>& sizes, const T* table, int64_t num_heads)
      : sizes_(sizes),
        table_(table),
        num_heads_(num_heads),
        turned_(scratch_.template take<T>(sizes.table_rows + kLanes<T>)),
        bias_(scratch_.template take<T>(sizes.tokens * sizes.keys + kLanes<T>)) {}

  const T* of_head(int64_t head) {
    if (head != head_) expand(head);
    head_ = head;
    return bias_;
  }

 private:
  // The rows of the table are turned round first: then the keys of one key row lie side by side. They are copied by whole
  // vectors, each of which overwrites what the one before it wrote too much; the last ones write just their own.
  void expand(int64_t head) {
    const int64_t window = sizes_.window;
    for (int64_t r = 0; r < sizes_.table_rows; ++r)
      turned_[sizes_.table_rows - 1 - r] = static_cast<T>(kLog2E) * table_[r * num_heads_ + head];
    T* to = bias_;
    for (int64_t y = 0; y < window; ++y)
      for (int64_t x = 0; x < window; ++x, to += sizes_.keys) {
        const T* const first = turned_ + sizes_.table_rows - 1 - bias_row(window, y, x, 0);
        for (int64_t key_row = 0; key_row + 1 < window; ++key_row)
          for (int64_t i = 0; i < window; i += kLanes<T>)
            store(to + key_row * window + i, load(first + key_row * (2 * window - 1) + i));
        for (int64_t i = 0; i < window; ++i) to[(window - 1) * window + i] = first[(window - 1) * (2 * window - 1) + i];
        for (int64_t key = sizes_.tokens; key < sizes_.keys; ++key) to[key] = kNoKey;
      }
  }

  // For the keys that only fill the vector. However small the scores of the others are, these weigh nothing.
  static constexpr T kNoKey = -std::numeric_limits<T>::infinity();

  const WindowSizes<T>& sizes_;
  const T* table_;
  int64_t num_heads_;
  Scratch scratch_;
  T* turned_;
  T* bias_;
  int64_t head_ = -1;
};

// A block of at most kBlockRows queries from `first` on. In: `scores` are q.k. Out: 2^(x - largest x of the row) with
// x = scale q.k + bias + mask in log2 units, and in `inverses` one over the row's sum. `regions` is null where the window is of
// one region. The scale comes here, not into k, because here it costs no rounding; the rows go through each step together,
// because one row alone would wait for its own reductions.
template <class T>
inline void softmax_rows(const WindowSizes<T>& sizes, int64_t first, int64_t rows, T* scores, const T* bias, const T* regions,
                         T* inverses) {
  const T scale = sizes.log2_scale;
  T tops[kBlockRows];
  for (int64_t r = 0; r < rows; ++r) {
    T* const row = scores + r * sizes.keys;
    const T* const bias_of_row = bias + (first + r) * sizes.keys;
    Vec<T> top = splat(std::numeric_limits<T>::lowest());  // finite: a row of -inf has no weights, and 0 / 0 is NaN
    for (int64_t j = 0; j < sizes.keys; j += kLanes<T>) {
      Vec<T> x = load(row + j) * scale + load(bias_of_row + j);
      if (regions) x += load(regions + j) == regions[first + r] ? Vec<T>{} : splat(T(kMask * kLog2E));
      store(row + j, x);
      top = larger<T>(x, top);
    }
    tops[r] = largest<T>(top);
  }
  for (int64_t r = 0; r < rows; ++r) {
    T* const row = scores + r * sizes.keys;
    Vec<T> total = {};
    for (int64_t j = 0; j < sizes.keys; j += kLanes<T>) {
      const Vec<T> weight = exp2_nonpositive(load(row + j) - tops[r]);
      store(row + j, weight);
      total += weight;
    }
    inverses[r] = 1 / sum<T>(total);
  }
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
