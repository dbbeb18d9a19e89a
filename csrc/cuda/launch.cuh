// The one way to launch a kernel. A kernel is a struct:
//
//     struct Scale {
//       static constexpr const char* kName = "scale";
//       static constexpr int kThreads = 128, kBlocks = 3;   // threads of a block; blocks that an SM is to hold
//       struct Params { ... };                               // by value, at most 4 KB
//       struct Shared { ... };                               // its shared memory, all of it; not initialised
//       static __device__ void run(const Params& p, Shared& s);
//     };
//
// The emulation of the tests has a header of the same name, which runs `run` on the CPU.
#pragma once
#include <cuda_runtime.h>

#include <typeinfo>

#include "cuda/kernels.h"
#include "start.cuh"

namespace hifuse::cuda {

template <class Kernel>
inline const bool kListed = (listed().push_back({Kernel::kName, typeid(Kernel).name(), Kernel::kThreads, Kernel::kBlocks,
                                                 static_cast<int>(sizeof(typename Kernel::Shared))}),
                             true);

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    entry(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ __align__(1024) unsigned char memory[];
  start<Kernel>(params, *reinterpret_cast<typename Kernel::Shared*>(memory));
}

// Whether the code of a kernel that runs on this device waits for earlier launches: that for sm_90 and later does.
inline bool waits(const void* kernel) {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.ptxVersion >= 90;
  cudaGetLastError();  // forgets it
  return false;
}

// Launches a grid; an empty one is no launch. Returns null, or the text of the error, which no later call will meet again.
template <class Kernel>
const char* launch(dim3 grid, const typename Kernel::Params& params, void* stream) {
  if (!kListed<Kernel> || grid.x == 0 || grid.y == 0 || grid.z == 0) return nullptr;
  constexpr int kBytes = sizeof(typename Kernel::Shared), kWithoutAsking = 48 * 1024;
  static_assert(kBytes <= 227 * 1024, "no architecture has so much shared memory");
  cudaError_t error = cudaSuccess;
  if constexpr (kBytes > kWithoutAsking)
    error = cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error == cudaSuccess) {
    void* arguments[] = {const_cast<typename Kernel::Params*>(&params)};
    const auto* const kernel = reinterpret_cast<const void*>(entry<Kernel>);
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(Kernel::kThreads);
    config.dynamicSmemBytes = kBytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &early;
    config.numAttrs = begin_early && waits(kernel) ? 1 : 0;
    error = cudaLaunchKernelExC(&config, kernel, arguments);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // forgets it
  return cudaGetErrorString(error);
}

}  // namespace hifuse::cuda
