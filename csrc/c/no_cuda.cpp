// What stands in place of device.cu and cuda_ops.cpp in a library without CUDA.
#include "c/cuda_ops.h"
#include "c/device.h"

namespace hifuse::c {
namespace {

[[noreturn]] void without() { refuse("this library was built without CUDA"); }

}  // namespace

int64_t counters_on(int) { without(); }
int64_t make(const hifuse_cuda_linear_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_cuda_stem_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_cuda_local_block_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_cuda_global_block_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_cuda_fuse_path_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_cuda_window_attention_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_cuda_gated_concat_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_cuda_mixer_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_cuda_mlp_params&, int, const CudaLaunch*) { without(); }
int64_t make(const hifuse_mean_params&, int, const CudaLaunch*) { without(); }
void widen_on_device(const void*, DType, int64_t, float*, void*) { without(); }

namespace device {

void check_index(int) { without(); }
Scope::Scope(int) : before_(0) { without(); }
Scope::~Scope() = default;
int multiprocessors() { without(); }
int capability() { without(); }
void* take(int64_t, void*) { without(); }
void give(void*, void*) noexcept {}
void copy_in(void*, const void*, int64_t, void*) { without(); }
void copy_out(void*, const void*, int64_t, void*) { without(); }
void clear(void*, int64_t, void*) { without(); }
void* make_stream() { without(); }
void end_stream(void*) noexcept {}
void wait(void*) { without(); }
void wait_for_all() noexcept {}
bool is_captured(void*) { without(); }
void check_launches() {}

}  // namespace device
}  // namespace hifuse::c
