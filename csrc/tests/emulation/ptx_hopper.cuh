// The twins of csrc/cuda/ptx_hopper.cuh, which documents them.
#pragma once
#include <ptx.cuh>
#include <tensor_map.cuh>

namespace hifuse::cuda {

void mbarrier_init(uint64_t* bar, unsigned arrivals);
inline void fence_mbarrier_init() {}
void mbarrier_arrive(uint64_t* bar);
void mbarrier_expect(uint64_t* bar, unsigned bytes);
void mbarrier_wait(uint64_t* bar, unsigned parity);
void fence_async_shared();

template <int kRegisters>
void fewer_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void more_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}

void copy_tile(void* shared, const TensorMap* map, int x, int y, uint64_t* bar);
void copy_pixels(void* shared, const TensorMap* map, int c, int x, int y, int n, int dx, int dy, uint64_t* bar);

uint64_t describe(const void* tile, int first);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);
template <int kPending>
__forceinline__ void wgmma_wait() {
  wgmma_wait(kPending);
}

template <int N>
__forceinline__ void settle(float (&)[N]) {}

template <class T>
void wgmma(float* d, int columns, uint64_t a, uint64_t b, bool add);
template <class T>
void wgmma(float* d, int columns, const uint32_t* a, uint64_t b, bool add);

template <class T, int N>
__forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(N == 64 || N == 96 || N == 128 || N == 144);
  wgmma<T>(&d[0], N, a, b, add);
}
template <class T, int N>
__forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(N == 64 || N == 96 || N == 128 || N == 144);
  wgmma<T>(&d[0], N, &a[0], b, add);
}

}  // namespace hifuse::cuda
