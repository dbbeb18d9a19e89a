// Barriers of a block: __syncthreads, which is barrier 0, and named ones.
#include <ptx.cuh>

#include "report.h"

namespace hifuse::emulation {
namespace {

constexpr int kBarriers = 16;

struct Barrier {
  unsigned expected = 0, first = 0;
  Site site = nullptr;
  std::vector<unsigned> arrived;
};
Barrier all[kBarriers];

// What everybody did before is ordered before what anybody does behind.
void join_arrived(const std::vector<unsigned>& arrived) {
  std::vector<Time> joined(clocks::width(), 0);
  for (const unsigned t : arrived) clocks::join(joined.data(), clocks::of(t));
  for (const unsigned t : arrived) {
    std::copy(joined.begin(), joined.end(), clocks::of(t));
    clocks::tick(t);
  }
}

void meet(int id, unsigned count, const char* what, Site site) {
  const unsigned t = block.current;
  Barrier& b = all[id];
  ++counters().barriers;
  if (!b.arrived.empty() && (b.expected != count || !same_place(b.site, site))) {
    tell("divergent", site, b.site,
         text("threads part before a barrier: thread %u waits at %s for %u threads, thread %u at %s for %u.", b.first,
              place(b.site).c_str(), b.expected, t, place(site).c_str(), count));
    abandon();
  }
  if (b.arrived.empty()) b.expected = count, b.first = t, b.site = site;
  b.arrived.push_back(t);
  if (b.arrived.size() < count) return wait(what, site);
  join_arrived(b.arrived);
  for (const unsigned u : b.arrived)
    if (u != t) wake(u);
  b.arrived.clear();
}

}  // namespace

void barriers::start() {
  for (Barrier& b : all) b.arrived.clear();
}

}  // namespace hifuse::emulation

void __syncthreads() {
  using namespace hifuse::emulation;
  meet(0, block.threads, "__syncthreads", HIFUSE_SITE);
}

void hifuse::cuda::named_barrier(int id, unsigned threads) {
  using namespace hifuse::emulation;
  const Site site = HIFUSE_SITE;
  if (id < 1 || id >= kBarriers || threads > block.threads) {
    tell("barrier", site, nullptr,
         text("named_barrier at %s has the number %d, which must be 1 to 15, and %u threads of the block's %u.",
              place(site).c_str(), id, threads, block.threads));
    abandon();
  }
  meet(id, threads, "named_barrier", site);
}
