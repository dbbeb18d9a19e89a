// A device by CUDA's runtime. Memory comes from its pool, in the order of a stream.
#include <cuda_runtime.h>

#include "c/device.h"

namespace hifuse::c::device {
namespace {

void tell(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it
  refuse(what, ": ", cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  tell(cudaGetDevice(&device), "the CUDA device is not known");
  tell(cudaDeviceGetAttribute(&value, which, device), "the CUDA device is not known");
  return value;
}

}  // namespace

void check_index(int device) {
  int count = 0;
  tell(cudaGetDeviceCount(&count), "there is no CUDA device");
  require(device >= 0 && device < count, "device must be one of this machine, which has ", count, " CUDA devices, got ",
          device);
}

Scope::Scope(int device) {
  tell(cudaGetDevice(&before_), "the CUDA device is not known");
  tell(cudaSetDevice(device), "the CUDA device cannot be used");
}
Scope::~Scope() { cudaSetDevice(before_); }

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }
int capability() { return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor); }

void* take(int64_t bytes, void* stream) {
  void* memory = nullptr;
  if (cudaMallocAsync(&memory, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)) == cudaSuccess) return memory;
  cudaGetLastError();
  return nullptr;
}
void give(void* memory, void* stream) noexcept { cudaFreeAsync(memory, static_cast<cudaStream_t>(stream)); }

void copy_in(void* to, const void* from, int64_t bytes, void* stream) {
  tell(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
       "a copy to the device failed");
}
void copy_out(void* to, const void* from, int64_t bytes, void* stream) {
  tell(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)),
       "a copy from the device failed");
}
void clear(void* memory, int64_t bytes, void* stream) {
  tell(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)), "memory cannot be cleared");
}

void* make_stream() {
  cudaStream_t stream = nullptr;
  tell(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream cannot be made");
  return stream;
}
void end_stream(void* stream) noexcept { cudaStreamDestroy(static_cast<cudaStream_t>(stream)); }

void wait(void* stream) { tell(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "the device failed"); }
void wait_for_all() noexcept { cudaDeviceSynchronize(); }

bool is_captured(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  tell(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "the stream cannot be used");
  return status != cudaStreamCaptureStatusNone;
}

void check_launches() {}

}  // namespace hifuse::c::device
