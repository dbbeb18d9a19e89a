// CUDA's words on the host: what a kernel file needs to compile with a C++ compiler. Only tests include it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline constexpr int2 make_int2(int x, int y) { return {x, y}; }
inline constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline constexpr float2 make_float2(float x, float y) { return {x, y}; }
inline constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace hifuse::emulation {
uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();

enum class Shuffle { from, exclusive_or, down, up };
void shuffle(Shuffle how, unsigned mask, uint32_t& value, int lane);
bool vote_any(unsigned mask, bool mine);
}  // namespace hifuse::emulation

#define threadIdx (::hifuse::emulation::thread_index())
#define blockIdx (::hifuse::emulation::block_index())
#define blockDim (::hifuse::emulation::block_size())
#define gridDim (::hifuse::emulation::grid_size())

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffffu);

// ---- Warps: every lane takes part ------------------------------------------------------------------------------------------
namespace hifuse::emulation {
template <class T>
__forceinline__ T shuffled(Shuffle how, unsigned mask, T value, int lane) {
  static_assert(sizeof(T) == 4, "a shuffle moves 4 bytes");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  shuffle(how, mask, bits, lane);
  std::memcpy(&value, &bits, 4);
  return value;
}
}  // namespace hifuse::emulation
template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int lane) {
  return hifuse::emulation::shuffled(hifuse::emulation::Shuffle::from, mask, value, lane);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return hifuse::emulation::shuffled(hifuse::emulation::Shuffle::exclusive_or, mask, value, lanes);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, int lanes) {
  return hifuse::emulation::shuffled(hifuse::emulation::Shuffle::down, mask, value, lanes);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, int lanes) {
  return hifuse::emulation::shuffled(hifuse::emulation::Shuffle::up, mask, value, lanes);
}
__forceinline__ int __any_sync(unsigned mask, int condition) { return hifuse::emulation::vote_any(mask, condition != 0); }
__forceinline__ int __all_sync(unsigned mask, int condition) { return !hifuse::emulation::vote_any(mask, condition == 0); }

// ---- Arithmetic ------------------------------------------------------------------------------------------------------------
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <class T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}
template <class A, class B>
__forceinline__ constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
__forceinline__ constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
