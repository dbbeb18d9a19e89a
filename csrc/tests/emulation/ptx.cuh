// The twins of csrc/cuda/ptx.cuh, which documents them. They are declared here and compiled apart: the instrumentation of
// kernels must not see what a twin reads and writes for other lanes.
#pragma once
#include <cstdint>
#include <storage.cuh>

#include "cuda_host.h"

namespace hifuse::cuda {

template <class T>
uint32_t pack(float low, float high);
template <class T>
float2 unpack(uint32_t r);
uint32_t to_tf32(float x);
float exp2_fast(float x);
float reciprocal_fast(float x);
int computed_here(int x);

void cp_async_16(void* shared, const void* device, bool kept);
void cp_async_4(void* shared, const void* device, bool kept);
void cp_async_commit();
void cp_async_wait(int pending);
template <int kPending>
__forceinline__ void cp_async_wait() {
  cp_async_wait(kPending);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row);
void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row);

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

unsigned count_arrival(unsigned* counter, unsigned count);

void wait_for_earlier_launches();
inline void let_later_launches_begin() {}

void named_barrier(int id, unsigned threads);
template <int kThreads>
__forceinline__ void named_barrier(int id) {
  static_assert(kThreads > 0 && kThreads % 32 == 0);
  named_barrier(id, kThreads);
}

}  // namespace hifuse::cuda
