// The ops on a CUDA device, each made of launches of the kernels of csrc/cuda. cuda_ops.cpp has them, and no_cuda.cpp those of
// a library without CUDA, which refuse.
#pragma once

#include "c/border.h"
#include "hifuse/cuda.h"

namespace hifuse::c {

struct CudaLaunch {
  void* stream;
  void* scratch;
  uint32_t* counters;  // counters_on(multiprocessors) bytes of them, zero before the call and after it
};

int64_t counters_on(int multiprocessors);

// How many bytes of scratch memory a call takes on a device of so many multiprocessors. It is made unless `launch` is null.
// What is given was checked. Refused where no kernel serves it.
int64_t make(const hifuse_cuda_linear_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_cuda_stem_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_cuda_local_block_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_cuda_global_block_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_cuda_fuse_path_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_cuda_window_attention_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_cuda_gated_concat_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_cuda_mixer_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_cuda_mlp_params&, int multiprocessors, const CudaLaunch* launch);
int64_t make(const hifuse_mean_params&, int multiprocessors, const CudaLaunch* launch);

// Numbers of a dtype as float32, of which C has the results.
void widen_on_device(const void* from, DType dtype, int64_t count, float* to, void* stream);

void check_cuda(const hifuse_cuda_linear_params&);
void check_cuda(const hifuse_cuda_stem_params&);
void check_cuda(const hifuse_cuda_local_block_params&);
void check_cuda(const hifuse_cuda_global_block_params&);
void check_cuda(const hifuse_cuda_fuse_path_params&);
void check_cuda(const hifuse_cuda_window_attention_params&);
void check_cuda(const hifuse_cuda_gated_concat_params&);
void check_cuda(const hifuse_cuda_mixer_params&);
void check_cuda(const hifuse_cuda_mlp_params&);
void check_cuda(const hifuse_mean_params&);

}  // namespace hifuse::c
