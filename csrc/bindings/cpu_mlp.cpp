// The MLP.
#include <tuple>

#include "bindings/checks.h"
#include "bindings/packing.h"

namespace hifuse {
namespace {

Algorithm mlp_algorithm(int64_t number, DType dtype, int64_t depth) {
  const Algorithm algorithm = algorithm_of("mlp", number, {Algorithm::direct, Algorithm::strassen});
  STD_TORCH_CHECK(algorithm == Algorithm::direct || (dtype == DType::float32 && depth % 32 == 0),
                  "mlp: Strassen's product is of float32, and of a depth that is a multiple of 32");
  return algorithm;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_mlp(const Tensor& expand, const Tensor& expand_bias, const Tensor& project,
                                                    const Tensor& project_bias, ScalarType dtype, int64_t algorithm) {
  check_weight("expand", expand, {-1, -1});
  check_weight("expand_bias", expand_bias, {expand.size(0)});
  check_weight("project", project, {-1, expand.size(0)});
  check_weight("project_bias", project_bias, {project.size(0)});
  const Algorithm how = mlp_algorithm(algorithm, dtype_of(dtype), expand.size(1));
  return {pack_matrix(expand, dtype, how), pack_floats(expand_bias), pack_matrix(project, dtype, Algorithm::direct, kHidden),
          pack_floats(project_bias)};
}

// All but weights and biases.
Mlp mlp_over(const Tensor& u, int64_t hidden, const std::optional<Tensor>& residual, Tensor& out) {
  STD_TORCH_CHECK(u.dim() == 4 && out.dim() == 4, "u must be [B, H, W, K], out [B, H, W, N]");
  const int64_t batch = u.size(0), height = u.size(1), width = u.size(2), depth = u.size(3), columns = out.size(3);
  check_like("u", u, out, {batch, height, width, depth});
  check_like("out", out, u, {batch, height, width, columns});
  if (residual) check_like("residual", *residual, out, {batch, height, width, columns});
  Mlp args{};
  args.dtype = dtype_of(u.scalar_type());
  args.batch = batch, args.rows = height * width, args.depth = depth, args.hidden = hidden, args.columns = columns;
  args.u = u.const_data_ptr();
  args.residual = data_of(residual), args.out = out.mutable_data_ptr();
  return args;
}

void mlp(const Tensor& u, const Tensor& expand, const Tensor& expand_bias, const Tensor& project, const Tensor& project_bias,
         const std::optional<Tensor>& residual, Tensor out, int64_t algorithm) {
  Mlp args = mlp_over(u, expand_bias.numel(), residual, out);
  args.algorithm = mlp_algorithm(algorithm, args.dtype, args.depth);
  args.expand = packed("expand", expand, u, packed_matrix_size(args.hidden, args.depth, args.algorithm));
  args.expand_bias = floats("expand_bias", expand_bias, args.hidden);
  args.project = packed("project", project, u, packed_matrix_size(args.columns, args.hidden, Algorithm::direct));
  args.project_bias = floats("project_bias", project_bias, args.columns);
  isa::kernels().mlp(args, threads());
}

void mlp_int8(const Tensor& u, const Tensor& expand, const Tensor& expand_scale, const Tensor& expand_bias,
              const Tensor& project, const Tensor& project_scale, const Tensor& project_bias,
              const std::optional<Tensor>& residual, Tensor out, double inverse, double hidden_inverse) {
  Mlp args = mlp_over(u, expand_bias.numel(), residual, out);
  args.algorithm = Algorithm::int8;
  args.expand = packed_int8("expand", expand, packed_int8_size(args.hidden, args.depth));
  args.expand_scale = floats("expand_scale", expand_scale, args.hidden);
  args.expand_bias = floats("expand_bias", expand_bias, args.hidden);
  args.project = packed_int8("project", project, packed_int8_size(args.columns, args.hidden, kHidden));
  args.project_scale = floats("project_scale", project_scale, args.columns);
  args.project_bias = floats("project_bias", project_bias, args.columns);
  args.inverse = inverse_scale("inverse", inverse), args.hidden_inverse = inverse_scale("hidden_inverse", hidden_inverse);
  isa::kernels().mlp(args, threads());
}

}  // namespace
}  // namespace hifuse

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) {
  m.impl("pack_mlp", TORCH_BOX(&hifuse::pack_mlp));
  m.impl("mlp_out", TORCH_BOX(&hifuse::mlp));
  m.impl("mlp_int8_out", TORCH_BOX(&hifuse::mlp_int8));
}
