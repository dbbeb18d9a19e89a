// The library that a kernel's instrumentation calls: kernels are compiled with -fsanitize=thread, and linked with this file in
// place of that sanitizer. Each of their loads and stores comes here.
#include <cstring>

#include "device_memory.h"
#include "fibers.h"
#include "shared_memory.h"

namespace hifuse::emulation {

void access(unsigned thread, const void* p, size_t size, bool write, Site site) {
  if (fibers::own(p)) return;
  if (!shared_memory::holds(p)) return device_memory::access(thread, p, size, write, site);
  ++counters().shared_accesses;
  if (options().profile) profile::access(profile::Space::shared, thread, p, size, write, site);
  shared_memory::access(thread, p, size, write, site);
}

namespace {
// Kernel files hold host code too, which runs outside of launches.
inline void instrumented(const void* p, size_t size, bool write, Site site) {
  if (grid.running) access(block.current, p, size, write, site);
}
}  // namespace

}  // namespace hifuse::emulation

using hifuse::emulation::instrumented;

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define HIFUSE_ACCESSES(size)                                                                       \
  void __tsan_read##size(void* p) { instrumented(p, size, false, HIFUSE_SITE); }                    \
  void __tsan_write##size(void* p) { instrumented(p, size, true, HIFUSE_SITE); }                    \
  void __tsan_unaligned_read##size(void* p) { instrumented(p, size, false, HIFUSE_SITE); }          \
  void __tsan_unaligned_write##size(void* p) { instrumented(p, size, true, HIFUSE_SITE); }          \
  void __tsan_volatile_read##size(void* p) { instrumented(p, size, false, HIFUSE_SITE); }           \
  void __tsan_volatile_write##size(void* p) { instrumented(p, size, true, HIFUSE_SITE); }           \
  void __tsan_unaligned_volatile_read##size(void* p) { instrumented(p, size, false, HIFUSE_SITE); } \
  void __tsan_unaligned_volatile_write##size(void* p) { instrumented(p, size, true, HIFUSE_SITE); }
HIFUSE_ACCESSES(1)
HIFUSE_ACCESSES(2)
HIFUSE_ACCESSES(4)
HIFUSE_ACCESSES(8)
HIFUSE_ACCESSES(16)

void __tsan_read_range(void* p, size_t size) { instrumented(p, size, false, HIFUSE_SITE); }
void __tsan_write_range(void* p, size_t size) { instrumented(p, size, true, HIFUSE_SITE); }
void* __tsan_memcpy(void* to, const void* from, size_t size) {
  instrumented(from, size, false, HIFUSE_SITE);
  instrumented(to, size, true, HIFUSE_SITE);
  return std::memcpy(to, from, size);
}
void* __tsan_memset(void* to, int value, size_t size) {
  instrumented(to, size, true, HIFUSE_SITE);
  return std::memset(to, value, size);
}
}
