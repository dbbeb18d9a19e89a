// The mistakes that Hopper's engines allow: each must be caught; the same kernel without it must pass, in all six runs.
#include <ptx_hopper.cuh>

#include "test.h"

namespace hifuse::emulation::tests {
namespace {

using namespace cuda;

enum class Mistake {
  none,
  no_wait_for_full,
  no_wait_for_empty,
  released_too_early,
  no_last_wait,
  used_before_wait,
  no_register_fence,
  no_store_fence,
  too_many_bytes,
  too_few_bytes,
  no_barrier_after_init,
  not_made,
  arrives_twice,
  no_wait_for_copy,
};

// One warpgroup asks for tiles, another one multiplies: out = the sum over tiles of a tile by the weight.
template <Mistake kMistake>
struct Products {
  static constexpr const char* kName = "products";
  static constexpr int kThreads = 256, kBlocks = 1, kStages = 2, kN = 64;
  struct Params {
    TensorMap tiles;         // [64, 64 steps]
    const uint16_t* weight;  // [kN, 64], swizzled already
    float* out;              // [128, kN / 2]
    int steps;
  };
  struct Shared {
    alignas(1024) uint16_t tile[kStages][64 * 64];
    alignas(1024) uint16_t weight[kN * 64];
    uint64_t full[kStages], empty[kStages];
  };

  static __device__ void produce(const Params& p, Shared& s) {
    for (int step = 0; step < p.steps; ++step) {
      const int stage = step % kStages;
      if (kMistake != Mistake::no_wait_for_empty) mbarrier_wait(&s.empty[stage], (step / kStages & 1) ^ 1);
      const unsigned bytes = sizeof s.tile[0];
      mbarrier_expect(&s.full[stage], kMistake == Mistake::too_many_bytes  ? bytes + 16
                                      : kMistake == Mistake::too_few_bytes ? 16
                                                                           : bytes);
      copy_tile(s.tile[stage], &p.tiles, step * 64, 0, &s.full[stage]);
    }
    if (kMistake == Mistake::no_wait_for_copy) {
      mbarrier_wait(&s.empty[p.steps % kStages], (p.steps / kStages & 1) ^ 1);
      copy_tile(s.tile[p.steps % kStages], &p.tiles, 0, 0, &s.full[p.steps % kStages]);
    }
  }

  static __device__ void consume(const Params& p, Shared& s) {
    const int t = threadIdx.x % 128;
    float d[kN / 2];
    for (float& x : d) x = 0.0f;
    for (int step = 0; step < p.steps; ++step) {
      const int stage = step % kStages;
      if (kMistake != Mistake::no_wait_for_full) mbarrier_wait(&s.full[stage], step / kStages & 1);
      if (kMistake != Mistake::no_register_fence) wgmma_fence();
      for (int k = 0; k < 64; k += 16) wgmma<bf16, kN>(d, describe(s.tile[stage], k), describe(s.weight, k), true);
      wgmma_commit();
      if (kMistake == Mistake::released_too_early) {
        if (t == 0) mbarrier_arrive(&s.empty[stage]);
        wgmma_wait<0>();
        continue;
      }
      wgmma_wait<1>();
      if (kMistake == Mistake::used_before_wait) d[0] += 1.0f;
      if (step > 0 && t == 0) mbarrier_arrive(&s.empty[(step - 1) % kStages]);
      if (kMistake == Mistake::arrives_twice && step > 0 && t == 1) mbarrier_arrive(&s.empty[(step - 1) % kStages]);
    }
    if (kMistake != Mistake::no_last_wait) wgmma_wait<0>();
    if (kMistake == Mistake::no_wait_for_copy && t == 0) mbarrier_arrive(&s.empty[(p.steps - 1) % kStages]);
    for (int i = 0; i < kN / 2; ++i) p.out[t * (kN / 2) + i] = d[i];
  }

  static __device__ void run(const Params& p, Shared& s) {
    if (threadIdx.x == 0 && kMistake != Mistake::not_made) {
      for (int i = 0; i < kStages; ++i) {
        mbarrier_init(&s.full[i], 1);
        mbarrier_init(&s.empty[i], 1);
      }
      fence_mbarrier_init();
    }
    if (kMistake == Mistake::no_barrier_after_init && threadIdx.x == 255) mbarrier_wait(&s.full[0], 1);
    for (int i = threadIdx.x; i < kN * 64; i += kThreads) s.weight[i] = p.weight[i];
    if (kMistake != Mistake::no_store_fence) fence_async_shared();
    __syncthreads();
    if (threadIdx.x / 128)
      consume(p, s);
    else if (threadIdx.x == 0)
      produce(p, s);
  }
};

}  // namespace

void test_mistakes_hopper() {
  constexpr int kSteps = 5;
  Device<uint16_t> in(64 * 64 * kSteps, false), weight(64 * 64, false);
  Device<float> out(128 * 32);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(pack<bf16>(static_cast<float>(i * 7 % 23), 0));
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<uint16_t>(pack<bf16>(static_cast<float>(i * 5 % 19), 0));
  TensorMap map{};
  CHECK(!map_matrix(map, in.data(), 64, 64 * kSteps, 64 * kSteps, 64));
  CHECK((passes_always<Products<Mistake::none>>(1, {map, weight.data(), out.data(), kSteps}, out)));
#define HIFUSE_CAUGHT(mistake, words) \
  CHECK((caught<Products<Mistake::mistake>>(words, 1, {map, weight.data(), out.data(), kSteps})))
  constexpr const char* kAnything = "products, block (0, 0, 0): ";
  HIFUSE_CAUGHT(no_wait_for_full, "reads byte 0 of shared memory");
  HIFUSE_CAUGHT(no_wait_for_empty, kAnything);
  HIFUSE_CAUGHT(released_too_early, "overwrites byte");
  HIFUSE_CAUGHT(no_last_wait, "has not waited for the product");
  HIFUSE_CAUGHT(used_before_wait, "were changed while it was under way");
  HIFUSE_CAUGHT(no_register_fence, "wgmma_fence is missing");
  HIFUSE_CAUGHT(no_store_fence, "fence_async_shared is missing");
  HIFUSE_CAUGHT(too_many_bytes, "deadlock");
  HIFUSE_CAUGHT(too_few_bytes, "deadlock");
  HIFUSE_CAUGHT(no_barrier_after_init, "uses an mbarrier");
  HIFUSE_CAUGHT(not_made, "that nobody has made");
  HIFUSE_CAUGHT(arrives_twice, kAnything);
  HIFUSE_CAUGHT(no_wait_for_copy, "nobody has waited for the copy");
#undef HIFUSE_CAUGHT
  forget();
}

}  // namespace hifuse::emulation::tests
