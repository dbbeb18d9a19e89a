// The prepared ops of the frozen network. They write to the map they are given: the network reuses its maps.
//
// The Python API has checked all this with friendlier words; here it keeps a direct call from touching foreign memory.
#include <initializer_list>
#include <vector>

#include "bindings/common.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hifuse {
namespace {

DType dtype_of(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::BFloat16,
                  "prepared ops serve float32 and bfloat16");
  return tensor.scalar_type() == ScalarType::Float ? DType::float32 : DType::bfloat16;
}

void check_like(const char* name, const Tensor& tensor, const Tensor& like, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == like.scalar_type() &&
                      tensor.dim() == static_cast<int64_t>(shape.size()),
                  name, " must be a contiguous CPU tensor of ", shape.size(), " dimensions and the dtype of the others");
  int64_t i = 0;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(tensor.size(i) == size, name, " has a wrong size: dimension ", i, " must be ", size, ", got ",
                    tensor.size(i));
    ++i;
  }
}

// Biases, scales, filters and the like.
const float* floats(const char* name, const Tensor& tensor, int64_t count) {
  STD_TORCH_CHECK(
      tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == ScalarType::Float && tensor.numel() == count, name,
      " must be ", count, " contiguous float32 numbers on the CPU");
  return static_cast<const float*>(tensor.const_data_ptr());
}

int64_t padded(int64_t count) { return (count + 31) / 32 * 32; }

// The factors of Strassen's product: always more than the weights as they are.
int64_t factors(int64_t columns, int64_t depth) { return (columns + 63) / 64 * 7 * 32 * padded(depth / 2); }

const void* packed(const Tensor& weight, const Tensor& like, int64_t count) {
  STD_TORCH_CHECK(
      weight.is_cpu() && weight.is_contiguous() && weight.scalar_type() == like.scalar_type() && weight.numel() == count,
      "a packed weight must be ", count, " contiguous elements of the maps' dtype");
  return weight.const_data_ptr();
}

// Weights are read from end to end at every call: with pages of 2 MB there are few misses of the page table.
Tensor new_weight(const Tensor& like, int64_t count, ScalarType type) {
  Tensor made = torch::stable::new_empty(like, {count}, type);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = (reinterpret_cast<uintptr_t>(made.mutable_data_ptr()) + 4095) / 4096 * 4096;
  const auto end =
      reinterpret_cast<uintptr_t>(made.mutable_data_ptr()) + static_cast<size_t>(count) * (type == ScalarType::Float ? 4 : 2);
  if (end > begin + (4 << 20)) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return made;
}

// A copy of a packed weight, as new_weight makes it.
Tensor copy_weight(const Tensor& weight) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.is_contiguous() && weight.dim() == 1, "weight must be packed, on the CPU");
  dtype_of(weight);
  Tensor out = new_weight(weight, weight.numel(), weight.scalar_type());
  torch::stable::copy_(out, weight);
  return out;
}

Tensor pack_linear(const Tensor& weight, int64_t block) {
  const auto type = dtype_of(weight);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_cpu() && weight.is_contiguous(),
                  "weight must be contiguous [N, K] on the CPU");
  STD_TORCH_CHECK(block > 0 && block % 32 == 0, "block must be a multiple of 32");
  const int64_t columns = weight.size(0), depth = weight.size(1);
  Tensor out = new_weight(weight, padded(columns) * padded(depth), weight.scalar_type());
  isa::kernels().pack_linear({type, weight.const_data_ptr(), columns, depth, block, out.mutable_data_ptr()}, kTorchThreads);
  return out;
}

Tensor pack_winograd(const Tensor& weight, int64_t tile, bool bfloat16) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3, "weight must be [N, K, 3, 3]");
  STD_TORCH_CHECK(tile == 2 || tile == 4, "tile must be 2 or 4");
  const int64_t columns = weight.size(0), depth = weight.size(1);
  const float* const from = floats("weight", weight, columns * depth * 9);
  const auto type = bfloat16 ? DType::bfloat16 : DType::float32;
  const int64_t products = winograd_products(tile, type);
  Tensor out = new_weight(weight, products * products * padded(columns) * padded(depth),
                          bfloat16 ? ScalarType::BFloat16 : ScalarType::Float);
  isa::kernels().pack_winograd({from, columns, depth, tile, type, out.mutable_data_ptr()}, kTorchThreads);
  return out;
}

