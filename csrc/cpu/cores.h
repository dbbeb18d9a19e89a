// How many threads can compute at the same time.
#pragma once

#include <cstdint>
#include <string>

namespace hifuse {

// The cores on which the calling thread may run (its affinity), but no more than the CPU time that this process may use: a
// quota of 1.5 cores is used by 2 threads. At least 1.
int64_t usable_cores();

// The CPU quota of this process's control groups, v1 or v2, in cores; 0 where there is none. `root` stands before the paths of
// the system's files.
double cpu_quota(const std::string& root = "");

}  // namespace hifuse
