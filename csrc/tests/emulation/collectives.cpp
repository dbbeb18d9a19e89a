// What all lanes of a warp, or all threads of a warpgroup, do together.
#include <cstring>

#include "report.h"

namespace hifuse::emulation {
namespace {

struct Meeting {
  const char* what = nullptr;
  Site site = nullptr;
  unsigned first = 0, count = 0;
  void* lanes[kWarpgroup];
};
std::vector<Meeting> warps, warpgroups;

void meet(Meeting& meeting, unsigned size, const char* crowd, const char* what, void* mine, collectives::Combine combine,
          Site site, bool aligned) {
  const unsigned t = block.current, first = t / size * size;
  ++counters().collectives;
  if (first + size > block.threads) {
    tell("partial", site, nullptr, text("%s at %s, in %s that the block has not filled.", what, place(site).c_str(), crowd));
    abandon();
  }
  if (meeting.count && (std::strcmp(meeting.what, what) || (aligned && !same_place(meeting.site, site)))) {
    tell("divergent", site, meeting.site,
         text("threads of %s part: thread %u comes to %s at %s, thread %u to %s at %s.", crowd, meeting.first, meeting.what,
              place(meeting.site).c_str(), t, what, place(site).c_str()));
    abandon();
  }
  if (!meeting.count) meeting.what = what, meeting.site = site, meeting.first = t;
  meeting.lanes[t - first] = mine;
  if (++meeting.count < size) return wait(what, site);
  meeting.count = 0;
  combine(meeting.lanes);
  for (unsigned i = first; i < first + size; ++i)
    if (i != t) wake(i);
}

void whole_warp(unsigned mask, const char* what, Site site) {
  if (mask == kAllLanes) return;
  tell("mask", site, nullptr,
       text("%s at %s has the mask 0x%08x; the emulation knows whole warps only.", what, place(site).c_str(), mask));
  abandon();
}

struct ShuffleLane {
  Shuffle how;
  uint32_t value;
  int lane;
};

// A lane that would reach beyond the warp keeps its value.
void shuffle_lanes(void* const* lanes) {
  uint32_t values[kWarp];
  for (unsigned i = 0; i < kWarp; ++i) values[i] = static_cast<ShuffleLane*>(lanes[i])->value;
  for (unsigned i = 0; i < kWarp; ++i) {
    auto& mine = *static_cast<ShuffleLane*>(lanes[i]);
    const unsigned by = static_cast<unsigned>(mine.lane);
    unsigned from = i;
    switch (mine.how) {
      case Shuffle::from: from = by % kWarp; break;
      case Shuffle::exclusive_or: from = i ^ by; break;
      case Shuffle::down: from = i + by; break;
      case Shuffle::up: from = i - by; break;
    }
    mine.value = values[from < kWarp ? from : i];
  }
}

// What each lane did before is ordered before what any of them does behind.
void join_lanes(void* const*) {
  const unsigned first = block.current / kWarp * kWarp;
  Time* all = clocks::of(first);
  for (unsigned i = first + 1; i < first + kWarp; ++i) clocks::join(all, clocks::of(i));
  for (unsigned i = first + 1; i < first + kWarp; ++i) std::memcpy(clocks::of(i), all, clocks::width() * sizeof(Time));
  for (unsigned i = first; i < first + kWarp; ++i) clocks::tick(i);
}

}  // namespace

namespace collectives {

void start() {
  warps.assign((block.threads + kWarp - 1) / kWarp, {});
  warpgroups.assign((block.threads + kWarpgroup - 1) / kWarpgroup, {});
}

void warp(const char* what, void* mine, Combine combine, Site site, bool aligned) {
  meet(warps[block.current / kWarp], kWarp, "a warp", what, mine, combine, site, aligned);
}

void warpgroup(const char* what, void* mine, Combine combine, Site site) {
  meet(warpgroups[block.current / kWarpgroup], kWarpgroup, "a warpgroup", what, mine, combine, site, true);
}

}  // namespace collectives

// A shuffle orders no memory.
void shuffle(Shuffle how, unsigned mask, uint32_t& value, int lane) {
  constexpr const char* kNames[] = {"__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync", "__shfl_up_sync"};
  const char* name = kNames[static_cast<int>(how)];
  whole_warp(mask, name, HIFUSE_SITE);
  ShuffleLane mine{how, value, lane};
  collectives::warp(name, &mine, shuffle_lanes, HIFUSE_SITE, false);
  value = mine.value;
}

bool vote_any(unsigned mask, bool mine) {
  whole_warp(mask, "a vote", HIFUSE_SITE);
  bool vote = mine;
  const auto count = [](void* const* lanes) {
    bool any = false;
    for (unsigned i = 0; i < kWarp; ++i) any |= *static_cast<bool*>(lanes[i]);
    for (unsigned i = 0; i < kWarp; ++i) *static_cast<bool*>(lanes[i]) = any;
  };
  collectives::warp("a vote", &vote, count, HIFUSE_SITE, false);
  return vote;
}

}  // namespace hifuse::emulation

void __syncwarp(unsigned mask) {
  using namespace hifuse::emulation;
  whole_warp(mask, "__syncwarp", HIFUSE_SITE);
  collectives::warp("__syncwarp", nullptr, join_lanes, HIFUSE_SITE, false);
}
