// Rows of a map on their way into a product: widened, normalised, narrowed, laid in chunks.
#pragma once

#include <cmath>

#include "cpu/panel.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

// A row between reading and writing is float32, filled up with zeros to whole chunks.
inline int64_t padded_depth(int64_t depth) { return divide_up(depth, kChunk) * kChunk; }

template <class S>
inline void read_row(const S* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) store(to + i, load_wide(from + i));
  for (; i < count; ++i) to[i] = widen(from[i]);
}

// row = (row - mean) / sqrt(variance + eps), of `count` elements; what lies behind them is left alone.
inline void normalise(float* row, int64_t count, float eps) {
  const int64_t whole = count / kLanes<float> * kLanes<float>;
  Vec<float> sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes<float> <= whole; i += 2 * kLanes<float>) {
    sums[0] += load(row + i);
    sums[1] += load(row + i + kLanes<float>);
  }
  for (; i < whole; i += kLanes<float>) sums[0] += load(row + i);
  float total = sum<float>(sums[0] + sums[1]);
  for (i = whole; i < count; ++i) total += row[i];
  const float mean = total / static_cast<float>(count);

  Vec<float> squares[2] = {};
  for (i = 0; i + 2 * kLanes<float> <= whole; i += 2 * kLanes<float>) {
    const Vec<float> a = load(row + i) - mean, b = load(row + i + kLanes<float>) - mean;
    squares[0] += a * a;
    squares[1] += b * b;
  }
  for (; i < whole; i += kLanes<float>) {
    const Vec<float> a = load(row + i) - mean;
    squares[0] += a * a;
  }
  float square = sum<float>(squares[0] + squares[1]);
  for (i = whole; i < count; ++i) square += (row[i] - mean) * (row[i] - mean);
  const float factor = 1 / std::sqrt(square / static_cast<float>(count) + eps);
  for (i = 0; i < whole; i += kLanes<float>) store(row + i, (load(row + i) - mean) * factor);
  for (; i < count; ++i) row[i] = (row[i] - mean) * factor;
}

// One row of the operand; `row` is padded to whole chunks.
template <class S>
inline void write_row(const float* row, int64_t depth, Operand<S> to) {
  for (int64_t k = 0; k < depth; k += kChunk, to.at += to.chunk)
    for (int64_t i = 0; i < kChunk; i += kLanes<float>) store_narrow(to.at + i, load(row + k + i));
}

// The first `count` of 32 columns to a map.
template <class S>
inline void write_columns(const float* from, S* to, int64_t count) {
  if (count >= kPanel)
    for (int64_t i = 0; i < kPanel; i += kLanes<float>) store_narrow(to + i, load(from + i));
  else
    for (int64_t i = 0; i < count; ++i) narrow(from[i], to[i]);
}

// The first `count` of 32 columns of a map, added.
template <class S>
inline void add_columns(const S* from, float* to, int64_t count) {
  if (count >= kPanel)
    for (int64_t i = 0; i < kPanel; i += kLanes<float>) store(to + i, load(to + i) + load_wide(from + i));
  else
    for (int64_t i = 0; i < count; ++i) to[i] += widen(from[i]);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
