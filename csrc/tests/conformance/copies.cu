// Copies that go on by themselves, barriers of a part of the block, shuffles, and blocks that meet.
#include <ptx.cuh>

#include "run.h"

namespace hifuse::conformance {
namespace {

using namespace cuda;

// Steps of a pipeline of three stages: 16 bytes and 4 bytes a thread, some of them zeros; read by the thread beside it.
struct Pipeline {
  static constexpr const char* kName = "pipeline";
  static constexpr int kThreads = 128, kBlocks = 1, kStages = 3, kSteps = 8;
  struct Params {
    const uint32_t* in;  // [kSteps, kThreads, 5]: 16 bytes of each thread, then 4 of each
    uint32_t* out;       // likewise
  };
  struct Stage {
    uint4 wide[kThreads];
    uint32_t narrow[kThreads];
  };
  struct Shared {
    Stage stages[kStages];
  };
  static __device__ void load(const Params& p, Shared& s, int step) {
    const int t = threadIdx.x;
    if (step < kSteps) {
      const uint32_t* from = p.in + step * kThreads * 5;
      cp_async_16(&s.stages[step % kStages].wide[t], from + t * 4, (t + step) % 3 != 0);
      cp_async_4(&s.stages[step % kStages].narrow[t], from + kThreads * 4 + t, (t + step) % 5 != 0);
    }
    cp_async_commit();
  }
  static __device__ void run(const Params& p, Shared& s) {
    const int t = threadIdx.x, other = (t + 41) % kThreads;
    load(p, s, 0);
    load(p, s, 1);
    for (int step = 0; step < kSteps; ++step) {
      cp_async_wait<1>();
      __syncthreads();
      load(p, s, step + 2);
      uint32_t* to = p.out + step * kThreads * 5;
      *reinterpret_cast<uint4*>(to + t * 4) = s.stages[step % kStages].wide[other];
      to[kThreads * 4 + t] = s.stages[step % kStages].narrow[other];
    }
    cp_async_wait<0>();
  }
};

// Two halves of the block reverse their numbers, each behind a barrier of its own, several times.
struct Halves {
  static constexpr const char* kName = "halves";
  static constexpr int kThreads = 128, kBlocks = 1;
  struct Params {
    const uint32_t* in;
    uint32_t* out;
  };
  struct Shared {
    uint32_t numbers[2][64];
  };
  static __device__ void run(const Params& p, Shared& s) {
    const int half = threadIdx.x / 64, t = threadIdx.x % 64;
    uint32_t mine = p.in[threadIdx.x];
    for (int turn = 0; turn <= 4 + half; ++turn) {
      s.numbers[half][t] = mine + turn;
      named_barrier<64>(1 + half);
      mine = s.numbers[half][63 - t];
      named_barrier<64>(1 + half);
    }
    mine ^= __shfl_xor_sync(0xffffffffu, mine, 9) + __shfl_sync(0xffffffffu, mine, 5);
    mine ^= __shfl_down_sync(0xffffffffu, mine, 3) + __shfl_up_sync(0xffffffffu, mine, 2);
    mine += __any_sync(0xffffffffu, t == 3) + 2 * __all_sync(0xffffffffu, t != 3);
    p.out[threadIdx.x] = mine;
  }
};

// Each block leaves its numbers, and the last one to come adds those of all.
struct Meeting {
  static constexpr const char* kName = "meeting";
  static constexpr int kThreads = 128, kBlocks = 1;
  struct Params {
    const uint32_t* in;
    uint32_t *parts, *out, *counter;
  };
  struct Shared {
    unsigned before;
  };
  static __device__ void run(const Params& p, Shared& s) {
    const unsigned t = threadIdx.x, count = gridDim.x;
    p.parts[blockIdx.x * kThreads + t] = p.in[blockIdx.x * kThreads + t];
    __syncthreads();
    if (t == 0) s.before = count_arrival(p.counter, count);
    __syncthreads();
    if (s.before + 1 != count) return;
    uint32_t sum = 0;
    for (unsigned block = 0; block < count; ++block) sum = sum * 3 + p.parts[block * kThreads + (t + 5) % kThreads];
    p.out[t] = sum;
  }
};

}  // namespace

void add_copies(std::vector<Case>& cases) {
  {
    const auto in = random_words(Pipeline::kSteps * Pipeline::kThreads * 5);
    Buffer<uint32_t> from(in), to(in.size());
    run<Pipeline>(1, {from.data(), to.data()});
    cases.push_back({"cp_async", 0.0, to.values()});
  }
  Buffer<uint32_t> from(random_words(128)), to(128);
  run<Halves>(1, {from.data(), to.data()});
  cases.push_back({"named_barrier, shuffles, votes", 0.0, to.values()});

  constexpr int kMeeting = 300;  // more than are on a device at once
  const auto in = random_words(kMeeting * Meeting::kThreads);
  Buffer<uint32_t> all(in), parts(in.size()), sums(Meeting::kThreads), counter(std::vector<uint32_t>(1, 0));
  for (int turn = 0; turn < 2; ++turn) run<Meeting>(kMeeting, {all.data(), parts.data(), sums.data(), counter.data()});
  cases.push_back({"count_arrival", 0.0, sums.values()});
  cases.push_back({"count_arrival, the counter", 0.0, counter.values()});
}

}  // namespace hifuse::conformance
