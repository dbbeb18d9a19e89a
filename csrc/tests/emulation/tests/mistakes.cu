// One kernel for each kind of mistake, which must be caught; the same kernel without it must pass, in all six runs.
#include "test.h"

namespace hifuse::emulation::tests {
namespace {

using namespace cuda;

enum class Mistake {
  none,
  no_barrier_after,
  no_barrier_before,
  no_wait,
  no_last_wait,
  no_zeros,
  no_syncwarp,
  divergent_barrier,
  missing_threads,
  divergent_collective,
  missing_lane,
  partial_mask,
  too_few_for_barrier,
  beyond_shared,
  misaligned,
};

// A pipeline of two stages: every thread copies 16 bytes and sums those of the thread beside it.
template <Mistake kMistake>
struct Pipeline {
  static constexpr const char* kName = "pipeline";
  static constexpr int kThreads = 64, kBlocks = 1, kStages = 2;
  struct Params {
    const float* in;
    float* out;
    int steps;
  };
  struct Shared {
    float stage[kStages][kThreads][4];
  };
  static __device__ void load(const Params& p, Shared& s, int step) {
    if (step < p.steps) {
      const float* from = p.in + (step * kThreads + threadIdx.x) * 4 + (kMistake == Mistake::misaligned);
      cp_async_16(s.stage[step % kStages][threadIdx.x], from, true);
    }
    cp_async_commit();
  }
  static __device__ void run(const Params& p, Shared& s) {
    load(p, s, 0);
    for (int step = 0; step < p.steps; ++step) {
      load(p, s, step + 1);
      if (kMistake != Mistake::no_wait) cp_async_wait<1>();
      if (kMistake != Mistake::no_barrier_after) __syncthreads();
      const float* other = s.stage[step % kStages][(threadIdx.x + 37) % kThreads];
      p.out[(blockIdx.x * p.steps + step) * kThreads + threadIdx.x] = other[0] + other[1] + other[2] + other[3];
      if (kMistake != Mistake::no_barrier_before) __syncthreads();
    }
    if (kMistake == Mistake::no_last_wait) {
      load(p, s, 0);
      cp_async_wait<1>();
    }
    if (kMistake == Mistake::no_wait) cp_async_wait<0>();
  }
};

void test_pipeline() {
  constexpr int kSteps = 5;
  Device<float> in(kSteps * 64 * 4, false), out(2 * kSteps * 64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 101);
  const auto params = [&]<Mistake m>() { return typename Pipeline<m>::Params{in.data(), out.data(), kSteps}; };
  CHECK((passes_always<Pipeline<Mistake::none>>(2, params.operator()<Mistake::none>(), out)));
#define HIFUSE_CAUGHT(mistake, words) \
  CHECK((caught<Pipeline<Mistake::mistake>>(words, 2, params.operator()<Mistake::mistake>())))
  HIFUSE_CAUGHT(no_barrier_after, "no barrier orders the two");
  HIFUSE_CAUGHT(no_barrier_before, "overwrites");
  HIFUSE_CAUGHT(no_wait, "nobody has waited for it");
  HIFUSE_CAUGHT(no_last_wait, "ends and has not waited for the copy");
  HIFUSE_CAUGHT(misaligned, "no multiple of 16");
#undef HIFUSE_CAUGHT
  // With one step, no place is used twice, and the barrier before the reuse of a stage is not missed.
  stages_used_once();
  CHECK((passes<Pipeline<Mistake::no_barrier_before>>(1, {in.data(), out.data(), 1})));
  CHECK(contains(stages_used_once(), "pipeline"));
  forget();
}

// A message names the kernel, the block, the threads and both places; these are addresses where addr2line is missing. Returns
// whether they are lines.
bool test_message() {
  using Kernel = Pipeline<Mistake::no_wait>;
  Device<float> in(64 * 4, false), out(64);
  launch<Kernel>(1, {in.data(), out.data(), 1}, nullptr);
  const auto found = errors();
  CHECK(contains(found, "pipeline, block (0, 0, 0): thread "));
  const bool lines = contains(found, " of shared memory at mistakes.cu:") && contains(found, " started at mistakes.cu:");
  CHECK(lines || (contains(found, " of shared memory at 0x") && contains(found, " started at 0x")));
  forget();
  return lines;
}

// A warp's own tile of shared memory, read as a matrix, of which the last rows are zero.
template <Mistake kMistake>
struct Tile {
  static constexpr const char* kName = "tile";
  static constexpr int kThreads = 32, kBlocks = 1, kRows = 25;
  struct Params {
    uint32_t* out;
  };
  struct Shared {
    alignas(16) uint32_t rows[32][4];
  };
  static __device__ void run(const Params& p, Shared& s) {
    const int lane = threadIdx.x, other = (lane + 1) % 32;
    for (int i = 0; i < 4; ++i)
      if (lane < kRows || kMistake != Mistake::no_zeros) s.rows[lane][i] = lane < kRows ? lane * 4 + i : 0;
    if (kMistake != Mistake::no_syncwarp) __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, s.rows[lane]);
    for (int i = 0; i < 4; ++i) p.out[lane * 4 + i] = r[i];
    __syncwarp();
    s.rows[other][0] = lane;
    if (kMistake == Mistake::beyond_shared) s.rows[lane + 1][0] = 0;
    __syncwarp();
    p.out[lane * 4] += s.rows[lane][0];
  }
};

// Threads that should meet.
template <Mistake kMistake>
struct Meeting {
  static constexpr const char* kName = "meeting";
  static constexpr int kThreads = 64, kBlocks = 1;
  struct Params {
    int* out;
  };
  struct Shared {
    int sum[kThreads];
  };
  static __device__ void run(const Params& p, Shared& s) {
    const int t = threadIdx.x;
    s.sum[t] = t;
    if (kMistake == Mistake::divergent_barrier && t < 32) {
      __syncthreads();
    } else if (kMistake != Mistake::missing_threads || t != 7) {
      __syncthreads();
    }
    int mine = s.sum[(t + 1) % kThreads];
    if (kMistake == Mistake::divergent_collective && t % 2)
      mine += __shfl_sync(0xffffffffu, mine, 0);
    else if (kMistake != Mistake::missing_lane || t != 9)
      mine += __shfl_xor_sync(kMistake == Mistake::partial_mask ? 0xffffu : 0xffffffffu, mine, 1);
    if (kMistake == Mistake::too_few_for_barrier) {
      if (t < 32) named_barrier<64>(2);
    } else if (t >= 32) {
      named_barrier<32>(1);
    }
    p.out[t] = mine;
  }
};

}  // namespace

