// One kernel for each kind of mistake, which must be caught; without the mistake it must pass, in all six runs.
#include "test.h"

namespace hifuse::emulation::tests {
namespace {

using namespace cuda;

// Sums of neighbours: every thread loads 16 bytes, stage after stage, and adds those of the thread beside it.
enum class Pipe { right, no_barrier_after, no_barrier_before, no_wait, no_last_wait };

template <Pipe kMistake>
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
    if (step < p.steps) cp_async_16(s.stage[step % kStages][threadIdx.x], p.in + (step * kThreads + threadIdx.x) * 4, true);
    cp_async_commit();
  }
  static __device__ void run(const Params& p, Shared& s) {
    load(p, s, 0);
    for (int step = 0; step < p.steps; ++step) {
      load(p, s, step + 1);
      if (kMistake != Pipe::no_wait) cp_async_wait<1>();
      if (kMistake != Pipe::no_barrier_after) __syncthreads();
      const float* other = s.stage[step % kStages][(threadIdx.x + 37) % kThreads];
      p.out[(blockIdx.x * p.steps + step) * kThreads + threadIdx.x] = other[0] + other[1] + other[2] + other[3];
      if (kMistake != Pipe::no_barrier_before) __syncthreads();
    }
    if (kMistake == Pipe::no_last_wait) load(p, s, 0);
    if (kMistake == Pipe::no_wait) cp_async_wait<0>();
  }
};

template <Pipe kMistake>
void pipeline(const char* words, int steps = 5) {
  for (const Options& run : all_runs()) {
    options() = run;
    Device<float> in(5 * 64 * 4, false), out(2 * 5 * 64);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 101);
    launch<Pipeline<kMistake>>(2, {in.data(), out.data(), steps}, nullptr);
    const auto found = errors();
    const bool right = words ? contains(found, words) : found.empty();
    if (!right) print(found);
    CHECK(right);
  }
}

}  // namespace

void test_mistakes() {
  pipeline<Pipe::right>(nullptr);
  pipeline<Pipe::no_barrier_after>("no barrier orders");
  pipeline<Pipe::no_barrier_before>("overwrites");
  pipeline<Pipe::no_wait>("nobody has waited for it");
  pipeline<Pipe::no_last_wait>("ends and has not waited");
}

}  // namespace hifuse::emulation::tests
