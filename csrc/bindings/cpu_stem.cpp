// The stem.
#include <tuple>

#include "bindings/checks.h"
#include "bindings/packing.h"

namespace hifuse {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_stem(const Tensor& weight, const Tensor& bias, const Tensor& scale,
                                                     const Tensor& shift, ScalarType dtype) {
  check_weight("weight", weight, {2, -1, -1, 4, 4});
  const int64_t channels = weight.size(1);
  check_weight("bias", bias, {2, channels});
  check_weight("scale", scale, {2, channels});
  check_weight("shift", shift, {2, channels});
  const Tensor matrix = torch::stable::reshape(weight, {2 * channels, 16 * weight.size(2)});
  return {pack_matrix(matrix, dtype, Algorithm::direct), pack_floats(bias), pack_floats(scale), pack_floats(shift)};
}

void stem(const Tensor& images, const Tensor& weight, const Tensor& bias, const Tensor& scale, const Tensor& shift,
          Tensor local_map, Tensor global_map, double local_eps, double global_eps) {
  STD_TORCH_CHECK(images.dim() == 4 && images.is_cpu() && local_map.dim() == 4,
                  "images must be [B, in_chans, H, W] on the CPU");
  STD_TORCH_CHECK(images.scalar_type() == local_map.scalar_type() || images.scalar_type() == ScalarType::Float,
                  "images must be of the maps' dtype or float32");
  const int64_t batch = images.size(0), height = local_map.size(1), width = local_map.size(2), channels = local_map.size(3);
  STD_TORCH_CHECK(images.size(2) <= 4 * height && images.size(3) <= 4 * width,
                  "images must be no larger than four times the maps");
  check_like("local_map", local_map, global_map, {batch, height, width, channels});
  check_like("global_map", global_map, local_map, {batch, height, width, channels});
  Stem args{};
  args.dtype = dtype_of(local_map.scalar_type());
  args.batch = batch, args.height = height, args.width = width;
  args.image_dtype = dtype_of(images.scalar_type());
  args.images = images.const_data_ptr();
  args.image_height = images.size(2), args.image_width = images.size(3);
  for (int i = 0; i < 4; ++i) args.strides[i] = images.stride(i);
  args.in_chans = images.size(1), args.channels = channels;
  args.weight = packed("weight", weight, local_map, packed_matrix_size(2 * channels, 16 * args.in_chans, Algorithm::direct));
  args.bias = floats("bias", bias, 2 * channels);
  args.scale = floats("scale", scale, 2 * channels);
  args.shift = floats("shift", shift, 2 * channels);
  args.eps[0] = static_cast<float>(local_eps), args.eps[1] = static_cast<float>(global_eps);
  args.out[0] = local_map.mutable_data_ptr(), args.out[1] = global_map.mutable_data_ptr();
  isa::kernels().stem(args, threads());
}

}  // namespace
}  // namespace hifuse

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) {
  m.impl("pack_stem", TORCH_BOX(&hifuse::pack_stem));
  m.impl("stem_out", TORCH_BOX(&hifuse::stem));
}
