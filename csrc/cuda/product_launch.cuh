// The launch of a product for one dtype. A file for each dtype includes it, so that they are compiled side by side.
#pragma once
#include <algorithm>
#include <cstdint>

#include "product.cuh"
#include "product_parts.h"

namespace hifuse::cuda {

template <class T>
ProductParams product_params(const Product& a) {
  constexpr int64_t kSize = sizeof(T), kDepth = ProductShape<T>::kDepth;
  ProductParams p{};
  const auto segment = [&](const Map<const void*>& map, int64_t channels, int dy, int dx) {
    p.segments[p.count++] = {static_cast<const unsigned char*>(map.data),
                             map.batch_stride * kSize,
                             map.row_stride * kSize,
                             map.column_stride * kSize,
                             dy,
                             dx,
                             static_cast<int>(channels),
                             p.depth};
    p.depth += static_cast<int>(channels);
    p.steps += static_cast<int>((channels + kDepth - 1) / kDepth);
  };
  if (a.source == Source::pixels)
    for (int i = 0; i < 3 && a.channels[i] > 0; ++i) segment(a.maps[i], a.channels[i], 0, 0);
  else if (a.source == Source::patches)
    for (int i = 0; i < 4; ++i) segment(a.maps[0], a.channels[0], i % 2, i / 2);
  else
    for (int i = 0; i < 9; ++i) segment(a.maps[0], a.channels[0], i / 3 - 1, i % 3 - 1);

  const auto whole = [](int64_t elements) { return elements * kSize % 16 == 0; };
  const auto begins = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  p.aligned = begins(a.weight) && whole(p.depth);
  for (int i = 0; i < 3 && a.channels[i] > 0; ++i)
    p.aligned = p.aligned && begins(a.maps[i].data) && whole(a.channels[i]) && whole(a.maps[i].batch_stride) &&
                whole(a.maps[i].row_stride) && whole(a.maps[i].column_stride);
  p.out_aligned = whole(a.columns) && begins(a.out) && begins(a.residual) && begins(a.before);

  p.interleaved = a.source == Source::taps;
  p.scale = a.source == Source::patches || a.pool ? 2 : 1;
  p.pool = a.pool;
  p.grid_height = static_cast<int>((a.height + p.scale - 1) / p.scale);
  p.grid_width = static_cast<int>((a.width + p.scale - 1) / p.scale);
  p.height = static_cast<int>(a.height);
  p.width = static_cast<int>(a.width);
  p.rows = static_cast<int>(a.batch * p.grid_height * p.grid_width * (a.pool ? 4 : 1));
  p.columns = static_cast<int>(a.columns);
  p.norm = a.norm;
  p.eps = a.eps;
  p.norm_weight = a.norm_weight;
  p.norm_bias = a.norm_bias;
  p.weight = static_cast<const unsigned char*>(a.weight);
  p.bias = static_cast<const unsigned char*>(a.bias);
  p.activation = a.activation;
  p.residual = static_cast<const unsigned char*>(a.residual);
  p.before = static_cast<unsigned char*>(a.before);
  p.out = static_cast<unsigned char*>(a.out);
  p.column_tiles = (p.columns + ProductShape<T>::kColumns - 1) / ProductShape<T>::kColumns;
  static_assert(ProductShape<T>::kColumns == kTileColumns && ProductShape<T>::kRows == (kIsFloat32<T> ? 64 : 128));
  static_assert(kDepth * kSize == kStepBytes, "as product_parts.h has them");
  p.steps_of_part = static_cast<int>(parts_of(a).steps_of_part);
  p.parts = (p.steps + p.steps_of_part - 1) / p.steps_of_part;
  p.tiles = (p.rows + ProductShape<T>::kRows - 1) / ProductShape<T>::kRows * p.column_tiles;
  p.blocks = p.tiles;
  return p;
}

template <class T>
const char* products_of(const Product* all, int count, const PartsRoom& room, int multiprocessors, void* stream) {
  using Shape = ProductShape<T>;
  ProductsParams params{};
  unsigned blocks = 0;
  auto* sums = static_cast<float*>(room.sums);
  unsigned* counters = room.counters;
  for (int i = 0; i < count; ++i) {
    ProductParams& p = params.product[i] = product_params<T>(all[i]);
    if (room.sums != nullptr && parts_of(all[i]).apart_on(multiprocessors)) {
      p.blocks = p.tiles * p.parts;
      p.sums = sums;
      p.counters = counters;
      sums += int64_t(p.blocks) * (Shape::kSums * Shape::kThreads);
      counters += p.tiles;
    }
    blocks += p.blocks;
  }
  if (count == 1 && params.product[0].parts == 1) return launch<ProductTile<T, false>>(blocks, params.product[0], stream);
  return launch<ProductTile<T, true>>(blocks, params, stream);
}

}  // namespace hifuse::cuda
