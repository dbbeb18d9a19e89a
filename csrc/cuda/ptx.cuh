// Inline PTX for sm_80 and later, as functions; ptx_hopper.cuh has what came with sm_90. No other file holds PTX.
//
// The emulation of the tests has headers of the same names, whose functions do on a CPU what the PTX ISA documents. Each
// function here has a kernel in csrc/tests/conformance, which shows that both give the same.
//
// Fragments. A lane l of a warp has the group g = l / 4 and the place t = l % 4. Two numbers of 16 bits in one register are in
// the order of memory: the first in the low half. "2t.." stands for columns 2t and 2t + 1.
#pragma once
#include <cstdint>
#include <storage.cuh>
#include <type_traits>

namespace hifuse::cuda {

// ---- Conversions -----------------------------------------------------------------------------------------------------------

// Two numbers in one register, rounded to the nearest, ties to even.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  uint32_t r;
  if constexpr (std::is_same_v<T, bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// The numbers of a register of `pack`.
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t r) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  float2 x;
  if constexpr (std::is_same_v<T, bf16>) {
    x = {__uint_as_float(r << 16), __uint_as_float(r & 0xffff0000u)};
  } else {
    asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(x.x), "=f"(x.y)
        : "r"(r));
  }
  return x;
}

// The tf32 number nearest to x, ties away from zero: a float32 whose low 13 bits are zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// 2^x with a relative error of at most 2^-22. A result below 2^-126 is zero, and so is a smaller input.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x with a relative error of at most 2^-23; of numbers below 2^-126 infinity, and zero where the result would be below
// that.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x, which the compiler takes for a new number each time: what comes of it is computed where it is used, not ahead of a loop in
// registers that are needed there.
__device__ __forceinline__ int computed_here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- Copies that go on by themselves: cp.async -----------------------------------------------------------------------------

// Where an object lies in shared memory, as instructions want it.
__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes from device to shared memory, both aligned to 16 bytes, past L1. Where `kept` is false it writes zeros and
// reads nothing. The bytes are there for the thread itself after cp_async_wait, for others after a barrier behind that.
__device__ __forceinline__ void cp_async_16(void* shared, const void* device, bool kept) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(device), "r"(kept ? 16 : 0)
               : "memory");
}

// The same for 4 bytes, aligned to 4, through L1.
__device__ __forceinline__ void cp_async_4(void* shared, const void* device, bool kept) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(device), "r"(kept ? 4 : 0)
               : "memory");
}

// Makes a group of this thread's copies since the last one; a group may be empty.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Matrices between shared memory and registers --------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit numbers. Lane l gives the address of row l % 8 of matrix l / 8, aligned to 16 bytes.
// It receives r[i]: of matrix i, row g, columns 2t...
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed: r[i] is of matrix i, rows 2t.., column g.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- Products on tensor cores ----------------------------------------------------------------------------------------------

// d += a b with float32 sums. a is [16, 16], b [16, 8], d [16, 8]; registers hold
//   a[0]: row g, columns 2t..          a[1]: row g + 8, columns 2t..
//   a[2]: row g, columns 2t + 8..      a[3]: row g + 8, columns 2t + 8..
//   b0: rows 2t.., column g            b1: rows 2t + 8.., column g
//   d[0], d[1]: row g, columns 2t..    d[2], d[3]: row g + 8, columns 2t..
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b of tf32 numbers with float32 sums; the low 13 bits of a and b are ignored. a is [16, 8], b [8, 8], d [16, 8];
//   a[0]: (row g, column t)    a[1]: (g + 8, t)    a[2]: (g, t + 4)    a[3]: (g + 8, t + 4)
//   b0: (row t, column g)      b1: (t + 4, g)      d as above
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Barriers of a part of the block ---------------------------------------------------------------------------------------

// kThreads threads, a multiple of 32, wait for each other at barrier `id`, from 1 to 15; __syncthreads has barrier 0.
template <int kThreads>
__device__ __forceinline__ void named_barrier(int id) {
  static_assert(kThreads > 0 && kThreads % 32 == 0);
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}

// ---- Blocks that meet ------------------------------------------------------------------------------------------------------

// Counts the arrivals of `count` threads of any blocks in device memory, and returns how many there were before. The counter is
// zero before the first one, and the last one sets it to zero again. What a thread did before it arrived, and what barriers
// told it of others before, is there for all that arrive later, and for those that barriers tell of their arrival. Nobody
// waits.
__device__ __forceinline__ unsigned count_arrival(unsigned* counter, unsigned count) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(count - 1) : "memory");
  return before;
}

// ---- Launches that overlap -------------------------------------------------------------------------------------------------

// Waits until the launches before this one on its stream have ended, and what they wrote is there. Where this one did not begin
// early, and before sm_90, that is so anyway.
__device__ __forceinline__ void wait_for_earlier_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the launch behind this one begin, when all blocks have come here or have ended.
__device__ __forceinline__ void let_later_launches_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace hifuse::cuda
