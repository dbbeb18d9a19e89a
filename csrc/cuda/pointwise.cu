// The entry points of pointwise.cuh.
#include <algorithm>

#include "kernels.h"
#include "pointwise.cuh"

namespace hifuse::cuda {
namespace {

template <class F>
const char* with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32: return f.template operator()<float>();
    case DType::bfloat16: return f.template operator()<bf16>();
    case DType::float16: return f.template operator()<f16>();
    default: return "there is no kernel for float64";
  }
}

template <class Kernel, class T>
const char* launch_chunks(int64_t chunks, const typename Kernel::Params& p, void* stream) {
  const int64_t blocks = (chunks + Kernel::kThreads - 1) / Kernel::kThreads;
  if (blocks > INT32_MAX) return "there are more than 2^31 blocks of numbers";
  return launch<Kernel>(dim3(static_cast<unsigned>(blocks)), p, stream);
}

template <class... Pointers>
bool begin_aligned(const Pointers*... pointers) {
  return (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
}

}  // namespace

const char* gelu_backward(const GeluGradient& a, void* stream) {
  if (!begin_aligned(a.grad, a.z, a.out, a.activated)) return "maps must begin at a multiple of 16 bytes";
  return with_dtype(a.dtype, [&]<class T>() {
    const typename GeluBackward<T>::Params p{static_cast<const unsigned char*>(a.grad), static_cast<const unsigned char*>(a.z),
                                             static_cast<unsigned char*>(a.out), static_cast<unsigned char*>(a.activated),
                                             a.length};
    return launch_chunks<GeluBackward<T>, T>((a.length + kOfChunk<T> - 1) / kOfChunk<T>, p, stream);
  });
}

const char* mixer_depthwise(const DepthwiseConvolution& a, void* stream) {
  return with_dtype(a.dtype, [&]<class T>() {
    const int chunks = static_cast<int>((a.channels + kOfChunk<T> - 1) / kOfChunk<T>);
    const bool aligned = a.channels % kOfChunk<T> == 0 && begin_aligned(a.z, a.added, a.weight, a.before, a.out);
    const typename DepthwiseMixer<T>::Params p{static_cast<const unsigned char*>(a.z),
                                               static_cast<const unsigned char*>(a.added),
                                               static_cast<const unsigned char*>(a.weight),
                                               static_cast<unsigned char*>(a.out),
                                               static_cast<unsigned char*>(a.before),
                                               a.batch * a.height * a.width,
                                               static_cast<int>(a.height),
                                               static_cast<int>(a.width),
                                               static_cast<int>(a.channels),
                                               chunks,
                                               a.gelu,
                                               aligned};
    return launch_chunks<DepthwiseMixer<T>, T>(p.pixels * chunks, p, stream);
  });
}

}  // namespace hifuse::cuda
