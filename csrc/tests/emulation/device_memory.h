// Device memory: what a launch may touch, to the byte, and who wrote what in it.
#pragma once
#include "state.h"

namespace hifuse::emulation::device_memory {

// An access of a thread of the kernel to anything but its shared memory and its stack.
void access(unsigned thread, const void* p, size_t size, bool write, Site site);

// A change that no other one comes between: such changes are in no race with each other.
void count(unsigned thread, const void* p, size_t size, Site site);

}  // namespace hifuse::emulation::device_memory
