// The last step of sums over blocks of threads: each block writes its own part, and one kernel adds the parts up in their
// order, in float64. So a sum depends on the launch alone, and there are no atomics.
#pragma once

#include <cstdint>

namespace hifuse::cuda {

// out[i] = the sum of in[part][i]; nothing where `out` is null.
struct PartsJob {
  const float* in;
  float* out;
  int64_t count;
  int64_t parts;
};

inline constexpr int kMostJobs = 3;
const char* sum_of_parts(const PartsJob (&jobs)[kMostJobs], void* stream);

}  // namespace hifuse::cuda
