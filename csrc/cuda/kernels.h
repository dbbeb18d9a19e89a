// The entry points of the CUDA kernels. They allocate nothing and never wait: what a launch says comes back as text, nullptr
// where it was well. Knows no CUDA, so that the bindings need no CUDA compiler.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace hifuse::cuda {

// Of all entry points: pointers are of the current device, and `stream` is a cudaStream_t of it.
const char* window_attention_forward(const WindowAttentionForward& arguments, void* stream);

// Bytes of scratch memory that the backward is given, on a device with that many multiprocessors.
int64_t window_attention_backward_scratch(const WindowAttentionShape& shape, int multiprocessors);
const char* window_attention_backward(const WindowAttentionBackward& arguments, void* scratch, void* stream);

}  // namespace hifuse::cuda
