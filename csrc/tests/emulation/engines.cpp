// Until Hopper's twins are there.
#include "state.h"
namespace hifuse::emulation {
void mbarriers::start() {}
void tensor_copies::start() {}
bool tensor_copies::land_one() { return false; }
void tensor_copies::finish_thread() {}
void tensor_copies::finish_block() {}
void warpgroup_products::start() {}
void warpgroup_products::finish_thread() {}
}  // namespace hifuse::emulation
