// Tensor copies, mbarriers and warpgroup products of sm_90a.
#include <ptx_hopper.cuh>
#include <utility>

#include "run.h"

namespace hifuse::conformance {
namespace {

using namespace cuda;

// A box, as it lies in shared memory.
template <bool kPixels>
struct Box {
  static constexpr const char* kName = "box";
  static constexpr int kThreads = 128, kBlocks = 1, kRows = 32;
  struct Params {
    TensorMap map;
    int c, x, y, n, dx, dy;
    uint32_t* out;  // [kRows, 32]
  };
  struct Shared {
    alignas(1024) uint32_t box[kRows * 32];
    uint64_t full;
  };
  static __device__ void run(const Params& p, Shared& s) {
    if (threadIdx.x == 0) {
      mbarrier_init(&s.full, 1);
      fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      mbarrier_expect(&s.full, sizeof s.box);
      if constexpr (kPixels)
        copy_pixels(s.box, &p.map, p.c, p.x, p.y, p.n, p.dx, p.dy, &s.full);
      else
        copy_tile(s.box, &p.map, p.x, p.y, &s.full);
    }
    mbarrier_wait(&s.full, 0);
    for (int i = threadIdx.x; i < kRows * 32; i += kThreads) p.out[i] = s.box[i];
  }
};

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

void add_tiles(std::vector<Case>& cases) {
  constexpr int kRows = 40, kColumns = 88, kStride = 96;
  Buffer<uint32_t> in(random_words(kRows * kStride / 2));
  Case found{"copy_tile", 0.0, {}};
  for (const auto& [x, y] : std::initializer_list<std::pair<int, int>>{{0, 0}, {24, 8}, {40, 20}, {-16, -3}, {8, 39}}) {
    Buffer<uint32_t> out(Box<false>::kRows * 32);
    Box<false>::Params p{{}, 0, x, y, 0, 0, 0, out.data()};
    check(map_matrix(p.map, in.data(), kRows, kColumns, kStride, Box<false>::kRows));
    run<Box<false>>(1, p);
    const auto words = out.values();
    found.words.insert(found.words.end(), words.begin(), words.end());
  }
  cases.push_back(found);
}

void add_pixels(std::vector<Case>& cases) {
  constexpr int kImages = 3, kHeight = 5, kWidth = 7, kChannels = 72;
  Buffer<uint32_t> in(random_words(kImages * kHeight * kWidth * kChannels / 2));
  Case found{"copy_pixels", 0.0, {}};
  for (const int pixel : {0, 17, 60, 90})
    for (int tap = 0; tap < 9; ++tap) {
      Buffer<uint32_t> out(Box<true>::kRows * 32);
      const int n = pixel / (kHeight * kWidth), y = pixel / kWidth % kHeight - 1, x = pixel % kWidth - 1;
      Box<true>::Params p{{}, tap % 2 * 16, x, y, n, tap % 3, tap / 3, out.data()};
      check(map_images(p.map, in.data(), kImages, kHeight, kWidth, kChannels, Box<true>::kRows));
      run<Box<true>>(1, p);
      const auto words = out.values();
      found.words.insert(found.words.end(), words.begin(), words.end());
    }
  cases.push_back(found);
}

// One warpgroup copies tiles, another one multiplies them, in turns over two stages; registers move from one to the other. With
// both operands in shared memory, the products of one tile are under way when those of the next one start.
template <class T, int N, bool kRegisters>
struct Products {
  static constexpr const char* kName = "products";
  static constexpr int kThreads = 256, kBlocks = 1, kStages = 2, kSteps = 5, kPending = kRegisters ? 0 : 1;
  struct Params {
    TensorMap a, b;               // [64, 64 kSteps], [N, 64 kSteps]
    const uint16_t* a_in_memory;  // a again, for operands in registers
    float* out;                   // [128, N / 2]
  };
  struct Shared {
    alignas(1024) uint16_t a[kStages][64 * 64];
    alignas(1024) uint16_t b[kStages][N * 64];
    uint64_t full[kStages], empty[kStages];
  };

  static __device__ void produce(const Params& p, Shared& s) {
    for (int step = 0; step < kSteps; ++step) {
      const int stage = step % kStages;
      mbarrier_wait(&s.empty[stage], (step / kStages & 1) ^ 1);
      mbarrier_expect(&s.full[stage], sizeof s.a[0] + sizeof s.b[0]);
      copy_tile(s.a[stage], &p.a, step * 64, 0, &s.full[stage]);
      copy_tile(s.b[stage], &p.b, step * 64, 0, &s.full[stage]);
    }
  }

