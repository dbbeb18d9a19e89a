// Shared memory, and who did what to each of its granules, in which order.
#pragma once
#include "state.h"

namespace hifuse::emulation::shared_memory {

void start();
void* data();
bool holds(const void* p);  // the block's shared memory, and what lies around it, in which it owns nothing

// An access of a thread, or of an engine that has a clock's entry; `known` is the clock of who does it.
void access(unsigned thread, const void* p, size_t size, bool write, Site site);

// A piece of it that an engine is busy with.
struct Range {
  std::byte* begin;
  size_t size;
};

// Whether a range lies within the block's shared memory; tells if it does not.
bool check_bounds(const void* p, size_t size, const char* verb, Site site);

// A copy to a range, which was accessed for writing before: from now on, and until `land`, it is nobody's.
void start_copy(Range to, Site site);
// The bytes are there, as if written by `writer` at `time`.
void land_copy(Range to, unsigned writer, Time time);

// An engine reads a range, from now on until `end_read`, when it counts as read by `reader` at `time`. `start_read` checks that
// every one of `threads` knows of what was written, and that ordinary stores were fenced for the engine.
void start_read(Range from, std::initializer_list<unsigned> threads, const char* engine, Site site);
void end_read(Range from, unsigned reader, Time time);

// A fence of the running thread between its ordinary accesses and those of engines.
void fence_engines();

}  // namespace hifuse::emulation::shared_memory
