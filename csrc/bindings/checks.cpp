#include "bindings/checks.h"

#include <cmath>

namespace hifuse {

Algorithm algorithm_of(const char* op, int64_t number, std::initializer_list<Algorithm> known) {
  for (const Algorithm each : known)
    if (number == static_cast<int64_t>(each)) return each;
  STD_TORCH_CHECK(false, op, " has no algorithm of the number ", number);
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

void check_weight(const char* name, const Tensor& weight, std::initializer_list<int64_t> shape) {
  const auto type = weight.scalar_type();
  STD_TORCH_CHECK(weight.is_cpu() && (type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                                      type == ScalarType::Half),
                  name, " must be a floating-point tensor on the CPU");
  STD_TORCH_CHECK(weight.dim() == static_cast<int64_t>(shape.size()), name, " must have ", shape.size(), " dimensions, got ",
                  weight.dim());
  int64_t i = 0;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(size < 0 ? weight.size(i) > 0 : weight.size(i) == size, name, " has a wrong size: dimension ", i,
                    " must be ", size < 0 ? 1 : size, size < 0 ? " or more" : "", ", got ", weight.size(i));
    ++i;
  }
}

void check_int8(const char* name, const Tensor& weight, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Char && weight.dim() == 2, name,
                  " must be a matrix of int8 on the CPU");
  int64_t i = 0;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(size < 0 ? weight.size(i) > 0 : weight.size(i) == size, name, " has a wrong size: dimension ", i, " is ",
                    weight.size(i));
    ++i;
  }
}

float inverse_scale(const char* name, double value) {
  const auto narrow = static_cast<float>(value);
  STD_TORCH_CHECK(std::isfinite(narrow) && narrow > 0, name, " must be a finite positive float32, got ", value);
  return narrow;
}

const void* packed_int8(const char* name, const Tensor& weight, int64_t count) {
  STD_TORCH_CHECK(
      weight.is_cpu() && weight.is_contiguous() && weight.scalar_type() == ScalarType::Char && weight.numel() == count, name,
      " must be packed for int8: ", count, " contiguous bytes on the CPU");
  return weight.const_data_ptr();
}

const float* floats(const char* name, const Tensor& tensor, int64_t count) {
  STD_TORCH_CHECK(
      tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == ScalarType::Float && tensor.numel() == count, name,
      " must be ", count, " contiguous float32 numbers on the CPU");
  return static_cast<const float*>(tensor.const_data_ptr());
}

const void* packed(const char* name, const Tensor& weight, const Tensor& like, int64_t count) {
  STD_TORCH_CHECK(
      weight.is_cpu() && weight.is_contiguous() && weight.scalar_type() == like.scalar_type() && weight.numel() == count, name,
      " must be packed for this algorithm: ", count, " contiguous elements of the maps' dtype");
  return weight.const_data_ptr();
}

}  // namespace hifuse
