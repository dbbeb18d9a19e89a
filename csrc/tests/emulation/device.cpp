// The emulated device of the library for C, see csrc/c/device.h. What is put on a stream is done at once; its memory is the
// host's, full of NaN at first. One thread at a time has the device.
#include "c/device.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "cuda/kernels.h"
#include "emulation.h"

namespace hifuse::c::device {
namespace {

std::recursive_mutex lock;
std::map<void*, size_t> blocks;
bool began_early = false;  // the launches that were checked last

void tell_emulation() {
  emulation::forget();
  for (const auto& [memory, bytes] : blocks) emulation::allow(memory, bytes, true);
}

}  // namespace

void check_index(int device) {
  emulation::options().check = false;  // races are of kernels, whose own tests look for them: at half the time
  require(device == 0, "device must be one of this machine, which has 1 CUDA devices, got ", device);
}

Scope::Scope(int device) : before_(device) { lock.lock(); }
Scope::~Scope() { lock.unlock(); }

// As EMULATED_MULTIPROCESSORS of hifuse_fast, unless a test wants more.
int multiprocessors() {
  const char* const wanted = std::getenv("HIFUSE_EMULATED_MULTIPROCESSORS");
  return wanted ? std::atoi(wanted) : 1;
}

int capability() {
  const char* const wanted = std::getenv("HIFUSE_EMULATED_CAPABILITY");
  return wanted ? std::atoi(wanted) : 90;
}

void* take(int64_t bytes, void*) {
  const std::lock_guard guard(lock);
  if (bytes > int64_t{1} << 30) return nullptr;
  const size_t whole = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
  void* const memory = std::aligned_alloc(kAlignment, whole);
  if (!memory) return nullptr;
  std::memset(memory, 0xff, whole);
  blocks[memory] = static_cast<size_t>(bytes);
  tell_emulation();
  return memory;
}

void give(void* memory, void*) noexcept {
  const std::lock_guard guard(lock);
  blocks.erase(memory);
  tell_emulation();
  std::free(memory);
}

void copy_in(void* to, const void* from, int64_t bytes, void*) { std::memcpy(to, from, static_cast<size_t>(bytes)); }
void copy_out(void* to, const void* from, int64_t bytes, void*) { std::memcpy(to, from, static_cast<size_t>(bytes)); }
void clear(void* memory, int64_t bytes, void*) { std::memset(memory, 0, static_cast<size_t>(bytes)); }
void* make_stream() { return nullptr; }
void end_stream(void*) noexcept {}
void wait(void*) {}
void wait_for_all() noexcept {}
bool is_captured(void* stream) { return stream != nullptr && *static_cast<const int*>(stream) != 0; }

void check_launches() {
  began_early = cuda::begin_early;
  std::string all;
  for (const std::string& error : emulation::errors()) all += "\n" + error;
  require(all.empty(), "the emulation found:", all);
}

}  // namespace hifuse::c::device

// Memory of the device, for the programs of the tests.
extern "C" __attribute__((visibility("default"))) void* hifuse_emulated_take(int64_t bytes) {
  return hifuse::c::device::take(bytes, nullptr);
}
extern "C" __attribute__((visibility("default"))) void hifuse_emulated_give(void* memory) {
  hifuse::c::device::give(memory, nullptr);
}
// Whether the launches of the last call might begin before those before them had ended.
extern "C" __attribute__((visibility("default"))) int hifuse_emulated_began_early(void) {
  return hifuse::c::device::began_early;
}
// All launches so far.
extern "C" __attribute__((visibility("default"))) int64_t hifuse_emulated_launches(void) {
  return static_cast<int64_t>(hifuse::emulation::counters().launches);
}
