// The gated concatenation.
#include <tuple>

#include "bindings/checks.h"
#include "bindings/packing.h"

namespace hifuse {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pack_gated_concat(const Tensor& filters, const Tensor& filter_bias,
                                                                             const Tensor& squeeze, const Tensor& expand,
                                                                             const Tensor& scale, const Tensor& shift) {
  check_weight("filters", filters, {2, 7, 7});
  check_weight("filter_bias", filter_bias, {1});
  check_weight("squeeze", squeeze, {-1, -1});
  const int64_t squeezed = squeeze.size(0), channels = squeeze.size(1);
  check_weight("expand", expand, {channels, squeezed});
  check_weight("scale", scale, {3 * channels});
  check_weight("shift", shift, {3 * channels});
  const Tensor transposed = torch::stable::transpose(expand, 0, 1);  // like squeeze, a row for each squeezed channel
  return {pack_floats(filters),    pack_floats(filter_bias), pack_floats(squeeze),
          pack_floats(transposed), pack_floats(scale),       pack_floats(shift)};
}

void gated_concat(const Tensor& local_map, const Tensor& global_map, const Tensor& x, const Tensor& filters,
                  const Tensor& filter_bias, const Tensor& squeeze, const Tensor& expand, const Tensor& scale,
                  const Tensor& shift, Tensor out, bool double_sigmoid, double eps) {
  STD_TORCH_CHECK(x.dim() == 4 && squeeze.dim() == 2, "maps must be [B, H, W, C], squeeze [S, C]");
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3), squeezed = squeeze.size(0);
  for (const Tensor& map : {local_map, global_map, x}) check_like("map", map, out, {batch, height, width, channels});
  check_like("out", out, x, {batch, height, width, 3 * channels});
  GatedConcat args{};
  args.dtype = dtype_of(x.scalar_type());
  args.batch = batch, args.height = height, args.width = width, args.channels = channels, args.squeezed = squeezed;
  args.local_map = local_map.const_data_ptr(), args.global_map = global_map.const_data_ptr(), args.x = x.const_data_ptr();
  args.filters = floats("filters", filters, 98);
  args.filter_bias = *floats("filter_bias", filter_bias, 1);
  args.squeeze = floats("squeeze", squeeze, squeezed * channels);
  args.expand = floats("expand", expand, squeezed * channels);
  args.scale = floats("scale", scale, 3 * channels);
  args.shift = floats("shift", shift, 3 * channels);
  args.double_sigmoid = double_sigmoid, args.eps = static_cast<float>(eps);
  args.out = out.mutable_data_ptr();
  isa::kernels().gated_concat(args, threads());
}

}  // namespace
}  // namespace hifuse

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) {
  m.impl("pack_gated_concat", TORCH_BOX(&hifuse::pack_gated_concat));
  m.impl("gated_concat_out", TORCH_BOX(&hifuse::gated_concat));
}
