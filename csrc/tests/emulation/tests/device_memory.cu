// Device memory: bounds to the byte, tensors that are only to be read, and who wrote what in a launch.
#include "test.h"

namespace hifuse::emulation::tests {
namespace {

using namespace cuda;

enum class Mistake {
  none,
  reads_beyond,
  reads_before,
  writes_beyond,
  writes_input,
  two_blocks_write,
  block_reads_block,
  two_threads_write,
  no_barrier,
  nowhere,
};

// out[i] = in[i], twice over scratch memory of the block's own.
template <Mistake kMistake>
struct Copy {
  static constexpr const char* kName = "copy";
  static constexpr int kThreads = 64, kBlocks = 1;
  struct Params {
    const float* in;
    float *scratch, *out;
    int count;
  };
  struct Shared {};
  static __device__ void run(const Params& p, Shared&) {
    const int t = threadIdx.x, i = blockIdx.x * kThreads + t;
    const bool inside = kMistake == Mistake::reads_beyond ? i <= p.count : i < p.count;
    if (inside) {
      const float x = p.in[kMistake == Mistake::reads_before ? i - 1 : i];
      p.scratch[kMistake == Mistake::two_threads_write ? i / 2 * 2 : i] = x;
    }
    if (kMistake != Mistake::no_barrier) __syncthreads();
    const int other = blockIdx.x * kThreads + (t + 1) % kThreads;
    if (other < p.count) p.out[other] = p.scratch[other];
    if (kMistake == Mistake::writes_beyond && i == p.count - 1) p.out[i + 1] = 0.0f;
    if (kMistake == Mistake::writes_input && t == 0) const_cast<float*>(p.in)[i] = 0.0f;
    if (kMistake == Mistake::two_blocks_write && t == 0) p.out[0] = 0.0f;
    if (kMistake == Mistake::block_reads_block && t == 0) p.out[i] = p.scratch[0];
    if (kMistake == Mistake::nowhere && i == 0) p.out[int64_t(1) << 40] = 0.0f;
  }
};

// Each block leaves its numbers, and the last one to come adds those of all.
enum class Meeting { right, no_barrier_before, one_short };
template <Meeting kMeeting>
struct Meet {
  static constexpr const char* kName = "meet";
  static constexpr int kThreads = 64, kBlocks = 1;
  struct Params {
    const float* in;
    float *parts, *out;
    unsigned* counter;
  };
  struct Shared {
    unsigned before;
  };
  static __device__ void run(const Params& p, Shared& s) {
    const unsigned t = threadIdx.x, count = gridDim.x;
    p.parts[blockIdx.x * kThreads + t] = p.in[blockIdx.x * kThreads + t];
    if (kMeeting != Meeting::no_barrier_before) __syncthreads();
    if (t == 0) s.before = count_arrival(p.counter, count);
    __syncthreads();
    if (s.before + (kMeeting == Meeting::one_short ? 2 : 1) != count) return;
    float sum = 0.0f;
    for (unsigned block = 0; block < count; ++block) sum += p.parts[block * kThreads + (t + 1) % kThreads];
    p.out[t] = sum;
  }
};

void test_arrivals() {
  constexpr int kBlocks = 3, kThreads = 64;
  Device<float> in(kBlocks * kThreads, false), parts(kBlocks * kThreads), out(kThreads);
  Device<unsigned> counter(1);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i) / 3.0f;
  counter[0] = 0;
  CHECK((passes_always<Meet<Meeting::right>>(kBlocks, {in.data(), parts.data(), out.data(), counter.data()}, out)));
  CHECK(counter[0] == 0);
  for (int t = 0; t < kThreads; ++t) {
    const int other = (t + 1) % kThreads;
    CHECK(out[t] == in[other] + in[kThreads + other] + in[2 * kThreads + other]);
  }
#define HIFUSE_CAUGHT(meeting)                                                  \
  CHECK((caught<Meet<Meeting::meeting>>("nothing orders these blocks", kBlocks, \
                                        {in.data(), parts.data(), out.data(), counter.data()})))
  HIFUSE_CAUGHT(no_barrier_before);
  HIFUSE_CAUGHT(one_short);
#undef HIFUSE_CAUGHT
  Device<unsigned> beside(1, false);
  beside[0] = 0;
  CHECK((caught<Meet<Meeting::right>>("that the launch was given to read", kBlocks,
                                      {in.data(), parts.data(), out.data(), beside.data()})));
  forget();
}

// A kernel that does not begin as all others do.
void test_earlier_launches() {
  using Kernel = Copy<Mistake::none>;
  Device<float> in(64, false), scratch(64), out(64);
  const Kernel::Params params{in.data(), scratch.data(), out.data(), 64};
  const auto begin = [](const void* params, void* shared) {
    Kernel::run(*static_cast<const Kernel::Params*>(params), *static_cast<Kernel::Shared*>(shared));
  };
  emulation::run({Kernel::kName, Kernel::kThreads, sizeof(Kernel::Shared), sizeof(Kernel::Params), begin}, 1, &params);
  const auto found = errors();
  CHECK(contains(found, "reads memory at ") && contains(found, "before it has waited for the launches before this one"));
  forget();
}

}  // namespace

void test_device_memory() {
  test_arrivals();
  test_earlier_launches();
  constexpr int kCount = 100;
  Device<float> in(kCount, false), scratch(kCount), out(kCount);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  CHECK((passes_always<Copy<Mistake::none>>(2, {in.data(), scratch.data(), out.data(), kCount}, out)));
  for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == static_cast<float>(i));
#define HIFUSE_CAUGHT(mistake, words) \
  CHECK((caught<Copy<Mistake::mistake>>(words, 2, {in.data(), scratch.data(), out.data(), kCount})))
  HIFUSE_CAUGHT(reads_beyond, "reads 4 bytes");
  HIFUSE_CAUGHT(reads_beyond, "at byte 400 of a tensor of 400 bytes");
  HIFUSE_CAUGHT(reads_before, "at byte -4 of a tensor");
  HIFUSE_CAUGHT(writes_beyond, "at byte 400 of a tensor of 400 bytes");
  HIFUSE_CAUGHT(writes_input, "that the launch was given to read");
  HIFUSE_CAUGHT(two_blocks_write, "another block");
  HIFUSE_CAUGHT(block_reads_block, "nothing orders these blocks");
  HIFUSE_CAUGHT(two_threads_write, "no barrier orders the two");
  HIFUSE_CAUGHT(no_barrier, "no barrier orders the two");
  HIFUSE_CAUGHT(nowhere, "in no tensor of this launch");
#undef HIFUSE_CAUGHT
  // Launches that CUDA refuses, and one that is none.
  using Right = Copy<Mistake::none>;
  CHECK(launch<Right>(dim3(1, 65536), {}, nullptr) && launch<Right>(dim3(1, 1, 65536), {}, nullptr));
  CHECK(!launch<Right>(dim3(0), {}, nullptr));
  // What a launch before this one wrote may be read by any block.
  const auto launches = counters().launches;
  CHECK((passes<Right>(2, {in.data(), scratch.data(), out.data(), kCount})));
  CHECK((passes<Right>(2, {scratch.data(), out.data(), in.data(), 0})));
  CHECK(counters().launches == launches + 2);
  forget();
  launch<Right>(1, {in.data(), scratch.data(), out.data(), kCount}, nullptr);
  CHECK(!errors().empty());  // forgotten
}

}  // namespace hifuse::emulation::tests
