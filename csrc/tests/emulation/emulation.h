// A CUDA grid on one CPU thread, for tests.
//
// The threads of a block are fibers, which change over where they synchronise. The compiler's instrumentation tells the
// emulation of each load and store of a kernel. It checks shared memory against the order that barriers make, device memory
// against the tensors of the launch, and copies against the waits for them. Copies land as late as the rules allow, or at once;
// threads and blocks run in three orders. A correct kernel gives the same bits in all of these.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_host.h"

namespace hifuse::emulation {

enum class Order { forward, reverse, random };
enum class Landing { late, early };

struct Options {
  Order order = Order::forward;  // of threads and of blocks
  Landing landing = Landing::late;
  uint64_t seed = 1;     // of the random order
  bool check = true;     // races; bounds are always checked
  bool profile = false;  // bank conflicts and sectors
};
Options& options();

struct Counters {
  uint64_t launches = 0, blocks = 0, switches = 0, collectives = 0, barriers = 0, products = 0, copies = 0;
  uint64_t shared_accesses = 0, device_accesses = 0;  // of single threads
  // Of whole warps, with Options::profile. A conflict is one more turn of the banks than the bytes need.
  uint64_t ldmatrix_requests = 0, ldmatrix_conflicts = 0;
  uint64_t shared_requests = 0, shared_conflicts = 0;
  uint64_t load_requests = 0, load_sectors = 0, load_bytes = 0;  // of device memory; a sector has 32 bytes
  uint64_t store_requests = 0, store_sectors = 0, store_bytes = 0;
};
Counters& counters();  // since the last reset; assign {} to reset

// Memory that launches may use, to the byte, until `forget`. What is read must not be written, unless it was allowed too.
void allow(const void* begin, size_t bytes, bool writable);
void forget();

// What was found since the last call, each once.
std::vector<std::string> errors();

// Pipelines that no launch since the last call has taken round: for each kernel, the bytes of shared memory that asynchronous
// copies filled, but at most once in any block. A stage that is never used again cannot show that it was released too early.
std::vector<std::string> stages_used_once();

struct Kernel {
  const char* name;
  unsigned threads;
  size_t shared_bytes, params_bytes;
  void (*run)(const void* params, void* shared);
};

// Runs a grid. Returns null, or CUDA's text for a launch that CUDA would refuse.
const char* run(const Kernel& kernel, dim3 grid, const void* params);

}  // namespace hifuse::emulation
