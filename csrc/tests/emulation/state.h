// What the files of the emulation share: the block that runs, its clocks, and what each file does at the start and end of one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulation.h"

namespace hifuse::emulation {

using Site = const void*;  // a place in a kernel: the return address of a call out of it
#define HIFUSE_SITE __builtin_return_address(0)

constexpr unsigned kWarp = 32, kWarpgroup = 128, kAllLanes = 0xffffffffu;
constexpr size_t kGranule = 2;  // bytes that the checks tell apart
constexpr int kNobody = -1;

// ---- The launch and the block ----------------------------------------------------------------------------------------------

struct Grid {
  Kernel kernel{};
  const void* params = nullptr;
  dim3 size;
  uint32_t launch = 0;  // its number
  bool running = false;
};
extern Grid grid;

struct Block {
  uint3 index{};
  unsigned number = 0;
  unsigned threads = 0;
  unsigned current = 0;  // the thread that runs
};
extern Block block;

// From a thread: lets others run until `wake`. `what` and `site` are told in case of a deadlock.
void wait(const char* what, Site site);
void wake(unsigned thread);
// From a thread: ends the launch, because what comes next would do harm.
[[noreturn]] void abandon();

// ---- Clocks ----------------------------------------------------------------------------------------------------------------

// Of each thread, how far it knows every other one to have come: what another one did at time n is ordered before what this one
// does now, if and only if this one's entry for it is at least n. Engines that are no threads have entries too: mbarriers,
// whose time is the phase, and warpgroups, whose time is the number of products that have been waited for.
using Time = int32_t;
constexpr unsigned kMostMbarriers = 64, kMostWarpgroups = 8;

namespace clocks {
void start();
unsigned width();
Time* of(unsigned thread);
inline Time now(unsigned thread) { return of(thread)[thread]; }
inline void tick(unsigned thread) { ++of(thread)[thread]; }
void join(Time* into, const Time* from);
inline unsigned mbarrier(unsigned i) { return block.threads + i; }
inline unsigned warpgroup(unsigned i) { return block.threads + kMostMbarriers + i; }
}  // namespace clocks

// ---- Files -----------------------------------------------------------------------------------------------------------------

// collectives.cpp
namespace collectives {
void start();
// Each lane of a warp, or thread of a warpgroup, comes with its arguments; the last one to come computes for all. Those that
// are `aligned` must come from one place of the kernel.
using Combine = void (*)(void* const* lanes);
void warp(const char* what, void* mine, Combine combine, Site site, bool aligned);
void warpgroup(const char* what, void* mine, Combine combine, Site site);
}  // namespace collectives

// barriers.cpp
namespace barriers {
void start();
}

// arrivals.cpp: blocks of a launch that know of each other
namespace arrivals {
void start_grid();
void start();
// Whether what a thread of another block did at its time is ordered before what this thread does now.
bool order(unsigned thread, unsigned other_block, unsigned other_thread, Time time);
}  // namespace arrivals

// async_copies.cpp
namespace async_copies {
void start();
void finish_thread();
}  // namespace async_copies

// earlier_launches.cpp: which threads have waited for them
namespace earlier_launches {
void start();
bool are_waited_for(unsigned thread);
}  // namespace earlier_launches

// mbarriers.cpp, tensor_copies.cpp, warpgroup_products.cpp
namespace mbarriers {
void start();
}
namespace tensor_copies {
void start();
bool land_one();  // when every thread waits: whether a copy has landed
void finish_block();
}  // namespace tensor_copies
namespace warpgroup_products {
void start();
void finish_thread();
}  // namespace warpgroup_products

// stages.cpp: how often asynchronous copies fill a place of shared memory
namespace stages {
void start();
void fill(const void* shared, size_t size);
void finish_block();
}  // namespace stages

// profile.cpp
namespace profile {
void start();
enum class Space { shared, device };
void access(Space space, unsigned thread, const void* p, size_t size, bool write, Site site);
void ldmatrix(const void* const (&rows)[kWarp]);
void finish_block();
}  // namespace profile

// An access of a thread, wherever it goes.
void access(unsigned thread, const void* p, size_t size, bool write, Site site);

}  // namespace hifuse::emulation
