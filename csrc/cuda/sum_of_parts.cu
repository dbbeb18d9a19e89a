#include <algorithm>
#include <launch.cuh>

#include "sum_of_parts.h"

namespace hifuse::cuda {

// A block has 32 results of one of the sums, and a warp of it each kWarps-th run of parts.
struct SumOfParts {
  static constexpr const char* kName = "sum_of_parts";
  static constexpr int kThreads = 256, kBlocks = 4, kWarps = kThreads / 32;
  struct Params {
    PartsJob jobs[kMostJobs];
  };
  struct Shared {
    double sums[kWarps][32];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const PartsJob& job = p.jobs[blockIdx.y];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t i = int64_t(blockIdx.x) * 32 + lane, count = job.out ? job.count : 0;
    const int64_t run = (job.parts + kWarps - 1) / kWarps, end = min((warp + 1) * run, job.parts);
    double sum = 0.0;
    if (i < count)
#pragma unroll 8
      for (int64_t part = warp * run; part < end; ++part) sum += job.in[part * job.count + i];
    shared.sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || i >= count) return;
    for (int other = 1; other < kWarps; ++other) sum += shared.sums[other][lane];
    job.out[i] = static_cast<float>(sum);
  }
};

const char* sum_of_parts(const PartsJob (&jobs)[kMostJobs], void* stream) {
  SumOfParts::Params p{};
  int64_t most = 0;
  int last = 0;
  for (int i = 0; i < kMostJobs; ++i) {
    p.jobs[i] = jobs[i];
    if (!jobs[i].out || !jobs[i].count) continue;
    most = std::max(most, jobs[i].count);
    last = i + 1;
  }
  return launch<SumOfParts>(dim3(static_cast<unsigned>((most + 31) / 32), last), p, stream);
}

}  // namespace hifuse::cuda
