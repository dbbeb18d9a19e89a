#include "c/check_sizes.h"
#include "c/cuda_ops.h"

namespace hifuse::c {
namespace {

constexpr int64_t kWidestWhole = 192, kWidestFusePath = 96, kRoomOfHead = 32, kWidestWindow = 7;

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

void check_cuda_shape(const WindowAttentionShape& s, int64_t widest_head) {
  check_shape(s, Kernels::cuda, widest_head);
  require(s.head_dim % 8 == 0, "head_dim must be a multiple of 8, got ", s.head_dim);
}

}  // namespace

void check_cuda(const hifuse_cuda_linear_params& p) {
  const int64_t depth = check_linear_sizes(p, Kernels::cuda, Rows::patches);
  for (int i = 0; i < 3; ++i)
    if (p.channels[i]) check_map("maps", p.maps[i]);
  require((!p.pool && p.rows != Rows::patches) || (p.height % 2 == 0 && p.width % 2 == 0),
          "height and width must be even with pool and with rows of HIFUSE_PATCHES, got ", p.height, " x ", p.width);
  product_of("weight", {p.columns, depth, 16});
  check_map("weight", p.weight);
  check_given("bias", p.bias);
  check_map_or_none("residual", p.residual);
  check_map("out", p.out);
}

void check_cuda(const hifuse_cuda_stem_params& p) {
  check_stem_sizes(p, Kernels::cuda);
  check_given("images", p.images);
  check_map("weight", p.weight);
  check_given("bias", p.bias);
  check_given("scale", p.scale);
  check_given("shift", p.shift);
  for (const void* out : p.out) check_map("out", out);
  check_apart(p.out[1], p.out[0], "out[0]");
}

void check_cuda(const hifuse_cuda_local_block_params& p) {
  check_dtype("dtype", p.dtype, Kernels::cuda);
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
  check_cuda_shape(p.shape, kRoomOfHead);
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
  check_dtype("dtype", p.dtype, Kernels::cuda);
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
  check_cuda_shape(p.shape, 128);
  check_map("qkv", p.qkv);
  check_given("bias_table", p.bias_table);
  check_map_or_none("qkv_bias", p.qkv_bias);
  check_map("out", p.out);
}

void check_cuda(const hifuse_cuda_gated_concat_params& p) {
  check_gated_concat_sizes(p, Kernels::cuda);
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
  check_mixer_sizes(p, Kernels::cuda);
  product_of("weight", {p.channels, p.channels, 64});
  require(!p.sm90 || !p.depthwise, "sm90 is for a dense mixer");
  check_map("z", p.z);
  check_map("weight", p.weight);
  check_map("out", p.out);
  check_apart(p.out, p.z, "z");
}

void check_cuda(const hifuse_cuda_mlp_params& p) {
  check_mlp_sizes(p, Kernels::cuda);
  check_map("u", p.u);
  check_map("expand", p.expand);
  check_given("expand_bias", p.expand_bias);
  check_map("project", p.project);
  check_given("project_bias", p.project_bias);
  check_map_or_none("residual", p.residual);
  check_map("out", p.out);
}

void check_cuda(const hifuse_mean_params& p) {
  check_mean_sizes(p, Kernels::cuda);
  check_map("x", p.x);
  check_map("out", p.out);
}

}  // namespace hifuse::c
