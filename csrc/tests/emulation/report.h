// Messages: what was found, in which kernel and block, with places as file and line.
#pragma once
#include <string>

#include "state.h"

namespace hifuse::emulation {

// Adds a message behind the names of the kernel and the block, unless the same kind of mistake at the same places has been
// told.
void tell(const char* kind, Site site, Site other, const std::string& text);

// Whether `tell` would say nothing new, so that no text need be made.
bool is_told(const char* kind, Site site, Site other);

// "window_attention.cuh:120". Without addr2line or debug information: "0x4f2a of _cuda_emulated.so".
std::string place(Site site);

// Whether two sites are one line of the source, or lines are not known. Compilers copy code, so that one call can have two
// addresses.
bool same_place(Site a, Site b);

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Whether so much was found that no more is wanted.
bool enough_told();

}  // namespace hifuse::emulation
