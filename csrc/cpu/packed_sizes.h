// How much memory packed weights take: their layouts are those of panel.h, strassen.h, winograd_filters.h and int8.h. For the
// bindings and C, which are compiled once: kernels know these sizes otherwise.
#pragma once

#include "cpu/kernels.h"

namespace hifuse {

inline int64_t padded(int64_t count) { return (count + 31) / 32 * 32; }

// Outputs of a Winograd tile along an axis.
inline int64_t tile_of(Algorithm algorithm) { return algorithm == Algorithm::winograd2 ? 2 : 4; }

// Elements of a packed matrix [columns, depth]; the algorithm is direct or strassen.
inline int64_t packed_matrix_size(int64_t columns, int64_t depth, Algorithm algorithm) {
  if (algorithm == Algorithm::strassen) return (columns + 63) / 64 * 7 * 32 * padded(depth / 2);
  return padded(columns) * padded(depth);
}

// Bytes of a packed int8 matrix, its depth in blocks of `block`, or in one where that is 0.
inline int64_t packed_int8_size(int64_t columns, int64_t depth, int64_t block = 0) {
  constexpr int64_t kSums = 32 * 4;  // bytes behind each panel, see cpu/int8.h
  const int64_t blocks = block ? (depth + block - 1) / block : 1;
  return padded(columns) * padded(depth) + padded(columns) / 32 * blocks * kSums;
}

// The depth of the filters of a dense 3x3 convolution in int8, as a matrix.
inline int64_t int8_filters_depth(int64_t channels) { return (channels + 63) / 64 * 64 * kTaps; }

// Bytes of the packed filters of a dense 3x3 convolution in int8: as that matrix, or of int16 by Winograd's algorithm.
inline int64_t packed_int8_filters_size(int64_t channels, Algorithm algorithm) {
  if (algorithm == Algorithm::int8_winograd2) return 16 * padded(channels) * padded(channels) * 2;
  return packed_int8_size(channels, int8_filters_depth(channels));
}

// Whether Winograd's algorithm serves so many channels, see cpu/mixer_int8_winograd.cpp.
inline bool int8_winograd_serves(int64_t channels) { return channels <= INT32_MAX / (4 * kTaps * 127 * 127); }

// Elements of the packed filters of a dense 3x3 convolution of so many channels.
inline int64_t packed_filters_size(int64_t channels, DType dtype, Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::winograd4_at_call: return padded(channels) * padded(kTaps * channels);
    case Algorithm::direct: return kTaps * padded(channels) * padded(channels);
    default: break;
  }
  const int64_t products = winograd_products(tile_of(algorithm), dtype);
  return products * products * padded(channels) * padded(channels);
}

}  // namespace hifuse
