// Fibers: threads of control that change over where they say so, on stacks of their own.
#pragma once

namespace hifuse::emulation::fibers {

// Makes `count` fibers that will run `entry`, which must not return. Those of before are gone.
void prepare(unsigned count, void (*entry)());

// From the scheduler: runs fiber i until it yields.
void resume(unsigned i);

// From fiber i: back to the scheduler.
void yield(unsigned i);

// Whether an address lies on a fiber's stack.
bool own(const void* p);

}  // namespace hifuse::emulation::fibers
