// Arrivals at counters in device memory: the one thing that orders blocks of a launch.
#include <memory>
#include <ptx.cuh>
#include <unordered_map>

#include "device_memory.h"

namespace hifuse::emulation {
namespace {

// What a thread knew of its own block when it arrived.
struct Release {
  unsigned block;
  std::vector<Time> times;
};
using Releases = std::vector<std::shared_ptr<const Release>>;
std::unordered_map<const void*, Releases> counted;  // by counter, of all arrivals of the launch

// From `time` on this thread of the block knows what others had released.
struct Acquired {
  unsigned thread;
  Time time;
  Releases releases;
};
std::vector<Acquired> acquired;  // of the block

bool knows(unsigned thread, const Acquired& a) { return clocks::of(thread)[a.thread] >= a.time; }

}  // namespace

void arrivals::start_grid() { counted.clear(); }
void arrivals::start() { acquired.clear(); }

bool arrivals::order(unsigned thread, unsigned other_block, unsigned other_thread, Time time) {
  for (const Acquired& a : acquired)
    if (knows(thread, a))
      for (const auto& release : a.releases)
        if (release->block == other_block && release->times[other_thread] >= time) return true;
  return false;
}

}  // namespace hifuse::emulation

unsigned hifuse::cuda::count_arrival(unsigned* counter, unsigned count) {
  using namespace hifuse::emulation;
  const unsigned t = block.current;
  device_memory::count(t, counter, sizeof *counter, HIFUSE_SITE);
  Releases& releases = counted[counter];
  const Time* const mine = clocks::of(t);
  releases.push_back(std::make_shared<Release>(Release{block.number, {mine, mine + block.threads}}));
  for (const Acquired& a : acquired)
    if (knows(t, a)) releases.insert(releases.end(), a.releases.begin(), a.releases.end());
  clocks::tick(t);
  acquired.push_back({t, clocks::now(t), releases});
  const unsigned before = *counter;
  *counter = before >= count - 1 ? 0 : before + 1;
  return before;
}
