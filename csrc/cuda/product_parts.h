// Into which parts the sum of a product is cut, who adds them, and which products are one launch. This is the one place that
// decides it: Python and C give the sizes alone. Knows no CUDA.
#pragma once
#include <algorithm>

#include "cuda/product_arguments.h"

namespace hifuse::cuda {

// Of a tile of results, see product.cuh: its columns, and bytes of a row or a column that a step takes.
inline constexpr int64_t kTileColumns = 96, kStepBytes = 64;

// A sum is cut into parts where one image has fewer tiles than a large GPU has multiprocessors; each of so many steps or more.
inline constexpr int64_t kBlocksWanted = 132, kShortestPart = 8, kMostParts = 16;

// Products are one launch while it has at most so many blocks for each multiprocessor: all are on the device at the same time.
inline constexpr int64_t kBlocksAtOnce = 2;

struct ProductParts {
  int64_t steps_of_part, count;
  int64_t tiles, tile_rows;  // of the whole result

  // Whether each part has a block, of which the last one to end adds all; else one block computes them. The bits are the same.
  bool apart_on(int multiprocessors) const { return count > 1 && tiles < multiprocessors; }
  int64_t blocks_on(int multiprocessors) const { return apart_on(multiprocessors) ? tiles * count : tiles; }
  // Bytes of the sums of parts that are apart.
  int64_t scratch_on(int multiprocessors) const {
    return apart_on(multiprocessors) ? tiles * count * tile_rows * kTileColumns * int64_t{sizeof(float)} : 0;
  }
};

constexpr int64_t blocks(int64_t length, int64_t block) { return (length + block - 1) / block; }

// The length of a part depends on the weight and the rows of an image alone: a batch does not change the order of a sum.
inline ProductParts parts_of(const Product& a) {
  const int64_t bytes = a.dtype == DType::float32 ? 4 : 2, tile_rows = a.dtype == DType::float32 ? 64 : 128;
  const int64_t pixels = a.source == Source::pixels ? 1 : a.source == Source::patches ? 4 : 9;
  int64_t steps = 0;
  for (const int64_t channels : a.channels) steps += pixels * blocks(channels, kStepBytes / bytes);
  const int64_t scale = a.source == Source::patches || a.pool ? 2 : 1;
  const int64_t rows = blocks(a.height, scale) * blocks(a.width, scale) * (a.pool ? 4 : 1);
  const int64_t columns = blocks(a.columns, kTileColumns);
  const int64_t of_image = std::max<int64_t>(columns * blocks(a.image_rows ? a.image_rows : rows, tile_rows), 1);
  const int64_t wanted = std::max<int64_t>(std::min({kBlocksWanted / of_image, kMostParts, steps / kShortestPart}), 1);
  const int64_t of_part = std::max<int64_t>(blocks(steps, wanted), 1);
  return {of_part, blocks(steps, of_part), columns * blocks(a.batch * rows, tile_rows), tile_rows};
}

}  // namespace hifuse::cuda