  static __device__ void operands(const Params& p, int first, uint32_t (&a)[4]) {
    const int warp = threadIdx.x % 128 / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = warp * 16 + g + i % 2 * 8, column = first + 2 * t + i / 2 * 8;
      a[i] = *reinterpret_cast<const uint32_t*>(p.a_in_memory + row * 64 * kSteps + column);
    }
  }

  static __device__ void consume(const Params& p, Shared& s) {
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = static_cast<float>(i);
    for (int step = 0; step < kSteps; ++step) {
      const int stage = step % kStages;
      uint32_t a[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) operands(p, step * 64 + k * 16, a[k]);
      mbarrier_wait(&s.full[stage], step / kStages & 1);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if constexpr (kRegisters)
          wgmma<T, N>(d, a[k], describe(s.b[stage], k * 16), true);
        else
          wgmma<T, N>(d, describe(s.a[stage], k * 16), describe(s.b[stage], k * 16), step != 1 || k > 0);  // begins anew once
      }
      wgmma_commit();
      wgmma_wait<kPending>();
      if (step >= kPending && threadIdx.x % 32 == 0) mbarrier_arrive(&s.empty[(step - kPending) % kStages]);
    }
    wgmma_wait<0>();
    settle(d);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) p.out[threadIdx.x % 128 * (N / 2) + i] = d[i];
  }

  static __device__ void run(const Params& p, Shared& s) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        mbarrier_init(&s.full[i], 1);
        mbarrier_init(&s.empty[i], 4);  // warps
      }
      fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x / 128) {
      more_registers<160>();
      consume(p, s);
    } else {
      fewer_registers<40>();
      if (threadIdx.x == 0) produce(p, s);
    }
  }
};

template <class T, int N, bool kRegisters>
void add_products(std::vector<Case>& cases, const char* name) {
  using Kernel = Products<T, N, kRegisters>;
  constexpr int kDepth = 64 * Kernel::kSteps;
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  Buffer<uint16_t> a(small_numbers(64 * kDepth, kBf16, 7)), b(small_numbers(N * kDepth, kBf16, 8));
  Buffer<float> out(128 * N / 2);
  typename Kernel::Params p{{}, {}, a.data(), out.data()};
  check(map_matrix(p.a, a.data(), 64, kDepth, kDepth, 64));
  check(map_matrix(p.b, b.data(), N, kDepth, kDepth, N));
  run<Kernel>(1, p);
  cases.push_back({name, 0.0, words_of(out.values())});
}

// Numbers that threads store themselves, and a product reads: the fence between the two.
struct Stored {
  static constexpr const char* kName = "stored";
  static constexpr int kThreads = 128, kBlocks = 1;
  struct Params {
    const uint32_t* in;  // [2, 64, 32]: swizzled already
    float* out;
  };
  struct Shared {
    alignas(1024) uint32_t a[64 * 32];
    alignas(1024) uint32_t b[64 * 32];
  };
  static __device__ void run(const Params& p, Shared& s) {
    for (int i = threadIdx.x; i < 64 * 32; i += kThreads) {
      s.a[i] = p.in[i];
      s.b[i] = p.in[64 * 32 + i];
    }
    fence_async_shared();
    __syncthreads();
    float d[32];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma<f16, 64>(d, describe(s.a, k * 16), describe(s.b, k * 16), k > 0);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 32; ++i) p.out[threadIdx.x * 32 + i] = d[i];
  }
};

void add_stored(std::vector<Case>& cases) {
  Buffer<uint32_t> in(words_of(small_numbers(2 * 64 * 64, false, 9)));
  Buffer<float> out(128 * 32);
  run<Stored>(1, {in.data(), out.data()});
  cases.push_back({"fence_async_shared", 0.0, words_of(out.values())});
}

}  // namespace

void add_hopper(std::vector<Case>& cases) {
  add_tiles(cases);
  add_pixels(cases);
  add_products<bf16, 64, false>(cases, "wgmma bf16, 64 columns");
  add_products<f16, 64, true>(cases, "wgmma f16, 64 columns, registers");
  add_products<f16, 96, false>(cases, "wgmma f16, 96 columns");
  add_products<bf16, 96, true>(cases, "wgmma bf16, 96 columns, registers");
  add_products<bf16, 128, false>(cases, "wgmma bf16, 128 columns");
  add_products<f16, 128, true>(cases, "wgmma f16, 128 columns, registers");
  add_products<f16, 144, false>(cases, "wgmma f16, 144 columns");
  add_products<bf16, 144, true>(cases, "wgmma bf16, 144 columns, registers");
  add_stored(cases);
}

}  // namespace hifuse::conformance
