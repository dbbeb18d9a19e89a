// Inline PTX that came with sm_90, as functions; wgmma and setmaxnreg are of sm_90a alone. ptx.cuh says how fragments are
// described, and where the twins of the tests are.
#pragma once
#include <ptx.cuh>
#include <tensor_map.cuh>

namespace hifuse::cuda {

// ---- mbarrier: a barrier in shared memory that counts arrivals and bytes, phase by phase -----------------------------------

// One thread makes it, for `arrivals` a phase; then fence_mbarrier_init, and a barrier of the block before others use it.
__device__ __forceinline__ void mbarrier_init(uint64_t* bar, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives. What this thread did before is ordered before what comes behind a wait for the phase.
__device__ __forceinline__ void mbarrier_arrive(uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

// Arrives, and has the phase wait for so many bytes of copies too.
__device__ __forceinline__ void mbarrier_expect(uint64_t* bar, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}

// Waits until the phase of this parity is complete: 0 for the first phase, 1 for the second, 0 for the third. On a new barrier,
// a wait for parity 1 is over at once.
__device__ __forceinline__ void mbarrier_wait(uint64_t* bar, unsigned parity) {
  asm volatile(
      "{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra done; bra again; done: }" ::"r"(
          shared_address(bar)),
      "r"(parity)
      : "memory");
}

// Orders this thread's own stores to shared memory before what engines, wgmma among them, read of it behind the next barrier.
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Registers that warpgroups hand to each other: every warp of the warpgroup calls ---------------------------------------
template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void more_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- Tensor copies: one thread asks, an engine copies, an mbarrier counts the bytes -----------------------------------------

// A box lands in rows of 128 bytes, 64 numbers, from an address that is a multiple of 1024: chunk c of 16 bytes of row r lies
// at chunk c ^ r % 8. What lies outside of the tensor is zero; it counts as bytes all the same.

// The box of a matrix whose first number is in column x of row y.
__device__ __forceinline__ void copy_tile(void* shared, const TensorMap* map, int x, int y, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(shared)),
      "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y)
      : "memory");
}

// Channels c.. of as many pixels of the images as the map says, one in each row of the box. The pixels follow each other, row
// by row and image by image, from (x, y) of image n on, where the first pixel of a row is -1; each is shifted by (dx, dy), from
// 0.
__device__ __forceinline__ void copy_pixels(void* shared, const TensorMap* map, int c, int x, int y, int n, int dx, int dy,
                                            uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2], "
      "{%7, "
      "%8};" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(bar)), "r"(c), "r"(x), "r"(y), "r"(n), "h"(static_cast<uint16_t>(dx)),
      "h"(static_cast<uint16_t>(dy))
      : "memory");
}

// ---- Warpgroup products: 128 threads, operands in shared memory in the layout of the copies above --------------------------

// Names rows of 64 numbers from `tile` on, a multiple of 1024; a product takes 16 of the numbers, from number `first`.
__device__ __forceinline__ uint64_t describe(const void* tile, int first) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kEightRows = uint64_t(1024 / 16) << 32, kUnused = uint64_t(1) << 16;
  return kSwizzle128 | kEightRows | kUnused | ((shared_address(tile) + first * 2) >> 4 & 0x3fff);
}