// `rows`, `norm`, `activation`: the enumerations of kernels.h by number.
Tensor linear(const std::vector<Tensor>& maps, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& residual,
              Tensor out, int64_t rows, int64_t norm, double eps, int64_t activation, bool pool) {
  STD_TORCH_CHECK(!maps.empty() && maps.size() <= 3 && out.dim() == 4, "linear takes 1 to 3 maps, and out [B, H, W, N]");
  STD_TORCH_CHECK(rows >= 0 && rows <= 1 && norm >= 0 && norm <= 2 && activation >= 0 && activation <= 2,
                  "linear: unknown option");
  const int64_t batch = out.size(0), height = out.size(1), width = out.size(2), columns = out.size(3);
  const int64_t scale = rows == 1 || pool ? 2 : 1;
  STD_TORCH_CHECK(rows == 0 || (!pool && maps.size() == 1), "linear: patches are of one map, and not pooled");
  Linear args{};
  int64_t depth = 0;
  for (size_t i = 0; i < maps.size(); ++i) {
    args.maps[i] = maps[i].const_data_ptr();
    args.channels[i] = maps[i].size(maps[i].dim() - 1);
    check_like("map", maps[i], out, {batch, height * scale, width * scale, args.channels[i]});
    depth += args.channels[i] * (rows == 1 ? 4 : 1);
  }
  check_like("out", out, maps[0], {batch, height, width, columns});
  if (residual) check_like("residual", *residual, out, {batch, height, width, columns});
  args.dtype = dtype_of(out);
  args.batch = batch, args.height = pool ? 2 * height : height, args.width = pool ? 2 * width : width;
  args.rows = static_cast<Rows>(rows), args.norm = static_cast<Norm>(norm), args.eps = static_cast<float>(eps);
  args.strassen =
      args.dtype == DType::float32 && depth % 32 == 0 && columns % 64 == 0 && weight.numel() == factors(columns, depth);
  args.weight = packed(weight, out, args.strassen ? factors(columns, depth) : padded(columns) * padded(depth));
  args.bias = floats("bias", bias, columns);
  args.columns = columns, args.activation = static_cast<Activation>(activation), args.pool = pool;
  args.residual = data_of(residual), args.out = out.mutable_data_ptr();
  isa::kernels().linear(args, kTorchThreads);
  return out;
}

Tensor local_block(const Tensor& x, const Tensor& filters, const Tensor& filter_bias, const Tensor& weight, const Tensor& bias,
                   Tensor out, double eps) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [B, H, W, C]");
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  check_like("x", x, out, {batch, height, width, channels});
  check_like("out", out, x, {batch, height, width, channels});
  STD_TORCH_CHECK(out.const_data_ptr() != x.const_data_ptr() || x.numel() == 0,
                  "out must not be x, whose neighbours are still read");
  Linear args{};
  args.dtype = dtype_of(x);
  args.batch = batch, args.height = height, args.width = width;
  args.rows = Rows::depthwise, args.maps[0] = x.const_data_ptr(), args.channels[0] = channels;
  args.filters = floats("filters", filters, 9 * channels);
  args.filter_bias = floats("filter_bias", filter_bias, channels);
  args.norm = Norm::row, args.eps = static_cast<float>(eps);
  args.weight = packed(weight, x, padded(channels) * padded(channels));
  args.bias = floats("bias", bias, channels);
  args.columns = channels, args.activation = Activation::gelu;
  args.residual = x.const_data_ptr(), args.out = out.mutable_data_ptr();
  isa::kernels().linear(args, kTorchThreads);
  return out;
}

