// Checks of single values, by the name of their field.
#pragma once

#include <cmath>

#include "c/checks.h"

namespace hifuse::c {

template <class Number>
void check_range(const char* name, Number value, int64_t least, int64_t most) {
  const auto number = static_cast<int64_t>(value);
  require(number >= least && number <= most, name, " must be from ", least, " to ", most, ", got ", number);
}

inline void check_given(const char* name, const void* pointer) { require(pointer, name, " must not be NULL"); }

inline void check_eps(float eps) { require(std::isfinite(eps) && eps >= 0, "eps must be finite and at least 0, got ", eps); }

inline void check_inverse(const char* name, float value) {
  require(std::isfinite(value) && value > 0, name, " must be finite and above 0, got ", value);
}

inline void check_apart(const void* out, const void* read, const char* name) {
  require(out != read, "out must not be ", name, ", whose neighbours are still read");
}

// Whose kernels an op is for, where what they know differs.
enum class Kernels { cpu, cuda };

inline void check_dtype(const char* name, DType dtype, Kernels kernels) {
  const bool cuda = kernels == Kernels::cuda;
  require(dtype == DType::float32 || dtype == DType::bfloat16 || (cuda && dtype == DType::float16), name, " must be ",
          cuda ? "HIFUSE_FLOAT32, HIFUSE_BFLOAT16 or HIFUSE_FLOAT16" : "HIFUSE_FLOAT32 or HIFUSE_BFLOAT16", ", got ",
          static_cast<int>(dtype));
}

struct Size {
  const char* name;
  int64_t value;
};

// The sizes of a map, of which `batch` may be 0.
inline void check_sizes(int64_t batch, std::initializer_list<Size> sizes) {
  check_range("batch", batch, 0, kMostOfAnAxis);
  for (const Size& size : sizes) check_range(size.name, size.value, 1, kMostOfAnAxis);
}

}  // namespace hifuse::c
