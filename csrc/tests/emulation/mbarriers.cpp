#include "mbarriers.h"

#include <ptx_hopper.cuh>
#include <unordered_map>

#include "report.h"
#include "shared_memory.h"

namespace hifuse::emulation {
namespace {

struct Waiting {
  unsigned thread, parity;
};
struct Mbarrier {
  unsigned entry, arrivals;
  unsigned maker;
  Time made;
  unsigned pending;   // arrivals that this phase still wants
  int64_t bytes = 0;  // of copies, likewise
  unsigned phase = 0;
  std::vector<Time> arrived{}, completed{};  // clocks: of this phase so far, of the last one
  std::vector<Waiting> waiting{};
};
std::unordered_map<const uint64_t*, Mbarrier> all;

[[noreturn]] void stop(const char* kind, Site site, const std::string& what) {
  tell(kind, site, nullptr, what);
  abandon();
}

Mbarrier& find(const uint64_t* bar, Site site) {
  const auto it = all.find(bar);
  if (it == all.end())
    stop("mbarrier", site, text("thread %u uses an mbarrier at %s that nobody has made.", block.current, place(site).c_str()));
  Mbarrier& m = it->second;
  if (m.maker != block.current && m.made > clocks::of(block.current)[m.maker])
    tell("mbarrier", site, nullptr,
         text("thread %u uses an mbarrier at %s; no barrier orders that behind its making by thread %u.", block.current,
              place(site).c_str(), m.maker));
  return m;
}

void complete_phase(Mbarrier& m) {
  if (m.pending || m.bytes) return;
  ++m.phase;
  m.pending = m.arrivals;
  m.arrived[m.entry] = static_cast<Time>(m.phase);
  m.completed = m.arrived;
  std::erase_if(m.waiting, [&](const Waiting& w) {
    if ((m.phase & 1) == w.parity) return false;
    wake(w.thread);
    return true;
  });
}

void arrive(uint64_t* bar, size_t bytes, Site site) {
  Mbarrier& m = find(bar, site);
  const unsigned t = block.current;
  clocks::join(m.arrived.data(), clocks::of(t));
  clocks::tick(t);
  m.bytes += static_cast<int64_t>(bytes);
  if (!m.pending)
    stop("mbarrier", site,
         text("thread %u arrives at %s, at an mbarrier whose %u arrivals of this phase are there already.", t,
              place(site).c_str(), m.arrivals));
  --m.pending;
  complete_phase(m);
}

}  // namespace

void mbarriers::start() { all.clear(); }

mbarriers::Stamp mbarriers::next_phase(uint64_t* bar, Site site) {
  const Mbarrier& m = find(bar, site);
  return {m.entry, static_cast<Time>(m.phase + 1)};
}

void mbarriers::complete(uint64_t* bar, size_t bytes) {
  Mbarrier& m = all.at(bar);
  m.bytes -= static_cast<int64_t>(bytes);
  complete_phase(m);
}

}  // namespace hifuse::emulation

namespace hifuse::cuda {
using namespace emulation;

void mbarrier_init(uint64_t* bar, unsigned arrivals) {
  const Site site = HIFUSE_SITE;
  const unsigned t = block.current;
  if (!shared_memory::check_bounds(bar, sizeof *bar, "makes an mbarrier of", site)) abandon();
  if (all.size() == kMostMbarriers)
    stop("mbarrier", site, text("the emulation has no more than %u mbarriers.", kMostMbarriers));
  if (all.contains(bar))
    stop("mbarrier", site, text("thread %u makes an mbarrier at %s a second time.", t, place(site).c_str()));
  Mbarrier m{clocks::mbarrier(static_cast<unsigned>(all.size())), arrivals, t, clocks::now(t), arrivals};
  m.arrived.assign(clocks::width(), 0);
  m.completed.assign(clocks::width(), 0);
  all.emplace(bar, std::move(m));
}
void mbarrier_arrive(uint64_t* bar) { arrive(bar, 0, HIFUSE_SITE); }
void mbarrier_expect(uint64_t* bar, unsigned bytes) { arrive(bar, bytes, HIFUSE_SITE); }

void mbarrier_wait(uint64_t* bar, unsigned parity) {
  const unsigned t = block.current;
  const Site site = HIFUSE_SITE;
  Mbarrier& m = find(bar, site);
  if ((m.phase & 1) == (parity & 1)) {
    m.waiting.push_back({t, parity & 1});
    wait("an mbarrier", site);
  }
  clocks::join(clocks::of(t), m.completed.data());
}

void fence_async_shared() { shared_memory::fence_engines(); }

}  // namespace hifuse::cuda