std::tuple<Tensor, Tensor> stem(const Tensor& images, const Tensor& weight, const Tensor& bias, const Tensor& scale,
                                const Tensor& shift, Tensor local_map, Tensor global_map, double local_eps, double global_eps) {
  STD_TORCH_CHECK(images.dim() == 4 && images.is_cpu() && images.size(2) % 4 == 0 && images.size(3) % 4 == 0,
                  "images must be [B, in_chans, 4H, 4W] on the CPU");
  STD_TORCH_CHECK(images.scalar_type() == local_map.scalar_type() && local_map.dim() == 4, "images must be of the maps' dtype");
  const int64_t batch = images.size(0), height = images.size(2) / 4, width = images.size(3) / 4, channels = local_map.size(3);
  check_like("local_map", local_map, global_map, {batch, height, width, channels});
  check_like("global_map", global_map, local_map, {batch, height, width, channels});
  Stem args{};
  args.dtype = dtype_of(local_map);
  args.batch = batch, args.height = height, args.width = width;
  args.images = images.const_data_ptr();
  for (int i = 0; i < 4; ++i) args.strides[i] = images.stride(i);
  args.in_chans = images.size(1), args.channels = channels;
  args.weight = packed(weight, local_map, padded(2 * channels) * padded(16 * args.in_chans));
  args.bias = floats("bias", bias, 2 * channels);
  args.scale = floats("scale", scale, 2 * channels);
  args.shift = floats("shift", shift, 2 * channels);
  args.eps[0] = static_cast<float>(local_eps), args.eps[1] = static_cast<float>(global_eps);
  args.out[0] = local_map.mutable_data_ptr(), args.out[1] = global_map.mutable_data_ptr();
  isa::kernels().stem(args, kTorchThreads);
  return {local_map, global_map};
}

Tensor gated_concat(const Tensor& local_map, const Tensor& global_map, const Tensor& x, const Tensor& filters,
                    const Tensor& filter_bias, const Tensor& squeeze, const Tensor& expand, const Tensor& scale,
                    const Tensor& shift, Tensor out, bool double_sigmoid, double eps) {
  STD_TORCH_CHECK(x.dim() == 4 && squeeze.dim() == 2, "maps must be [B, H, W, C], squeeze [S, C]");
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3), squeezed = squeeze.size(0);
  for (const Tensor& map : {local_map, global_map, x}) check_like("map", map, out, {batch, height, width, channels});
  check_like("out", out, x, {batch, height, width, 3 * channels});
  GatedConcat args{};
  args.dtype = dtype_of(x);
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
  isa::kernels().gated_concat(args, kTorchThreads);
  return out;
}

// `tile`: outputs of a Winograd tile along an axis, 4 or 2; 1 for the direct convolution, 0 for the depthwise one.
Tensor mixer(const Tensor& z, const Tensor& weight, Tensor out, int64_t channels, int64_t tile) {
  STD_TORCH_CHECK(z.dim() == 4, "z must be [B, H, W, C]");
  STD_TORCH_CHECK(tile == 0 || tile == 1 || tile == 2 || tile == 4, "tile must be 0, 1, 2 or 4");
  const int64_t batch = z.size(0), height = z.size(1), width = z.size(2);
  check_like("z", z, out, {batch, height, width, channels});
  check_like("out", out, z, {batch, height, width, channels});
  STD_TORCH_CHECK(out.const_data_ptr() != z.const_data_ptr() || z.numel() == 0,
                  "out must not be z, whose neighbours are still read");
  const int64_t products = tile == 1 ? 3 : winograd_products(tile, dtype_of(z));
  const int64_t transformed = products * products * padded(channels) * padded(channels);
  const int64_t untransformed = padded(channels) * padded(9 * channels);  // always fewer
  Mixer args{};
  args.dtype = dtype_of(z);
  args.batch = batch, args.height = height, args.width = width, args.channels = channels;
  args.z = z.const_data_ptr(), args.out = out.mutable_data_ptr();
  args.tile = tile;
  args.transform = tile == 4 && args.dtype == DType::float32 && weight.numel() == untransformed;
  args.weight = tile ? packed(weight, z, args.transform ? untransformed : transformed) : floats("weight", weight, 9 * channels);
  isa::kernels().mixer(args, kTorchThreads);
  return out;
}

