// Launches run one after another here, but on a GPU one may begin before the one before it has ended. So a thread must have
// waited before it touches memory.
#include <ptx.cuh>

#include "state.h"

namespace hifuse::emulation {
namespace {

std::vector<char> waited;

}  // namespace

void earlier_launches::start() { waited.assign(block.threads, 0); }
bool earlier_launches::are_waited_for(unsigned thread) { return waited[thread]; }

}  // namespace hifuse::emulation

void hifuse::cuda::wait_for_earlier_launches() {
  using namespace hifuse::emulation;
  waited[block.current] = 1;
}
