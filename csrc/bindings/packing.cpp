#include "bindings/packing.h"

#include <vector>

#include "bindings/checks.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hifuse {
namespace {

// Weights are read from end to end at every call: with pages of 2 MB there are few misses of the page table.
Tensor new_weight(const Tensor& like, int64_t count, ScalarType type) {
  Tensor made = torch::stable::new_empty(like, {count}, type);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = (reinterpret_cast<uintptr_t>(made.mutable_data_ptr()) + 4095) / 4096 * 4096;
  const auto end =
      reinterpret_cast<uintptr_t>(made.mutable_data_ptr()) + static_cast<size_t>(count) * (type == ScalarType::Float  ? 4
                                                                                           : type == ScalarType::Char ? 1
                                                                                                                      : 2);
  if (end > begin + (4 << 20)) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return made;
}

// `weight` itself where it is contiguous and of this dtype.
Tensor contiguous_in(const Tensor& weight, ScalarType dtype) {
  return torch::stable::contiguous(torch::stable::to(weight, dtype));
}

Tensor pack_factors(const Tensor& weight) {
  const Tensor from = contiguous_in(weight, ScalarType::Float);
  const int64_t columns = from.size(0), depth = from.size(1);
  STD_TORCH_CHECK(depth % 2 == 0, "Strassen's product is of an even depth, got ", depth);
  Tensor out = new_weight(from, packed_matrix_size(columns, depth, Algorithm::strassen), ScalarType::Float);
  isa::kernels().pack_strassen(
      {static_cast<const float*>(from.const_data_ptr()), columns, depth, static_cast<float*>(out.mutable_data_ptr())},
      threads());
  return out;
}

Tensor pack_taps(const Tensor& weight, ScalarType dtype) {
  const Tensor from = contiguous_in(weight, dtype);
  const int64_t channels = from.size(0);
  Tensor out = new_weight(from, packed_filters_size(channels, dtype_of(dtype), Algorithm::direct), dtype);
  isa::kernels().pack_linear(
      {dtype_of(dtype), from.const_data_ptr(), channels, channels, 9, padded(channels), out.mutable_data_ptr()}, threads());
  return out;
}

}  // namespace

Tensor pack_matrix(const Tensor& weight, ScalarType dtype, Algorithm algorithm, int64_t block) {
  const auto type = dtype_of(dtype);
  if (algorithm == Algorithm::strassen) {
    STD_TORCH_CHECK(type == DType::float32, "Strassen's product is of float32");
    return pack_factors(weight);
  }
  const Tensor from = contiguous_in(weight, dtype);
  const int64_t columns = from.size(0), depth = from.size(1);
  Tensor out = new_weight(from, packed_matrix_size(columns, depth, algorithm), dtype);
  isa::kernels().pack_linear(
      {type, from.const_data_ptr(), columns, depth, 1, block ? block : padded(depth), out.mutable_data_ptr()}, threads());
  return out;
}

Tensor pack_int8(const Tensor& weight, int64_t block) {
  const Tensor from = torch::stable::contiguous(weight);
  const int64_t columns = from.size(0), depth = from.size(1);
  Tensor out = new_weight(from, packed_int8_size(columns, depth, block), ScalarType::Char);
  isa::kernels().pack_int8({static_cast<const int8_t*>(from.const_data_ptr()), columns, depth, block ? block : padded(depth),
                            static_cast<int8_t*>(out.mutable_data_ptr())},
                           threads());
  return out;
}

Tensor pack_filters(const Tensor& weight, ScalarType dtype, Algorithm algorithm, bool transposed) {
  if (algorithm == Algorithm::direct) return pack_taps(weight, dtype);
  const int64_t channels = weight.size(0);
  if (algorithm == Algorithm::winograd4_at_call) {
    STD_TORCH_CHECK(dtype == ScalarType::Float, "filters are transformed at the call in float32 alone");
    return pack_matrix(torch::stable::reshape(weight, {channels, 9 * channels}), dtype, Algorithm::direct);
  }
  const auto type = dtype_of(dtype);
  const Tensor from = contiguous_in(weight, ScalarType::Float);
  Tensor out = new_weight(from, packed_filters_size(channels, type, algorithm), dtype);
  isa::kernels().pack_winograd({static_cast<const float*>(from.const_data_ptr()), channels, channels, transposed,
                                tile_of(algorithm), type, out.mutable_data_ptr()},
                               threads());
  return out;
}

Tensor pack_int8_filters(const Tensor& weight, Algorithm algorithm) {
  const Tensor from = torch::stable::contiguous(weight);
  const int64_t channels = from.size(0);
  Tensor out = new_weight(from, packed_int8_filters_size(channels, algorithm), ScalarType::Char);
  isa::kernels().pack_int8_filters(
      {static_cast<const int8_t*>(from.const_data_ptr()), channels, algorithm, out.mutable_data_ptr()}, threads());
  return out;
}

Tensor pack_floats(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
  Tensor out = torch::stable::new_empty(tensor, sizes, ScalarType::Float);
  torch::stable::copy_(out, tensor);
  return out;
}

// A copy of a packed weight, as new_weight makes it.
Tensor copy_weight(const Tensor& weight) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.is_contiguous() && weight.dim() == 1, "weight must be packed, on the CPU");
  if (weight.scalar_type() != ScalarType::Char) dtype_of(weight.scalar_type());
  Tensor out = new_weight(weight, weight.numel(), weight.scalar_type());
  torch::stable::copy_(out, weight);
  return out;
}

}  // namespace hifuse

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) { m.impl("copy_weight", TORCH_BOX(&hifuse::copy_weight)); }
