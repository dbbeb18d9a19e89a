// The ops on a CUDA device, one by one.
#include "c/checks.h"
#include "c/cuda_ops.h"
#include "c/device.h"

namespace hifuse::c {
namespace {

// What the caller gives: scratch memory of the op, and behind it counters, of which an op without scratch memory has none.
template <class Params>
int64_t scratch_of(const Params& params, int multiprocessors) {
  const int64_t bytes = make(params, multiprocessors, nullptr);
  return bytes ? bytes + counters_on(multiprocessors) : 0;
}

template <class Params>
const char* launch(const Params* params, const hifuse_cuda_launch* launch) {
  return guarded([&] {
    require(params, "params must not be NULL");
    require(launch, "launch must not be NULL");
    check_cuda(*params);
    const int multiprocessors = device::multiprocessors();
    const int64_t bytes = scratch_of(*params, multiprocessors), counted = bytes ? counters_on(multiprocessors) : 0;
    require(launch->scratch_bytes >= bytes, "launch->scratch_bytes must be at least ", bytes, ", got ", launch->scratch_bytes);
    require(launch->scratch || bytes == 0, "launch->scratch must not be NULL");
    require(reinterpret_cast<uintptr_t>(launch->scratch) % device::kAlignment == 0,
            "launch->scratch must begin at a multiple of ", device::kAlignment, " bytes");
    char* const counters = bytes ? static_cast<char*>(launch->scratch) + bytes - counted : nullptr;
    if (counters) device::clear(counters, counted, launch->stream);
    const CudaLaunch given{launch->stream, launch->scratch, reinterpret_cast<uint32_t*>(counters)};
    make(*params, multiprocessors, &given);
    device::check_launches();
  });
}

template <class Params>
const char* scratch(const Params* params, int64_t* bytes) {
  return guarded([&] {
    require(params, "params must not be NULL");
    require(bytes, "bytes must not be NULL");
    check_cuda(*params);
    *bytes = scratch_of(*params, device::multiprocessors());
  });
}

}  // namespace
}  // namespace hifuse::c

using namespace hifuse::c;

const char* hifuse_cuda_linear(const hifuse_cuda_linear_params* p, const hifuse_cuda_launch* l) { return launch(p, l); }
const char* hifuse_cuda_linear_scratch(const hifuse_cuda_linear_params* p, int64_t* bytes) { return scratch(p, bytes); }
const char* hifuse_cuda_stem(const hifuse_cuda_stem_params* p, const hifuse_cuda_launch* l) { return launch(p, l); }
const char* hifuse_cuda_stem_scratch(const hifuse_cuda_stem_params* p, int64_t* bytes) { return scratch(p, bytes); }
const char* hifuse_cuda_local_block(const hifuse_cuda_local_block_params* p, const hifuse_cuda_launch* l) {
  return launch(p, l);
}
const char* hifuse_cuda_local_block_scratch(const hifuse_cuda_local_block_params* p, int64_t* bytes) {
  return scratch(p, bytes);
}
const char* hifuse_cuda_global_block(const hifuse_cuda_global_block_params* p, const hifuse_cuda_launch* l) {
  return launch(p, l);
}
const char* hifuse_cuda_global_block_scratch(const hifuse_cuda_global_block_params* p, int64_t* bytes) {
  return scratch(p, bytes);
}
const char* hifuse_cuda_fuse_path(const hifuse_cuda_fuse_path_params* p, const hifuse_cuda_launch* l) { return launch(p, l); }
const char* hifuse_cuda_fuse_path_scratch(const hifuse_cuda_fuse_path_params* p, int64_t* bytes) { return scratch(p, bytes); }
const char* hifuse_cuda_window_attention(const hifuse_cuda_window_attention_params* p, const hifuse_cuda_launch* l) {
  return launch(p, l);
}
const char* hifuse_cuda_window_attention_scratch(const hifuse_cuda_window_attention_params* p, int64_t* bytes) {
  return scratch(p, bytes);
}
const char* hifuse_cuda_gated_concat(const hifuse_cuda_gated_concat_params* p, const hifuse_cuda_launch* l) {
  return launch(p, l);
}
const char* hifuse_cuda_gated_concat_scratch(const hifuse_cuda_gated_concat_params* p, int64_t* bytes) {
  return scratch(p, bytes);
}
const char* hifuse_cuda_mixer(const hifuse_cuda_mixer_params* p, const hifuse_cuda_launch* l) { return launch(p, l); }
const char* hifuse_cuda_mixer_scratch(const hifuse_cuda_mixer_params* p, int64_t* bytes) { return scratch(p, bytes); }
const char* hifuse_cuda_mlp(const hifuse_cuda_mlp_params* p, const hifuse_cuda_launch* l) { return launch(p, l); }
const char* hifuse_cuda_mlp_scratch(const hifuse_cuda_mlp_params* p, int64_t* bytes) { return scratch(p, bytes); }
const char* hifuse_cuda_mean(const hifuse_mean_params* p, const hifuse_cuda_launch* l) { return launch(p, l); }
const char* hifuse_cuda_mean_scratch(const hifuse_mean_params* p, int64_t* bytes) { return scratch(p, bytes); }
