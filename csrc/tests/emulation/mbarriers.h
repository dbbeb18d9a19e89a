// mbarriers: what the tensor copies need of them.
#pragma once
#include "state.h"

namespace hifuse::emulation::mbarriers {

// The entry of the clocks that stands for a barrier, and the time that its next phase will have.
struct Stamp {
  unsigned entry;
  Time time;
};
Stamp next_phase(uint64_t* bar, Site site);

// Bytes of a copy have landed.
void complete(uint64_t* bar, size_t bytes);

}  // namespace hifuse::emulation::mbarriers
