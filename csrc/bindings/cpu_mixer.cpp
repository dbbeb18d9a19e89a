// The mixer: prepared, and the two products of the function and its gradients.
#include "bindings/checks.h"
#include "bindings/packing.h"

namespace hifuse {
namespace {

Algorithm mixer_algorithm(int64_t number, DType dtype) {
  const Algorithm algorithm = algorithm_of(
      "mixer", number,
      {Algorithm::direct, Algorithm::depthwise, Algorithm::winograd2, Algorithm::winograd4, Algorithm::winograd4_at_call});
  STD_TORCH_CHECK(algorithm != Algorithm::winograd4_at_call || dtype == DType::float32,
                  "mixer: filters are transformed at the call in float32 alone");
  return algorithm;
}

Tensor pack_mixer(const Tensor& weight, ScalarType dtype, int64_t algorithm) {
  const Algorithm how = mixer_algorithm(algorithm, dtype_of(dtype));
  check_weight("weight", weight, {-1, -1, 3, 3});
  const int64_t channels = weight.size(0);
  check_weight("weight", weight, {channels, how == Algorithm::depthwise ? 1 : channels, 3, 3});
  if (how != Algorithm::depthwise) return pack_filters(weight, dtype, how);
  return pack_floats(torch::stable::transpose(torch::stable::reshape(weight, {channels, 9}), 0, 1));
}

// Of int8, by Winograd's algorithm or directly.
Algorithm mixer_int8_algorithm(int64_t number, int64_t channels) {
  const Algorithm algorithm = algorithm_of("mixer_int8", number, {Algorithm::int8, Algorithm::int8_winograd2});
  STD_TORCH_CHECK(algorithm == Algorithm::int8 || int8_winograd_serves(channels),
                  "mixer_int8: sums of so many channels pass the range of int32 in Winograd's algorithm: ", channels);
  return algorithm;
}

Tensor pack_mixer_int8(const Tensor& weight, int64_t algorithm) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Char && weight.dim() == 4 && weight.size(0) > 0 &&
                      weight.size(1) == weight.size(0) && weight.size(2) == 3 && weight.size(3) == 3,
                  "weight must be int8 [C, C, 3, 3] on the CPU");
  return pack_int8_filters(weight, mixer_int8_algorithm(algorithm, weight.size(0)));
}

// All but the weight.
Mixer mixer_over(const Tensor& z, Tensor& out) {
  STD_TORCH_CHECK(z.dim() == 4, "z must be [B, H, W, C]");
  const int64_t batch = z.size(0), height = z.size(1), width = z.size(2), channels = z.size(3);
  check_like("z", z, out, {batch, height, width, channels});
  check_like("out", out, z, {batch, height, width, channels});
  STD_TORCH_CHECK(out.const_data_ptr() != z.const_data_ptr() || z.numel() == 0,
                  "out must not be z, whose neighbours are still read");
  Mixer args{};
  args.dtype = dtype_of(z.scalar_type());
  args.batch = batch, args.height = height, args.width = width, args.channels = channels;
  args.z = z.const_data_ptr(), args.out = out.mutable_data_ptr();
  return args;
}

void mixer(const Tensor& z, const Tensor& weight, Tensor out, int64_t algorithm) {
  Mixer args = mixer_over(z, out);
  args.algorithm = mixer_algorithm(algorithm, args.dtype);
  args.weight = args.algorithm == Algorithm::depthwise
                    ? floats("weight", weight, 9 * args.channels)
                    : packed("weight", weight, z, packed_filters_size(args.channels, args.dtype, args.algorithm));
  isa::kernels().mixer(args, threads());
}

void mixer_int8(const Tensor& z, const Tensor& weight, const Tensor& scale, Tensor out, double inverse, int64_t algorithm) {
  Mixer args = mixer_over(z, out);
  args.algorithm = mixer_int8_algorithm(algorithm, args.channels);
  args.weight = packed_int8("weight", weight, packed_int8_filters_size(args.channels, args.algorithm));
  args.scale = floats("scale", scale, args.channels);
  args.inverse = inverse_scale("inverse", inverse);
  isa::kernels().mixer(args, threads());
}

// A map and the float32 filters that fit it.
void check_map(const char* name, const Tensor& map) {
  STD_TORCH_CHECK(map.dim() == 4, name, " must be [B, H, W, C]");
  STD_TORCH_CHECK(map.is_cpu() && map.is_contiguous() && map.scalar_type() == ScalarType::Float, name,
                  " must be contiguous, on the CPU, and float32");
}

Tensor mixer_convolution(const Tensor& z, const Tensor& weight, bool transposed) {
  check_map("z", z);
  const int64_t channels = z.size(3);
  check_weight("weight", weight, {channels, channels, 3, 3});
  const Tensor filters = pack_filters(weight, ScalarType::Float, Algorithm::winograd4, transposed);
  Tensor out = torch::stable::empty_like(z);
  Mixer args{};
  args.dtype = DType::float32;
  args.batch = z.size(0), args.height = z.size(1), args.width = z.size(2), args.channels = channels;
  args.z = z.const_data_ptr(), args.weight = filters.const_data_ptr(), args.out = out.mutable_data_ptr();
  args.algorithm = Algorithm::winograd4;
  args.convolution = true;
  isa::kernels().mixer(args, threads());
  return out;
}

Tensor mixer_filters_gradient(const Tensor& grad, const Tensor& z) {
  check_map("z", z);
  check_map("grad", grad);
  const int64_t batch = z.size(0), height = z.size(1), width = z.size(2), channels = z.size(3);
  check_like("grad", grad, z, {batch, height, width, channels});
  Tensor out = torch::stable::new_empty(z, {channels, channels, 3, 3});
  isa::kernels().mixer_filters_gradient(
      {batch, height, width, channels, static_cast<const float*>(grad.const_data_ptr()),
       static_cast<const float*>(z.const_data_ptr()), static_cast<float*>(out.mutable_data_ptr())},
      threads());
  return out;
}

}  // namespace
}  // namespace hifuse

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) {
  m.impl("pack_mixer", TORCH_BOX(&hifuse::pack_mixer));
  m.impl("pack_mixer_int8", TORCH_BOX(&hifuse::pack_mixer_int8));
  m.impl("mixer_out", TORCH_BOX(&hifuse::mixer));
  m.impl("mixer_int8_out", TORCH_BOX(&hifuse::mixer_int8));
  m.impl("mixer_convolution", TORCH_BOX(&hifuse::mixer_convolution));
  m.impl("mixer_filters_gradient", TORCH_BOX(&hifuse::mixer_filters_gradient));
}
