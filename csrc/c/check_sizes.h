// What ops have to check on a CPU and on a CUDA device alike: sizes, choices and numbers, of the structs of either. Pointers,
// and what only the kernels of one of them ask for, are in checks.cpp and cuda_checks.cpp.
#pragma once

#include "c/check_values.h"

namespace hifuse::c {

// The depth of a linear: all channels of a row. `last`: of the kinds of rows.
template <class Params>
int64_t check_linear_sizes(const Params& p, Kernels kernels, Rows last) {
  check_dtype("dtype", p.dtype, kernels);
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"columns", p.columns}});
  check_range("rows", p.rows, HIFUSE_PIXELS, static_cast<int64_t>(last));
  check_range("norm", p.norm, HIFUSE_NO_NORM, HIFUSE_PIXEL_NORM);
  check_range("activation", p.activation, HIFUSE_NO_ACTIVATION, HIFUSE_RELU);
  int64_t depth = 0;
  for (int i = 0; i < 3; ++i) {
    check_range("channels", p.channels[i], i ? 0 : 1, kMostOfAnAxis);
    require(i == 0 || !p.channels[i] || p.channels[i - 1], "channels must be of maps from the first one on");
    depth += p.channels[i];
  }
  const bool pixels = p.rows == Rows::pixels, patches = p.rows == Rows::patches;
  depth *= patches ? 4 : 1;
  require(pixels || !p.channels[1], "maps must be one, unless rows are HIFUSE_PIXELS");
  require(!p.pool || pixels, "pool is for rows of HIFUSE_PIXELS");
  require(p.norm != Norm::pixel || patches, "norm HIFUSE_PIXEL_NORM is for rows of HIFUSE_PATCHES");
  if (p.norm != Norm::none) check_eps(p.eps);
  product_of("the maps", {p.batch, p.height, p.width, depth + p.columns, 16});
  return depth;
}

template <class Params>
void check_stem_sizes(const Params& p, Kernels kernels) {
  check_dtype("dtype", p.dtype, kernels);
  check_dtype("image_dtype", p.image_dtype, kernels);
  require(p.image_dtype == DType::float32 || p.image_dtype == p.dtype, "image_dtype must be HIFUSE_FLOAT32 or dtype");
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"in_chans", p.in_chans}, {"channels", p.channels}});
  check_range("image_height", p.image_height, 1, 4 * p.height);
  check_range("image_width", p.image_width, 1, 4 * p.width);
  product_of("weight", {p.channels, p.in_chans, 64});
  product_of("the maps", {p.batch, p.height, p.width, 16 * p.in_chans + 2 * p.channels, 16});
  for (const float eps : p.eps) check_eps(eps);
}

template <class Params>
void check_gated_concat_sizes(const Params& p, Kernels kernels) {
  check_dtype("dtype", p.dtype, kernels);
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"channels", p.channels}, {"squeezed", p.squeezed}});
  product_of("the maps", {p.batch, p.height, p.width, p.channels, 64});
  product_of("squeeze", {p.squeezed, p.channels, 16});
  check_eps(p.eps);
}

template <class Params>
void check_mixer_sizes(const Params& p, Kernels kernels) {
  check_dtype("dtype", p.dtype, kernels);
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"channels", p.channels}});
  product_of("the maps", {p.batch, p.height, p.width, p.channels, 256});
}

template <class Params>
void check_mlp_sizes(const Params& p, Kernels kernels) {
  check_dtype("dtype", p.dtype, kernels);
  check_sizes(p.batch, {{"rows", p.rows}, {"depth", p.depth}, {"hidden", p.hidden}, {"columns", p.columns}});
  product_of("weight", {p.hidden, p.depth + p.columns, 16});
  product_of("the maps", {p.batch, p.rows, p.depth + p.hidden + p.columns, 16});
}

inline void check_mean_sizes(const Mean& p, Kernels kernels) {
  check_dtype("dtype", p.dtype, kernels);
  check_sizes(p.batch, {{"pixels", p.pixels}, {"channels", p.channels}});
  product_of("x", {p.batch, p.pixels, p.channels, 16});
}

inline void check_shape(const WindowAttentionShape& s, Kernels kernels, int64_t widest_head) {
  check_dtype("dtype", s.dtype, kernels);
  check_sizes(s.batch, {{"height", s.height}, {"width", s.width}, {"num_heads", s.num_heads}, {"head_dim", s.head_dim}});
  check_range("window_size", s.window_size, 1, 16);
  check_range("shift_size", s.shift_size, 0, s.window_size - 1);
  check_range("head_dim", s.head_dim, 8, widest_head);
  require(std::isfinite(s.scale), "scale must be finite, got ", s.scale);
  // Windows at the edge are padded to whole ones.
  product_of("the maps", {s.batch, s.height + 16, s.width + 16, s.num_heads, s.head_dim, 64});
}

}  // namespace hifuse::c
