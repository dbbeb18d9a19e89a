// The linear over maps, and the local block, which is one.
#include <tuple>
#include <vector>

#include "bindings/checks.h"
#include "bindings/packing.h"

namespace hifuse {
namespace {

Algorithm linear_algorithm(int64_t number, DType dtype, int64_t columns, int64_t depth) {
  const Algorithm algorithm = algorithm_of("linear", number, {Algorithm::direct, Algorithm::strassen});
  STD_TORCH_CHECK(algorithm == Algorithm::direct || (dtype == DType::float32 && depth % 32 == 0 && columns % 64 == 0),
                  "linear: Strassen's product is of float32, a depth that is a multiple of 32, and columns of 64");
  return algorithm;
}

std::tuple<Tensor, Tensor> pack_linear(const Tensor& weight, const Tensor& bias, ScalarType dtype, int64_t algorithm) {
  check_weight("weight", weight, {-1, -1});
  check_weight("bias", bias, {weight.size(0)});
  const Algorithm how = linear_algorithm(algorithm, dtype_of(dtype), weight.size(0), weight.size(1));
  return {pack_matrix(weight, dtype, how), pack_floats(bias)};
}

// All but weight and bias.
Linear linear_over(const std::vector<Tensor>& maps, const std::optional<Tensor>& residual, Tensor& out, int64_t rows,
                   int64_t norm, double eps, int64_t activation, bool pool) {
  STD_TORCH_CHECK(!maps.empty() && maps.size() <= 3 && out.dim() == 4, "linear takes 1 to 3 maps, and out [B, H, W, N]");
  STD_TORCH_CHECK(rows >= 0 && rows <= 1 && norm >= 0 && norm <= 2 && activation >= 0 && activation <= 2,
                  "linear: unknown option");
  const int64_t batch = out.size(0), height = out.size(1), width = out.size(2), columns = out.size(3);
  const int64_t scale = rows == 1 || pool ? 2 : 1;
  STD_TORCH_CHECK(rows == 0 || (!pool && maps.size() == 1), "linear: patches are of one map, and not pooled");
  Linear args{};
  for (size_t i = 0; i < maps.size(); ++i) {
    args.maps[i] = maps[i].const_data_ptr();
    args.channels[i] = maps[i].size(maps[i].dim() - 1);
    check_like("map", maps[i], out, {batch, height * scale, width * scale, args.channels[i]});
  }
  check_like("out", out, maps[0], {batch, height, width, columns});
  if (residual) check_like("residual", *residual, out, {batch, height, width, columns});
  args.dtype = dtype_of(out.scalar_type());
  args.batch = batch, args.height = pool ? 2 * height : height, args.width = pool ? 2 * width : width;
  args.rows = static_cast<Rows>(rows), args.norm = static_cast<Norm>(norm), args.eps = static_cast<float>(eps);
  args.columns = columns, args.activation = static_cast<Activation>(activation), args.pool = pool;
  args.residual = data_of(residual), args.out = out.mutable_data_ptr();
  return args;
}

int64_t depth_of(const Linear& args) {
  return (args.channels[0] + args.channels[1] + args.channels[2]) * (args.rows == Rows::patches ? 4 : 1);
}

void linear(const std::vector<Tensor>& maps, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual,
            Tensor out, int64_t rows, int64_t norm, double eps, int64_t activation, bool pool, int64_t algorithm) {
  Linear args = linear_over(maps, residual, out, rows, norm, eps, activation, pool);
  const int64_t depth = depth_of(args);
  args.algorithm = linear_algorithm(algorithm, args.dtype, args.columns, depth);
  args.weight = packed("weight", weight, out, packed_matrix_size(args.columns, depth, args.algorithm));
  args.bias = floats("bias", bias, args.columns);
  isa::kernels().linear(args, threads());
}

void linear_int8(const std::vector<Tensor>& maps, const Tensor& weight, const Tensor& scale, const Tensor& bias,
                 const std::optional<Tensor>& residual, Tensor out, int64_t rows, int64_t norm, double eps, int64_t activation,
                 bool pool, double inverse) {
  Linear args = linear_over(maps, residual, out, rows, norm, eps, activation, pool);
  args.algorithm = Algorithm::int8;
  args.weight = packed_int8("weight", weight, packed_int8_size(args.columns, depth_of(args)));
  args.scale = floats("scale", scale, args.columns);
  args.bias = floats("bias", bias, args.columns);
  args.inverse = inverse_scale("inverse", inverse);
  isa::kernels().linear(args, threads());
}

Tensor pack_int8_matrix(const Tensor& weight, int64_t block) {
  check_int8("weight", weight, {-1, -1});
  STD_TORCH_CHECK(block >= 0 && block % 32 == 0, "block must be a multiple of 32, or 0 for one block, got ", block);
  return pack_int8(weight, block);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_local_block(const Tensor& filters, const Tensor& filter_bias,
                                                            const Tensor& weight, const Tensor& bias, ScalarType dtype) {
  check_weight("filters", filters, {-1, 3, 3});
  const int64_t channels = filters.size(0);
  check_weight("filter_bias", filter_bias, {channels});
  check_weight("weight", weight, {channels, channels});
  check_weight("bias", bias, {channels});
  const Tensor by_tap = torch::stable::transpose(torch::stable::reshape(filters, {channels, 9}), 0, 1);
  return {pack_floats(by_tap), pack_floats(filter_bias), pack_matrix(weight, dtype, Algorithm::direct), pack_floats(bias)};
}

// All but the weight.
Linear local_block_over(const Tensor& x, const Tensor& filters, const Tensor& filter_bias, const Tensor& bias, Tensor& out,
                        double eps) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [B, H, W, C]");
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  check_like("x", x, out, {batch, height, width, channels});
  check_like("out", out, x, {batch, height, width, channels});
  STD_TORCH_CHECK(out.const_data_ptr() != x.const_data_ptr() || x.numel() == 0,
                  "out must not be x, whose neighbours are still read");
  Linear args{};
  args.dtype = dtype_of(x.scalar_type());
  args.batch = batch, args.height = height, args.width = width;
  args.rows = Rows::depthwise, args.maps[0] = x.const_data_ptr(), args.channels[0] = channels;
  args.filters = floats("filters", filters, 9 * channels);
  args.filter_bias = floats("filter_bias", filter_bias, channels);
  args.norm = Norm::row, args.eps = static_cast<float>(eps);
  args.bias = floats("bias", bias, channels);
  args.columns = channels, args.activation = Activation::gelu;
  args.residual = x.const_data_ptr(), args.out = out.mutable_data_ptr();
  return args;
}

void local_block(const Tensor& x, const Tensor& filters, const Tensor& filter_bias, const Tensor& weight, const Tensor& bias,
                 Tensor out, double eps) {
  Linear args = local_block_over(x, filters, filter_bias, bias, out, eps);
  args.algorithm = Algorithm::direct;
  args.weight = packed("weight", weight, x, packed_matrix_size(args.columns, args.columns, args.algorithm));
  isa::kernels().linear(args, threads());
}

void local_block_int8(const Tensor& x, const Tensor& filters, const Tensor& filter_bias, const Tensor& weight,
                      const Tensor& scale, const Tensor& bias, Tensor out, double eps, double inverse) {
  Linear args = local_block_over(x, filters, filter_bias, bias, out, eps);
  args.algorithm = Algorithm::int8;
  args.weight = packed_int8("weight", weight, packed_int8_size(args.columns, args.columns));
  args.scale = floats("scale", scale, args.columns);
  args.inverse = inverse_scale("inverse", inverse);
  isa::kernels().linear(args, threads());
}

}  // namespace
}  // namespace hifuse

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) {
  m.impl("pack_linear", TORCH_BOX(&hifuse::pack_linear));
  m.impl("linear_out", TORCH_BOX(&hifuse::linear));
  m.impl("pack_int8", TORCH_BOX(&hifuse::pack_int8_matrix));
  m.impl("linear_int8_out", TORCH_BOX(&hifuse::linear_int8));
  m.impl("pack_local_block", TORCH_BOX(&hifuse::pack_local_block));
  m.impl("local_block_out", TORCH_BOX(&hifuse::local_block));
  m.impl("local_block_int8_out", TORCH_BOX(&hifuse::local_block_int8));
}
