#include "c/check_values.h"
#include "c/cuda_ops.h"

namespace hifuse::c {
namespace {

constexpr int64_t kWidestWhole = 192, kWidestFusePath = 96, kRoomOfHead = 32, kWidestWindow = 7;

void check_dtype(const char* name, DType dtype) {
  require(dtype == DType::float32 || dtype == DType::bfloat16 || dtype == DType::float16, name,
          " must be HIFUSE_FLOAT32, HIFUSE_BFLOAT16 or HIFUSE_FLOAT16, got ", static_cast<int>(dtype));
}

// That kernels copy 16 bytes at a time. Calls of a file are checked before they have memory.
void check_map(const char* name, const void* map) {
  check_given(name, map);
  require(reinterpret_cast<uintptr_t>(map) % 16 == 0, name, " must begin at a multiple of 16 bytes");
}
void check_map_or_none(const char* name, const void* map) {
  if (map) check_map(name, map);
}

void check_whole(DType dtype) {
  require(dtype == DType::bfloat16 || dtype == DType::float16,
          "dtype must be HIFUSE_BFLOAT16 or HIFUSE_FLOAT16 for a block in one kernel, got ", static_cast<int>(dtype));
}

void check_shape(const WindowAttentionShape& s, int64_t least, int64_t most) {
  check_dtype("dtype", s.dtype);
  check_sizes(s.batch, {{"height", s.height}, {"width", s.width}, {"num_heads", s.num_heads}, {"head_dim", s.head_dim}});
  check_range("window_size", s.window_size, 1, 16);
  check_range("shift_size", s.shift_size, 0, s.window_size - 1);
  check_range("head_dim", s.head_dim, least, most);
  require(s.head_dim % 8 == 0, "head_dim must be a multiple of 8, got ", s.head_dim);
  require(std::isfinite(s.scale), "scale must be finite, got ", s.scale);
  // Windows at the edge are padded to whole ones.
  product_of("the maps", {s.batch, s.height + 16, s.width + 16, s.num_heads, s.head_dim, 64});
}

}  // namespace

void check_cuda(const hifuse_cuda_linear_params& p) {
  check_dtype("dtype", p.dtype);
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"columns", p.columns}});
  check_range("rows", p.rows, HIFUSE_PIXELS, HIFUSE_PATCHES);
  check_range("norm", p.norm, HIFUSE_NO_NORM, HIFUSE_PIXEL_NORM);
  check_range("activation", p.activation, HIFUSE_NO_ACTIVATION, HIFUSE_RELU);
  const bool patches = p.rows == Rows::patches;
  int64_t depth = 0;
  for (int i = 0; i < 3; ++i) {
    check_range("channels", p.channels[i], i ? 0 : 1, kMostOfAnAxis);
    require(i == 0 || !p.channels[i] || p.channels[i - 1], "channels must be of maps from the first one on");
    if (p.channels[i]) check_map("maps", p.maps[i]);
    depth += p.channels[i];
  }
  require(!patches || !p.channels[1], "maps must be one, unless rows are HIFUSE_PIXELS");
  require(!p.pool || !patches, "pool is for rows of HIFUSE_PIXELS");
  require((!p.pool && !patches) || (p.height % 2 == 0 && p.width % 2 == 0),
          "height and width must be even with pool and with rows of HIFUSE_PATCHES, got ", p.height, " x ", p.width);
  require(p.norm != Norm::pixel || patches, "norm HIFUSE_PIXEL_NORM is for rows of HIFUSE_PATCHES");
  if (p.norm != Norm::none) check_eps(p.eps);
  product_of("weight", {p.columns, depth, 16});
  product_of("the maps", {p.batch, p.height, p.width, depth + p.columns, 16});
  check_map("weight", p.weight);
  check_given("bias", p.bias);
  check_map_or_none("residual", p.residual);
  check_map("out", p.out);
}

void check_cuda(const hifuse_cuda_stem_params& p) {
  check_dtype("dtype", p.dtype);
  check_dtype("image_dtype", p.image_dtype);
  require(p.image_dtype == DType::float32 || p.image_dtype == p.dtype, "image_dtype must be HIFUSE_FLOAT32 or dtype");
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"in_chans", p.in_chans}, {"channels", p.channels}});
  check_range("image_height", p.image_height, 1, 4 * p.height);
  check_range("image_width", p.image_width, 1, 4 * p.width);
  product_of("weight", {p.channels, p.in_chans, 64});
  product_of("the maps", {p.batch, p.height, p.width, 16 * p.in_chans + 2 * p.channels, 16});
  for (const float eps : p.eps) check_eps(eps);
  check_given("images", p.images);
  check_map("weight", p.weight);
  check_given("bias", p.bias);
  check_given("scale", p.scale);
  check_given("shift", p.shift);
  for (const void* out : p.out) check_map("out", out);
  check_apart(p.out[1], p.out[0], "out[0]");
}

