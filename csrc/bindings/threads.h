// On which threads the kernels of a call run.
#pragma once

#include "cpu/kernels.h"

namespace hifuse {

// PyTorch's threads, or for a thread that was lent the pool those of pool.h.
Parallel threads();

// From now on, calls of this thread run on `count` threads of the pool; 0: on PyTorch's. Returns what held before, for another
// call of this function. Raises std::invalid_argument for a count below 0.
int64_t lend_threads(int64_t count);

}  // namespace hifuse
