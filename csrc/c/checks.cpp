#include "c/checks.h"

#include "c/check_sizes.h"
#include "cpu/packed_sizes.h"

namespace hifuse::c {
namespace {

// C has these as plain numbers.
template <class Enumeration>
constexpr bool same(Enumeration ours, int theirs) {
  return static_cast<int>(ours) == theirs;
}
static_assert(same(DType::float32, HIFUSE_FLOAT32) && same(DType::bfloat16, HIFUSE_BFLOAT16) &&
              same(DType::float16, HIFUSE_FLOAT16));
static_assert(same(Rows::pixels, HIFUSE_PIXELS) && same(Rows::patches, HIFUSE_PATCHES));
static_assert(same(Rows::depthwise, HIFUSE_DEPTHWISE));
static_assert(same(Norm::none, HIFUSE_NO_NORM) && same(Norm::row, HIFUSE_ROW_NORM) && same(Norm::pixel, HIFUSE_PIXEL_NORM));
static_assert(same(Activation::none, HIFUSE_NO_ACTIVATION) && same(Activation::gelu, HIFUSE_GELU));
static_assert(same(Activation::relu, HIFUSE_RELU));
static_assert(same(Algorithm::direct, HIFUSE_DIRECT) && same(Algorithm::strassen, HIFUSE_STRASSEN));
static_assert(same(Algorithm::winograd2, HIFUSE_WINOGRAD2) && same(Algorithm::winograd4, HIFUSE_WINOGRAD4));
static_assert(same(Algorithm::winograd4_at_call, HIFUSE_WINOGRAD4_AT_CALL) && same(Algorithm::int8, HIFUSE_INT8));
static_assert(same(Algorithm::int8_winograd2, HIFUSE_INT8_WINOGRAD2));
static_assert(same(Algorithm::depthwise, HIFUSE_DEPTHWISE_CONVOLUTION) && kHidden == HIFUSE_MLP_BLOCK);

void check_products(DType dtype, Algorithm algorithm) {
  check_dtype("dtype", dtype, Kernels::cpu);
  require(algorithm == Algorithm::direct || algorithm == Algorithm::strassen || algorithm == Algorithm::int8,
          "algorithm must be HIFUSE_DIRECT, HIFUSE_STRASSEN or HIFUSE_INT8, got ", static_cast<int>(algorithm));
}

}  // namespace

int64_t product_of(const char* what, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes)
    require(!__builtin_mul_overflow(product, size, &product) && product <= INT64_MAX / 64, what, " is too large");
  return product;
}

void check_matrix(DType dtype, Algorithm algorithm, int64_t columns, int64_t depth) {
  check_products(dtype, algorithm);
  check_sizes(0, {{"columns", columns}, {"depth", depth}});
  product_of("weight", {columns + 64, depth + 64, 2});
  require(algorithm != Algorithm::strassen || (dtype == DType::float32 && depth % 32 == 0),
          "algorithm HIFUSE_STRASSEN is of float32 and of a depth that is a multiple of 32, got a depth of ", depth);
  require(algorithm != Algorithm::int8 || depth <= INT32_MAX / (127 * 127), "depth must be at most ", INT32_MAX / (127 * 127),
          " with HIFUSE_INT8, whose sums have 32 bits, got ", depth);
}

namespace {

void check_int8_filters(DType dtype, Algorithm algorithm, int64_t channels) {
  if (algorithm == Algorithm::int8) return check_matrix(dtype, algorithm, channels, int8_filters_depth(channels));
  require(int8_winograd_serves(channels),
          "channels must be at most 3698 with HIFUSE_INT8_WINOGRAD2, whose sums have 32 bits, got ", channels);
}

}  // namespace

void check_filters(DType dtype, Algorithm algorithm, int64_t channels) {
  check_dtype("dtype", dtype, Kernels::cpu);
  check_sizes(0, {{"channels", channels}});
  product_of("weight", {channels + 32, channels + 32, 64});
  const auto number = static_cast<int>(algorithm);
  require(algorithm == Algorithm::direct || (number >= HIFUSE_WINOGRAD2 && number <= HIFUSE_INT8_WINOGRAD2),
          "algorithm must be HIFUSE_DIRECT, HIFUSE_DEPTHWISE_CONVOLUTION, or one of HIFUSE_WINOGRAD or HIFUSE_INT8, got ",
          number);
  if (in_int8(algorithm)) check_int8_filters(dtype, algorithm, channels);
  require(algorithm != Algorithm::winograd4_at_call || dtype == DType::float32,
          "algorithm HIFUSE_WINOGRAD4_AT_CALL is of float32 alone");
}