// Before the first product, and wherever other instructions have changed accumulators or operands in registers.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Makes a group of the products since the last one.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the latest groups are under way. Before that, accumulators must not be touched, and nothing
// may be written over operands.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Behind a wait for the products whose accumulators these are: the compiler reads them from here on, and not sooner.
template <int N>
__device__ __forceinline__ void settle(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The names and the operands of a thread's accumulators.
#define HIFUSE_ONES "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9"
#define HIFUSE_TENS(t) ", %" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define HIFUSE_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HIFUSE_SIXTEEN(i) HIFUSE_FOUR(i), HIFUSE_FOUR(i + 4), HIFUSE_FOUR(i + 8), HIFUSE_FOUR(i + 12)
#define HIFUSE_NAMES_64 HIFUSE_ONES HIFUSE_TENS(1) HIFUSE_TENS(2) ", %30, %31"
#define HIFUSE_NAMES_96 HIFUSE_ONES HIFUSE_TENS(1) HIFUSE_TENS(2) HIFUSE_TENS(3) ", %40, %41, %42, %43, %44, %45, %46, %47"
#define HIFUSE_NAMES_128 \
  HIFUSE_ONES HIFUSE_TENS(1) HIFUSE_TENS(2) HIFUSE_TENS(3) HIFUSE_TENS(4) HIFUSE_TENS(5) ", %60, %61, %62, %63"
#define HIFUSE_NAMES_144 \
  HIFUSE_ONES HIFUSE_TENS(1) HIFUSE_TENS(2) HIFUSE_TENS(3) HIFUSE_TENS(4) HIFUSE_TENS(5) HIFUSE_TENS(6) ", %70, %71"
#define HIFUSE_OPERANDS_64 HIFUSE_SIXTEEN(0), HIFUSE_SIXTEEN(16)
#define HIFUSE_OPERANDS_96 HIFUSE_OPERANDS_64, HIFUSE_SIXTEEN(32)
#define HIFUSE_OPERANDS_128 HIFUSE_OPERANDS_96, HIFUSE_SIXTEEN(48)
#define HIFUSE_OPERANDS_144 HIFUSE_OPERANDS_128, HIFUSE_FOUR(64), HIFUSE_FOUR(68)

// The numbers behind the accumulators' are those of the operands a, b and `add`.
#define HIFUSE_WGMMA(n, type, a_name, b_name, add_name, ...)                                                                  \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " add_name ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type \
               " {" HIFUSE_NAMES_##n "}, " a_name ", " b_name ", p, 1, 1, " __VA_ARGS__)
#define HIFUSE_WGMMA_SHARED(n, type, a_name, b_name, add_name) \
  HIFUSE_WGMMA(n, type, a_name, b_name, add_name, "0, 0;}" : HIFUSE_OPERANDS_##n : "l"(a), "l"(b), "r"(int(add)))
#define HIFUSE_WGMMA_REGISTERS(n, type, a_names, b_name, add_name)                                                           \
  HIFUSE_WGMMA(n, type, a_names, b_name, add_name, "0;}" : HIFUSE_OPERANDS_##n : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), \
               "l"(b), "r"(int(add)))

// d = a b^T, plus d if `add`; float32 sums. a is [64, 16], b [N, 16], d [64, N]. Warp w of the warpgroup holds rows 16w.. of d:
//   d[4j], d[4j + 1]: row 16w + g, columns 8j + 2t..    d[4j + 2], d[4j + 3]: row 16w + g + 8, the same columns
template <class T, int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  static_assert(N == 64 || N == 96 || N == 128 || N == 144);
#define HIFUSE_BOTH(n, ...)                            \
  if constexpr (N == n && std::is_same_v<T, bf16>)     \
    HIFUSE_WGMMA_SHARED(n, "bf16", __VA_ARGS__);       \
  else if constexpr (N == n && std::is_same_v<T, f16>) \
  HIFUSE_WGMMA_SHARED(n, "f16", __VA_ARGS__)
  HIFUSE_BOTH(64, "%32", "%33", "%34");
  HIFUSE_BOTH(96, "%48", "%49", "%50");
  HIFUSE_BOTH(128, "%64", "%65", "%66");
  HIFUSE_BOTH(144, "%72", "%73", "%74");
#undef HIFUSE_BOTH
}

// The same with a in registers: each warp's 16 rows as in mma_m16n8k16.
template <class T, int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  static_assert(N == 64 || N == 96 || N == 128 || N == 144);
#define HIFUSE_BOTH(n, ...)                            \
  if constexpr (N == n && std::is_same_v<T, bf16>)     \
    HIFUSE_WGMMA_REGISTERS(n, "bf16", __VA_ARGS__);    \
  else if constexpr (N == n && std::is_same_v<T, f16>) \
  HIFUSE_WGMMA_REGISTERS(n, "f16", __VA_ARGS__)
  HIFUSE_BOTH(64, "{%32, %33, %34, %35}", "%36", "%37");
  HIFUSE_BOTH(96, "{%48, %49, %50, %51}", "%52", "%53");
  HIFUSE_BOTH(128, "{%64, %65, %66, %67}", "%68", "%69");
  HIFUSE_BOTH(144, "{%72, %73, %74, %75}", "%76", "%77");
#undef HIFUSE_BOTH
}

#undef HIFUSE_ONES
#undef HIFUSE_TENS
#undef HIFUSE_FOUR
#undef HIFUSE_SIXTEEN
#undef HIFUSE_NAMES_64
#undef HIFUSE_NAMES_96
#undef HIFUSE_NAMES_128
#undef HIFUSE_NAMES_144
#undef HIFUSE_OPERANDS_64
#undef HIFUSE_OPERANDS_96
#undef HIFUSE_OPERANDS_128
#undef HIFUSE_OPERANDS_144
#undef HIFUSE_WGMMA
#undef HIFUSE_WGMMA_SHARED
#undef HIFUSE_WGMMA_REGISTERS

}  // namespace hifuse::cuda