Tensor mlp(const Tensor& u, const Tensor& expand, const Tensor& expand_bias, const Tensor& project, const Tensor& project_bias,
           const std::optional<Tensor>& residual, Tensor out) {
  STD_TORCH_CHECK(u.dim() == 4 && out.dim() == 4, "u must be [B, H, W, K], out [B, H, W, N]");
  const int64_t batch = u.size(0), height = u.size(1), width = u.size(2), depth = u.size(3), columns = out.size(3);
  const int64_t hidden = expand_bias.numel();
  check_like("u", u, out, {batch, height, width, depth});
  check_like("out", out, u, {batch, height, width, columns});
  if (residual) check_like("residual", *residual, out, {batch, height, width, columns});
  Mlp args{};
  args.dtype = dtype_of(u);
  args.batch = batch, args.rows = height * width, args.depth = depth, args.hidden = hidden, args.columns = columns;
  args.u = u.const_data_ptr();
  args.strassen = args.dtype == DType::float32 && depth % 32 == 0 && expand.numel() == factors(hidden, depth);
  args.expand = packed(expand, u, args.strassen ? factors(hidden, depth) : padded(hidden) * padded(depth));
  args.expand_bias = floats("expand_bias", expand_bias, hidden);
  args.project = packed(project, u, padded(columns) * padded(hidden));
  args.project_bias = floats("project_bias", project_bias, columns);
  args.residual = data_of(residual), args.out = out.mutable_data_ptr();
  isa::kernels().mlp(args, kTorchThreads);
  return out;
}

}  // namespace
}  // namespace hifuse

STABLE_TORCH_LIBRARY_FRAGMENT(hifuse_fast, m) {
  m.def("copy_weight(Tensor weight) -> Tensor");
  m.def("pack_linear(Tensor weight, int block) -> Tensor");
  m.def("pack_winograd(Tensor weight, int tile, bool bfloat16) -> Tensor");
  m.def(
      "linear(Tensor[] maps, Tensor weight, Tensor bias, Tensor? residual, Tensor(a!) out, int rows, int norm, float eps, "
      "int activation, bool pool) -> Tensor(a!)");
  m.def(
      "local_block(Tensor x, Tensor filters, Tensor filter_bias, Tensor weight, Tensor bias, Tensor(a!) out, float eps) -> "
      "Tensor(a!)");
  m.def(
      "stem(Tensor images, Tensor weight, Tensor bias, Tensor scale, Tensor shift, Tensor(a!) local_map, Tensor(b!) "
      "global_map, "
      "float local_eps, float global_eps) -> (Tensor(a!), Tensor(b!))");
  m.def(
      "gated_concat(Tensor local_map, Tensor global_map, Tensor x, Tensor filters, Tensor filter_bias, Tensor squeeze, Tensor "
      "expand, "
      "Tensor scale, Tensor shift, Tensor(a!) out, bool double_sigmoid, float eps) -> Tensor(a!)");
  m.def("mixer(Tensor z, Tensor weight, Tensor(a!) out, int channels, int tile) -> Tensor(a!)");
  m.def(
      "mlp(Tensor u, Tensor expand, Tensor expand_bias, Tensor project, Tensor project_bias, Tensor? residual, Tensor(a!) out) "
      "-> "
      "Tensor(a!)");
}

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) {
  m.impl("copy_weight", TORCH_BOX(&hifuse::copy_weight));
  m.impl("pack_linear", TORCH_BOX(&hifuse::pack_linear));
  m.impl("pack_winograd", TORCH_BOX(&hifuse::pack_winograd));
  m.impl("linear", TORCH_BOX(&hifuse::linear));
  m.impl("local_block", TORCH_BOX(&hifuse::local_block));
  m.impl("stem", TORCH_BOX(&hifuse::stem));
  m.impl("gated_concat", TORCH_BOX(&hifuse::gated_concat));
  m.impl("mixer", TORCH_BOX(&hifuse::mixer));
  m.impl("mlp", TORCH_BOX(&hifuse::mlp));
}