void test_mistakes() {
  test_pipeline();
  const bool lines = test_message();
  {
    Device<uint32_t> out(128);
    CHECK((passes_always<Tile<Mistake::none>>(1, {out.data()}, out)));
    CHECK((caught<Tile<Mistake::no_zeros>>("which nobody has written", 1, {out.data()})));
    CHECK((caught<Tile<Mistake::no_syncwarp>>("no barrier orders the two", 1, {out.data()})));
    CHECK((caught<Tile<Mistake::beyond_shared>>("at byte 512 of shared memory", 1, {out.data()})));
    forget();
  }
  {
    Device<int> out(64);
    CHECK((passes_always<Meeting<Mistake::none>>(1, {out.data()}, out)));
    if (lines) CHECK((caught<Meeting<Mistake::divergent_barrier>>("part before a barrier", 1, {out.data()})));
    CHECK((caught<Meeting<Mistake::missing_threads>>("63 threads wait for __syncthreads", 1, {out.data()})));
    CHECK((caught<Meeting<Mistake::missing_lane>>("deadlock", 1, {out.data()})));
    CHECK((caught<Meeting<Mistake::divergent_collective>>("threads of a warp part", 1, {out.data()})));
    CHECK((caught<Meeting<Mistake::partial_mask>>("whole warps only", 1, {out.data()})));
    CHECK((caught<Meeting<Mistake::too_few_for_barrier>>("deadlock: 32 threads wait for named_barrier", 1, {out.data()})));
    forget();
  }
}

}  // namespace hifuse::emulation::tests
