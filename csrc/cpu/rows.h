// Rows of a map on their way into a product: widened, normalised, narrowed, laid in chunks. And how work on rows is split.
#pragma once

#include <cmath>

#include "cpu/kernels.h"
#include "cpu/panel.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

// A row between reading and writing is float32, filled up with zeros to whole chunks.
inline int64_t padded_depth(int64_t depth) { return round_up(depth, kChunk); }

template <class S>
inline void read_row(const S* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) store(to + i, load_wide(from + i));
  for (; i < count; ++i) to[i] = widen(from[i]);
}

// Mean and 1 / sqrt(variance + eps) of a row: norm(x) = (x - mean) factor. The second pass finds by how much the rounded mean
// misses: of a row of equal values nothing may be left, because the factor is large.
struct Moments {
  float mean;
  float factor;
};

inline Moments moments(const float* row, int64_t count, float eps) {
  constexpr int64_t kStep = 4 * kLanes<float>;
  const auto at = [&](int64_t i) { return load(row + i * kLanes<float>); };
  const int64_t vectors = count / kLanes<float>, whole = vectors * kLanes<float>, fours = count / kStep * 4;
  Vec<float> sums[4] = {};
  for (int64_t i = 0; i < fours; i += 4)
    for (int j = 0; j < 4; ++j) sums[j] += at(i + j);
  for (int64_t i = fours; i < vectors; ++i) sums[0] += at(i);
  float total = sum<float>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (int64_t i = whole; i < count; ++i) total += row[i];
  const float mean = total / static_cast<float>(count);

  Vec<float> squares[4] = {}, left[4] = {};
  const auto add = [&](int64_t i, int j) {
    const Vec<float> x = at(i) - mean;
    squares[j] += x * x;
    left[j] += x;
  };
  for (int64_t i = 0; i < fours; i += 4)
    for (int j = 0; j < 4; ++j) add(i + j, j);
  for (int64_t i = fours; i < vectors; ++i) add(i, 0);
  float square = sum<float>((squares[0] + squares[1]) + (squares[2] + squares[3]));
  float missed = sum<float>((left[0] + left[1]) + (left[2] + left[3]));
  for (int64_t i = whole; i < count; ++i) {
    const float x = row[i] - mean;
    square += x * x;
    missed += x;
  }
  return {mean + missed / static_cast<float>(count), 1 / std::sqrt(square / static_cast<float>(count) + eps)};
}

// row = norm(row), of `count` elements; what lies behind them is left alone.
inline void normalise(float* row, int64_t count, float eps) {
  const Moments m = moments(row, count, eps);
  int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) store(row + i, (load(row + i) - m.mean) * m.factor);
  for (; i < count; ++i) row[i] = (row[i] - m.mean) * m.factor;
}

// One row of the operand; `row` is padded to whole chunks.
template <class S>
inline void write_row(const float* row, int64_t depth, Operand<S> to) {
  for (int64_t k = 0; k < depth; k += kChunk, to.at += to.chunk)
    for (int64_t i = 0; i < kChunk; i += kLanes<float>) store_narrow(to.at + i, load(row + k + i));
}

// One row of the operand as it lies in the map; `depth` is a multiple of a chunk.
template <class S>
inline void copy_row(const S* from, int64_t depth, Operand<S> to) {
  for (int64_t k = 0; k < depth; k += kChunk, to.at += to.chunk) __builtin_memcpy(to.at, from + k, kChunk * sizeof(S));
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

// The rows of a batch in slots, `together` of which are multiplied with one another. Rows of two images never are, or an image
// with a NaN would spoil another: where an image's rows are no multiple of `together`, slots behind its last one are spare.
class Slots {
 public:
  Slots(int64_t images, int64_t rows, int64_t together)
      : rows_(rows), slots_(round_up(rows, together)), count_(images * slots_) {}

  int64_t count() const { return count_; }

  static constexpr int64_t kSpare = -1;
  int64_t row(int64_t slot) const {
    if (slots_ == rows_) return slot;
    return slot % slots_ < rows_ ? slot / slots_ * rows_ + slot % slots_ : kSpare;
  }

 private:
  int64_t rows_;   // of an image
  int64_t slots_;  // for them
  int64_t count_;
};

// Work on `rows` rows times `panels` panels, in tasks: blocks of rows, and where there are too few, ranges of panels as well,
// which each make the operand again. Tasks come in multiples of the threads, so that none is left over.
struct Split {
  int64_t blocks;
  int64_t ranges;

  // Blocks of `least` to `most` rows, but for the last ones.
  Split(int64_t rows, int64_t panels, int64_t least, int64_t most, int64_t threads) {
    constexpr int64_t kTasksPerThread = 4;
    const int64_t wanted = kTasksPerThread * threads, fitting = rows / least;
    blocks = fitting < wanted ? fitting : wanted;
    if (blocks < divide_up(rows, most)) blocks = divide_up(divide_up(rows, most), threads) * threads;
    if (blocks < 1) blocks = 1;
    ranges = divide_up(wanted, blocks);
    if (ranges > panels) ranges = panels;
  }
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
