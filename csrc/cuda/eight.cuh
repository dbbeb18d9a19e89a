// Eight neighbouring numbers of a tensor, which a thread moves at a time: 16 bytes of 16-bit numbers, or twice 16 of float32.
//
// The dtype of a tensor is known when a kernel is launched, not when it is compiled. So a branch on it is the same for all
// threads, and one kernel serves all dtypes, mixed ones too. A tensor whose rows do not begin at multiples of 16 bytes is read
// and written number by number.
#pragma once
#include <cstdint>
#include <ptx.cuh>

#include "map_ops.h"

namespace hifuse::cuda {

// As they lie in memory; `second` is of float32 alone.
struct Eight {
  uint4 first, second;
};

// Numbers `at`.. of a tensor, zeros for those from `left` on. `vectors`: there are eight or none, and they are aligned.
__device__ __forceinline__ Eight load_eight(const Typed& tensor, int64_t at, int left, bool vectors) {
  Eight e{};
  const bool float32 = tensor.dtype == DType::float32;
  if (vectors) {
    if (left <= 0) return e;
    const auto* p = reinterpret_cast<const uint4*>(static_cast<const unsigned char*>(tensor.data) + at * (float32 ? 4 : 2));
    e.first = p[0];
    if (float32) e.second = p[1];
    return e;
  }
  // Number by number into the end, which moves the others on: a loop that is not unrolled, as code of many places is here.
  uint32_t r[8] = {};
#pragma unroll 1
  for (int j = 0; j < 8; ++j) {
    if (float32) {
#pragma unroll
      for (int k = 0; k < 7; ++k) r[k] = r[k + 1];
      r[7] = j < left ? static_cast<const uint32_t*>(tensor.data)[at + j] : 0;
    } else {
      const uint32_t bits = j < left ? static_cast<const uint16_t*>(tensor.data)[at + j] : 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) r[k] = r[k] >> 16 | (k < 3 ? r[k + 1] : bits) << 16;
    }
  }
  return {{r[0], r[1], r[2], r[3]}, {r[4], r[5], r[6], r[7]}};
}

__device__ __forceinline__ void widen(float (&x)[8], const Eight& e, DType dtype) {
  const uint32_t first[4] = {e.first.x, e.first.y, e.first.z, e.first.w},
                 second[4] = {e.second.x, e.second.y, e.second.z, e.second.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (dtype == DType::float32) {
      x[j] = __uint_as_float(first[j]);
      x[4 + j] = __uint_as_float(second[j]);
    } else {
      const float2 pair = dtype == DType::bfloat16 ? unpack<bf16>(first[j]) : unpack<f16>(first[j]);
      x[2 * j] = pair.x;
      x[2 * j + 1] = pair.y;
    }
  }
}

__device__ __forceinline__ void load_eight(float (&x)[8], const Typed& tensor, int64_t at, int left, bool vectors) {
  widen(x, load_eight(tensor, at, left, vectors), tensor.dtype);
}

// One number.
__device__ __forceinline__ float load_one(const Typed& tensor, int64_t at) {
  if (tensor.dtype == DType::float32) return static_cast<const float*>(tensor.data)[at];
  const uint32_t bits = static_cast<const uint16_t*>(tensor.data)[at];
  return tensor.dtype == DType::bfloat16 ? unpack<bf16>(bits).x : unpack<f16>(bits).x;
}

__device__ __forceinline__ uint32_t narrow(float low, float high, DType dtype) {
  return dtype == DType::bfloat16 ? pack<bf16>(low, high) : pack<f16>(low, high);
}

// Writes the numbers that are `left`.
__device__ __forceinline__ void store_eight(const TypedResult& tensor, int64_t at, const float (&x)[8], int left,
                                            bool vectors) {
  if (left <= 0) return;
  const bool float32 = tensor.dtype == DType::float32;
  uint32_t r[8];
#pragma unroll
  for (int j = 0; j < 8; ++j)
    r[j] = float32 ? __float_as_uint(x[j]) : j < 4 ? narrow(x[j < 4 ? 2 * j : 0], x[j < 4 ? 2 * j + 1 : 0], tensor.dtype) : 0;
  if (vectors) {
    auto* p = reinterpret_cast<uint4*>(static_cast<unsigned char*>(tensor.data) + at * (float32 ? 4 : 2));
    p[0] = uint4{r[0], r[1], r[2], r[3]};
    if (float32) p[1] = uint4{r[4], r[5], r[6], r[7]};
    return;
  }
#pragma unroll 1
  for (int j = 0; j < min(left, 8); ++j) {
    if (float32) {
      static_cast<uint32_t*>(tensor.data)[at + j] = r[0];
#pragma unroll
      for (int k = 0; k < 7; ++k) r[k] = r[k + 1];
    } else {
      static_cast<uint16_t*>(tensor.data)[at + j] = static_cast<uint16_t>(r[0]);
#pragma unroll
      for (int k = 0; k < 4; ++k) r[k] = r[k] >> 16 | (k < 3 ? r[k + 1] : 0) << 16;
    }
  }
}

__device__ __forceinline__ void store_one(const TypedResult& tensor, int64_t at, float x) {
  if (tensor.dtype == DType::float32)
    static_cast<float*>(tensor.data)[at] = x;
  else
    static_cast<uint16_t*>(tensor.data)[at] = static_cast<uint16_t>(narrow(x, 0.0f, tensor.dtype));
}

// What a tensor of this dtype, of 16 bits, keeps of eight numbers.
__device__ __forceinline__ void round_to(float (&x)[8], DType dtype) {
  const Eight e{{narrow(x[0], x[1], dtype), narrow(x[2], x[3], dtype), narrow(x[4], x[5], dtype), narrow(x[6], x[7], dtype)},
                {}};
  widen(x, e, dtype);
}

// ---- On the host --------------------------------------------------------------------------------------------------------

inline bool is_float(DType dtype) { return dtype != DType::float64; }
inline int bytes_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }
inline constexpr const char* kNoFloat64 = "there is no kernel for float64";

// Whether the rows of a map, of so many channels, begin at multiples of 16 bytes and are whole chunks of eight numbers.
template <class Pointer>
bool has_vectors(const Map<Pointer>& map, DType dtype, int64_t channels) {
  const int64_t size = bytes_of(dtype);
  return channels % 8 == 0 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && map.batch_stride * size % 16 == 0 &&
         map.row_stride * size % 16 == 0 && map.column_stride * size % 16 == 0;
}

}  // namespace hifuse::cuda
