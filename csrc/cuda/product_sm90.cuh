// What the products for sm_90a share: the ring through which tiles come to them, and what follows a product.
//
// A block has a warpgroup that fills the ring, by one thread and the copy engine, and two that multiply: wgmma reads tiles in
// shared memory by itself, while the next ones are on their way. Blocks stay, as many as there are multiprocessors, and take
// one tile of results after the other, so that the ring never runs dry in between.
#pragma once
#include <cstdint>
#include <launch.cuh>
#include <ptx_hopper.cuh>

#include "activation.cuh"
#include "arguments.h"

namespace hifuse::cuda {

inline constexpr int kWarpgroup = 128;       // threads
inline constexpr int kSlab = 64;             // numbers of a row of a tile: 128 bytes
inline constexpr int kProductDepth = 16;     // of them, that a product takes
inline constexpr int kRowsOfWarpgroup = 64;  // of a product

// So many rows of 64 numbers of 16 bits, as the copy engine lays them.
template <int kRows>
struct alignas(1024) Slab {
  static constexpr unsigned kBytes = kRows * kSlab * 2;
  unsigned char bytes[kBytes];
  __device__ __forceinline__ unsigned char* row(int i) { return bytes + i * kSlab * 2; }
};

// ---- The ring ---------------------------------------------------------------------------------------------------------------

// kStages tiles, each filled anew when all kReaders warpgroups have read it. Each warp says so: PTX promises of a wait for
// products only that those of the warp itself have ended.
template <class Tile, int kStages, int kReaders>
struct Ring {
  Tile tile[kStages];
  uint64_t full[kStages], empty[kStages];

  // By one thread, ahead of a barrier of the block.
  __device__ __forceinline__ void make() {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], kReaders * kWarpgroup / 32);
    }
    fence_mbarrier_init();
  }
};

// Where a thread or a warpgroup is on its way round.
template <int kStages>
struct Place {
  int stage = 0;
  unsigned parity = 0;  // of the round

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// The thread that fills the tiles.
template <class Tile, int kStages, int kReaders>
struct Writer {
  Ring<Tile, kStages, kReaders>& ring;
  Place<kStages> place{};

  // Waits for the next tile to be free. `start(tile, full)` starts copies of so many bytes, which `full` counts.
  template <class Start>
  __device__ __forceinline__ void fill(unsigned bytes, const Start& start) {
    mbarrier_wait(&ring.empty[place.stage], place.parity ^ 1);
    mbarrier_expect(&ring.full[place.stage], bytes);
    start(ring.tile[place.stage], &ring.full[place.stage]);
    place.advance();
  }
};

// A warpgroup that multiplies with the tiles. The products of one tile go on while those of the next one are started.
template <class Tile, int kStages, int kReaders>
struct Reader {
  Ring<Tile, kStages, kReaders>& ring;
  Place<kStages> place{};
  int read = -1;  // the stage that products under way read, if any

  // Waits for the next tile, and `start(tile)` starts products with it.
  template <class Start>
  __device__ __forceinline__ void multiply(const Start& start) {
    mbarrier_wait(&ring.full[place.stage], place.parity);
    wgmma_fence();
    start(ring.tile[place.stage]);
    wgmma_commit();
    wgmma_wait<1>();
    release();
    read = place.stage;
    place.advance();
  }

  // Waits for all products.
  __device__ __forceinline__ void finish() {
    wgmma_wait<0>();
    release();
    read = -1;
  }

 private:
  // Of the tile before, whose products have ended.
  __device__ __forceinline__ void release() {
    if (read >= 0 && threadIdx.x % 32 == 0) mbarrier_arrive(&ring.empty[read]);
  }
};

// What a block does: one thread of its first warpgroup fills the ring, `Kernel::copy`, and the others multiply,
// `Kernel::multiply`. These have the registers that the first one does not need.
template <class Kernel>
__device__ __forceinline__ void run_warpgroups(const typename Kernel::Params& p, typename Kernel::Shared& shared) {
  if (threadIdx.x == 0) shared.ring.make();
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    fewer_registers<24>();
    if (threadIdx.x == 0) Kernel::copy(p, shared);
  } else {
    more_registers<240>();
    Kernel::multiply(p, shared);
  }
}

// ---- What follows a product -------------------------------------------------------------------------------------------------

// out = residual + act(sums + bias), rounded once, as in product_results.cuh. Maps are [rows, columns]; columns are a multiple
// of 8.
struct Finish {
  const unsigned char* bias;      // or null
  const unsigned char* residual;  // or null
  unsigned char* out;
  int rows, columns;
};

// Two numbers from an even place on.
template <class T>
__device__ __forceinline__ float2 pair_at(const unsigned char* numbers, int64_t at) {
  return unpack<T>(*reinterpret_cast<const uint32_t*>(numbers + at * 2));
}

// The accumulators of a warpgroup, whose 64 rows begin at `row` and whose kColumns columns begin at `column`.
//
// Of two tiles of 8 columns, an even lane takes the first and an odd lane the second: each gives its neighbour what that one
// takes. So a lane has 4 numbers side by side, and 4 lanes have 32 bytes of a row.
template <class T, int kColumns, Activation kActivation>
__device__ __forceinline__ void finish(const Finish& f, const float (&sums)[kColumns / 2], int row, int column) {
  static_assert(kColumns % 16 == 0 && kActivation != Activation::relu);
  const int lane = threadIdx.x % 32, odd = lane & 1;
  row += threadIdx.x % kWarpgroup / 32 * 16 + lane / 4;
  column += 8 * odd + 2 * (lane & 2);
#pragma unroll
  for (int j = 0; j < kColumns / 8; j += 2)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* const first = &sums[4 * j + 2 * half];
      const float given[2] = {odd ? first[0] : first[4], odd ? first[1] : first[5]};
      const float taken[2] = {__shfl_xor_sync(0xffffffffu, given[0], 1), __shfl_xor_sync(0xffffffffu, given[1], 1)};
      float x[4] = {odd ? taken[0] : first[0], odd ? taken[1] : first[1], odd ? first[4] : taken[0], odd ? first[5] : taken[1]};
      const int r = row + 8 * half, c = column + 8 * j;
      if (r >= f.rows || c >= f.columns) continue;
      const int64_t at = int64_t(r) * f.columns + c;
      uint32_t words[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float2 y = {x[2 * i], x[2 * i + 1]};
        if (f.bias != nullptr) {
          const float2 bias = pair_at<T>(f.bias, c + 2 * i);
          y = {y.x + bias.x, y.y + bias.y};
        }
        if constexpr (kActivation == Activation::gelu) y = {gelu<T>(y.x), gelu<T>(y.y)};
        if (f.residual != nullptr) {
          const float2 residual = pair_at<T>(f.residual, at + 2 * i);
          y = {residual.x + y.x, residual.y + y.y};
        }
        words[i] = pack<T>(y.x, y.y);
      }
      *reinterpret_cast<uint2*>(f.out + at * 2) = {words[0], words[1]};
    }
}

}  // namespace hifuse::cuda
