// A CUDA device, as far as networks need one. device.cu has these functions over CUDA's runtime, no_cuda.cpp those of a library
// without CUDA, which refuse, and csrc/tests/emulation/device.cpp those of the tests, where the device is emulated. They throw
// Refused, with CUDA's words.
#pragma once

#include "c/border.h"

namespace hifuse::c::device {

// Of every block of memory that kernels are given.
constexpr int64_t kAlignment = 256;

// Refused where there is no such device.
void check_index(int device);

// Makes a device the current one of this thread, and the one before at its end.
class Scope {
 public:
  explicit Scope(int device);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  int before_;
};

// All of these are of the current device. Memory is taken and given back in the order of a stream; null: there is not so much.
int multiprocessors();
int capability();  // 90 of compute capability 9.0
void* take(int64_t bytes, void* stream);
void give(void* memory, void* stream) noexcept;
void copy_in(void* to, const void* from, int64_t bytes, void* stream);
void copy_out(void* to, const void* from, int64_t bytes, void* stream);
void clear(void* memory, int64_t bytes, void* stream);
void* make_stream();
void end_stream(void* stream) noexcept;
void wait(void* stream);
void wait_for_all() noexcept;

// Whether the stream is being captured into a graph: memory for later calls cannot be taken then.
bool is_captured(void* stream);

// What is known of launches only afterwards: in the emulation, what kernels did wrong.
void check_launches();

}  // namespace hifuse::c::device
