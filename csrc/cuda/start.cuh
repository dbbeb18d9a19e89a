// What each thread of a launch begins with, on a GPU and in the emulation.
#pragma once
#include <ptx.cuh>

namespace hifuse::cuda {

// A launch may begin before the one before it has ended, see launch.cuh: nothing in memory is read or written before the wait.
// The launch behind it may begin when all blocks of this one have; it waits in its turn.
template <class Kernel>
__device__ __forceinline__ void start(const typename Kernel::Params& params, typename Kernel::Shared& shared) {
  wait_for_earlier_launches();
  let_later_launches_begin();
  Kernel::run(params, shared);
}

}  // namespace hifuse::cuda
