// Arithmetic on counts. std::min and its like stay out of kernels: the linker keeps one copy of an inline function, and that
// copy may be of any instruction set.
#pragma once

#include <cstdint>

namespace hifuse {
inline namespace HIFUSE_ISA {

constexpr int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }
constexpr int64_t round_up(int64_t count, int64_t multiple) { return divide_up(count, multiple) * multiple; }
constexpr int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace HIFUSE_ISA
}  // namespace hifuse