void check_cuda(const hifuse_cuda_local_block_params& p) {
  check_dtype("dtype", p.dtype);
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"channels", p.channels}});
  product_of("the maps", {p.batch, p.height + 16, p.width + 16, p.channels, 64});
  check_eps(p.eps);
  if (p.whole) {
    check_whole(p.dtype);
    require(p.channels % 8 == 0 && p.channels <= kWidestWhole, "channels must be a multiple of 8 up to ", kWidestWhole,
            " with whole, got ", p.channels);
  } else {
    check_given("ones", p.ones);
    check_given("zeros", p.zeros);
  }
  check_map("x", p.x);
  check_map("filters", p.filters);
  check_given("filter_bias", p.filter_bias);
  check_map("weight", p.weight);
  check_given("bias", p.bias);
  check_map("out", p.out);
  check_apart(p.out, p.x, "x");
}

void check_cuda(const hifuse_cuda_global_block_params& p) {
  check_shape(p.shape, 8, kRoomOfHead);
  check_whole(p.shape.dtype);
  check_range("num_heads", p.shape.num_heads, 1, kWidestWhole / kRoomOfHead);
  check_range("window_size", p.shape.window_size, 1, kWidestWindow);
  check_eps(p.eps);
  check_map("x", p.x);
  check_map("qkv", p.qkv);
  check_map("qkv_bias", p.qkv_bias);
  check_map("padding", p.padding);
  check_map("table", p.table);
  check_map("weight", p.weight);
  check_given("bias", p.bias);
  check_map("out", p.out);
  check_apart(p.out, p.x, "x");
}

void check_cuda(const hifuse_cuda_fuse_path_params& p) {
  check_dtype("dtype", p.dtype);
  check_whole(p.dtype);
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"channels", p.channels}});
  require(p.channels % 8 == 0 && p.channels <= kWidestFusePath, "channels must be a multiple of 8 up to ", kWidestFusePath,
          ", got ", p.channels);
  product_of("the maps", {p.batch, p.height, p.width, p.channels, 64});
  check_eps(p.eps);
  check_map("local_map", p.local_map);
  check_map("global_map", p.global_map);
  check_map("weights", p.weights);
  check_map("biases", p.biases);
  check_map("out", p.out);
}

void check_cuda(const hifuse_cuda_window_attention_params& p) {
  check_shape(p.shape, 8, 128);
  check_map("qkv", p.qkv);
  check_given("bias_table", p.bias_table);
  check_map_or_none("qkv_bias", p.qkv_bias);
  check_map("out", p.out);
}

void check_cuda(const hifuse_cuda_gated_concat_params& p) {
  check_dtype("dtype", p.dtype);
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"channels", p.channels}, {"squeezed", p.squeezed}});
  product_of("the maps", {p.batch, p.height, p.width, p.channels, 64});
  product_of("squeeze", {p.squeezed, p.channels, 16});
  check_eps(p.eps);
  check_map("local_map", p.local_map);
  check_map("global_map", p.global_map);
  check_map("x", p.x);
  check_given("filters", p.filters);
  check_given("filter_bias", p.filter_bias);
  check_given("squeeze", p.squeeze);
  check_given("expand", p.expand);
  check_given("scale", p.scale);
  check_given("shift", p.shift);
  check_map("out", p.out);
}

void check_cuda(const hifuse_cuda_mixer_params& p) {
  check_dtype("dtype", p.dtype);
  check_sizes(p.batch, {{"height", p.height}, {"width", p.width}, {"channels", p.channels}});
  product_of("weight", {p.channels, p.channels, 64});
  product_of("the maps", {p.batch, p.height, p.width, p.channels, 256});
  check_map("z", p.z);
  check_map("weight", p.weight);
  check_map("out", p.out);
  check_apart(p.out, p.z, "z");
}

void check_cuda(const hifuse_cuda_mlp_params& p) {
  check_dtype("dtype", p.dtype);
  check_sizes(p.batch, {{"rows", p.rows}, {"depth", p.depth}, {"hidden", p.hidden}, {"columns", p.columns}});
  product_of("weight", {p.hidden, p.depth + p.columns, 16});
  product_of("the maps", {p.batch, p.rows, p.depth + p.hidden + p.columns, 16});
  check_map("u", p.u);
  check_map("expand", p.expand);
  check_given("expand_bias", p.expand_bias);
  check_map("project", p.project);
  check_given("project_bias", p.project_bias);
  check_map_or_none("residual", p.residual);
  check_map("out", p.out);
}

void check_cuda(const hifuse_mean_params& p) {
  check_dtype("dtype", p.dtype);
  check_sizes(p.batch, {{"pixels", p.pixels}, {"channels", p.channels}});
  product_of("x", {p.batch, p.pixels, p.channels, 16});
  check_map("x", p.x);
  check_map("out", p.out);
}

}  // namespace hifuse::c
