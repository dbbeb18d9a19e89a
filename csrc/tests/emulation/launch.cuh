// The twin of csrc/cuda/launch.cuh: a launch runs on the CPU, at once.
#pragma once
#include <start.cuh>

#include "emulation.h"

namespace hifuse::cuda {

template <class Kernel>
const char* launch(dim3 grid, const typename Kernel::Params& params, void*) {
  using Params = typename Kernel::Params;
  using Shared = typename Kernel::Shared;
  const auto run = [](const void* params, void* shared) {
    cuda::start<Kernel>(*static_cast<const Params*>(params), *static_cast<Shared*>(shared));
  };
  return emulation::run({Kernel::kName, Kernel::kThreads, sizeof(Shared), sizeof(Params), run}, grid, &params);
}

}  // namespace hifuse::cuda
