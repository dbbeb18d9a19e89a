// Numbers of 16 bits as they lie in memory. Arithmetic is float32; ptx.cuh has the conversions.
#pragma once
#include <cstdint>

namespace hifuse::cuda {

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

}  // namespace hifuse::cuda
