// cp.async: copies that are a thread's own until it has waited for them.
#include <cstring>
#include <deque>
#include <ptx.cuh>

#include "report.h"
#include "shared_memory.h"

namespace hifuse::emulation {
namespace {

struct Copy {
  std::byte* to;
  const void* from;
  size_t size;
  bool kept;
  unsigned group;
  Site site;
};
struct Thread {
  std::deque<Copy> copies;
  unsigned groups = 0;  // that were committed
};
std::vector<Thread> threads;

void move(const Copy& copy) {
  if (copy.kept)
    std::memcpy(copy.to, copy.from, copy.size);
  else
    std::memset(copy.to, 0, copy.size);
}

void check_aligned(const void* p, size_t size, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % size == 0) return;
  tell("alignment", site, nullptr,
       text("thread %u gives cp.async an address at %s that is no multiple of %zu.", block.current, place(site).c_str(), size));
  abandon();
}

void copy(void* shared, const void* device, size_t size, bool kept, Site site) {
  const unsigned t = block.current;
  ++counters().copies;
  check_aligned(shared, size, site);
  check_aligned(device, size, site);
  if (!shared_memory::check_bounds(shared, size, "copies", site)) abandon();
  if (kept) access(t, device, size, false, site);
  access(t, shared, size, true, site);
  const Copy mine{static_cast<std::byte*>(shared), device, size, kept, threads[t].groups, site};
  shared_memory::start_copy({mine.to, size}, site);
  stages::fill(shared, size);
  if (options().landing == Landing::early)
    move(mine);
  else
    std::memset(shared, 0xff, size);
  threads[t].copies.push_back(mine);
}

}  // namespace

void async_copies::start() { threads.assign(block.threads, {}); }

// The hardware would finish them, but nobody knew when.
void async_copies::finish_thread() {
  const auto& copies = threads[block.current].copies;
  if (copies.empty()) return;
  const Site site = copies.front().site;
  tell("end", site, nullptr,
       text("thread %u ends and has not waited for the copy that it started at %s.", block.current, place(site).c_str()));
}

}  // namespace hifuse::emulation

namespace hifuse::cuda {
using namespace emulation;

void cp_async_16(void* shared, const void* device, bool kept) { copy(shared, device, 16, kept, HIFUSE_SITE); }
void cp_async_4(void* shared, const void* device, bool kept) { copy(shared, device, 4, kept, HIFUSE_SITE); }

void cp_async_commit() { ++threads[block.current].groups; }

void cp_async_wait(int pending) {
  const unsigned t = block.current;
  auto& [copies, groups] = threads[t];
  while (!copies.empty() && copies.front().group + static_cast<unsigned>(pending) < groups) {
    const Copy& done = copies.front();
    if (options().landing == Landing::late) move(done);
    shared_memory::land_copy({done.to, done.size}, t, clocks::now(t));
    copies.pop_front();
  }
}

}  // namespace hifuse::cuda
