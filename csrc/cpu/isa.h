// The run-time choice of the instruction set: what was compiled in, what CPU and operating system support, what is in use.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace hifuse::isa {

std::vector<std::string> compiled();  // slowest first
std::vector<std::string> usable();    // those of them that this CPU and operating system run
std::string current();

// Use `name` from now on; throws std::invalid_argument when it is not usable here. Not for use while kernels run.
void select(const std::string& name);

// The kernels of the current instruction set.
const KernelTable& kernels();

}  // namespace hifuse::isa