void check(const Linear& p) {
  const int64_t depth = check_linear_sizes(p, Kernels::cpu, Rows::depthwise);
  for (int i = 0; i < 3; ++i) require(!p.channels[i] || p.maps[i], "maps[", i, "] must not be NULL, as it has channels");
  require(!p.pool || (p.height % 2 == 0 && p.width % 2 == 0), "height and width must be even with pool, got ", p.height, " x ",
          p.width);
  if (p.rows == Rows::depthwise) {
    check_given("filters", p.filters);
    check_given("filter_bias", p.filter_bias);
    check_apart(p.out, p.maps[0], "maps[0]");
    require(p.algorithm != Algorithm::strassen, "algorithm must be HIFUSE_DIRECT or HIFUSE_INT8 with rows of HIFUSE_DEPTHWISE");
  }
  check_matrix(p.dtype, p.algorithm, p.columns, depth);
  require(p.algorithm != Algorithm::strassen || p.columns % 64 == 0,
          "columns must be a multiple of 64 with HIFUSE_STRASSEN, got ", p.columns);
  if (p.algorithm == Algorithm::int8) {
    check_given("scale", p.scale);
    check_inverse("inverse", p.inverse);
  }
  check_given("weight", p.weight);
  check_given("bias", p.bias);
  check_given("out", p.out);
}

void check(const Stem& p) {
  check_stem_sizes(p, Kernels::cpu);
  check_matrix(p.dtype, Algorithm::direct, 2 * p.channels, 16 * p.in_chans);
  check_given("images", p.images);
  check_given("weight", p.weight);
  check_given("bias", p.bias);
  check_given("scale", p.scale);
  check_given("shift", p.shift);
  for (const void* out : p.out) check_given("out", out);
  check_apart(p.out[1], p.out[0], "out[0]");
}

void check(const GatedConcat& p) {
  check_gated_concat_sizes(p, Kernels::cpu);
  check_given("local_map", p.local_map);
  check_given("global_map", p.global_map);
  check_given("x", p.x);
  check_given("filters", p.filters);
  check_given("squeeze", p.squeeze);
  check_given("expand", p.expand);
  check_given("scale", p.scale);
  check_given("shift", p.shift);
  check_given("out", p.out);
}

void check(const Mixer& p) {
  check_mixer_sizes(p, Kernels::cpu);
  check_filters(p.dtype, p.algorithm, p.channels);
  if (in_int8(p.algorithm)) {
    check_given("scale", p.scale);
    check_inverse("inverse", p.inverse);
  }
  require(!p.convolution || p.algorithm == Algorithm::winograd4, "convolution alone is of HIFUSE_WINOGRAD4");
  check_given("z", p.z);
  check_given("weight", p.weight);
  check_given("out", p.out);
  check_apart(p.out, p.z, "z");
}

void check(const Mlp& p) {
  check_mlp_sizes(p, Kernels::cpu);
  check_matrix(p.dtype, p.algorithm, p.hidden, p.depth);
  check_matrix(p.dtype, p.algorithm == Algorithm::int8 ? p.algorithm : Algorithm::direct, p.columns, p.hidden);
  if (p.algorithm == Algorithm::int8) {
    check_given("expand_scale", p.expand_scale);
    check_given("project_scale", p.project_scale);
    check_inverse("inverse", p.inverse);
    check_inverse("hidden_inverse", p.hidden_inverse);
  }
  check_given("u", p.u);
  check_given("expand", p.expand);
  check_given("expand_bias", p.expand_bias);
  check_given("project", p.project);
  check_given("project_bias", p.project_bias);
  check_given("out", p.out);
}

void check(const Mean& p) {
  check_mean_sizes(p, Kernels::cpu);
  check_given("x", p.x);
  check_given("out", p.out);
}

void check(const WindowAttentionForward& p) {
  check_shape(p.shape, Kernels::cpu, 128);
  check_given("qkv", p.qkv.data);
  check_given("bias_table", p.bias_table);
  check_given("out", p.out.data);
}

}  // namespace hifuse::c
