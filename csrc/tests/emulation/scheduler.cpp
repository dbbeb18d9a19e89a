// Runs a grid: block after block, and of a block one thread at a time, each until it has to wait.
#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <random>

#include "fibers.h"
#include "report.h"
#include "shared_memory.h"

namespace hifuse::emulation {

Grid grid;
Block block;

Options& options() {
  static Options all;
  return all;
}
Counters& counters() {
  static Counters all;
  return all;
}

uint3 thread_index() { return {block.current, 0, 0}; }
uint3 block_index() { return block.index; }
dim3 block_size() { return {block.threads, 1, 1}; }
dim3 grid_size() { return grid.size; }

namespace {

struct Thread {
  enum State { ready, waiting, ended } state;
  const char* waits_for;
  Site site;
};
std::vector<Thread> threads;
std::vector<uint64_t> ready;  // a bit for each thread
unsigned left = 0;
bool abandoned = false;
std::mt19937_64 random_numbers;

void set_ready(unsigned t, bool on) {
  const uint64_t bit = uint64_t(1) << t % 64;
  ready[t / 64] = on ? ready[t / 64] | bit : ready[t / 64] & ~bit;
}

bool is_ready(unsigned t) { return ready[t / 64] >> t % 64 & 1; }

// The thread to run next, or kNobody.
int pick() {
  const int words = static_cast<int>(ready.size());
  switch (options().order) {
    case Order::forward:
      for (int w = 0; w < words; ++w)
        if (ready[w]) return w * 64 + __builtin_ctzll(ready[w]);
      return kNobody;
    case Order::reverse:
      for (int w = words; w-- > 0;)
        if (ready[w]) return w * 64 + 63 - __builtin_clzll(ready[w]);
      return kNobody;
    case Order::random: {
      const unsigned first = random_numbers() % block.threads;
      for (unsigned i = 0; i < block.threads; ++i)
        if (const unsigned t = (first + i) % block.threads; is_ready(t)) return static_cast<int>(t);
      return kNobody;
    }
  }
  return kNobody;
}

void run_thread() {
  const unsigned t = block.current;
  grid.kernel.run(grid.params, shared_memory::data());
  async_copies::finish_thread();
  warpgroup_products::finish_thread();
  threads[t].state = Thread::ended;
  set_ready(t, false);
  --left;
  fibers::yield(t);
  __builtin_unreachable();
}

void tell_deadlock() {
  std::map<std::string, unsigned> groups;
  for (const Thread& t : threads)
    if (t.state == Thread::waiting) ++groups[std::string(t.waits_for) + " at " + place(t.site)];
  std::string what = "deadlock: ";
  const char* between = "";
  for (const auto& [reason, count] : groups) {
    what += text("%s%u threads wait for %s", between, count, reason.c_str());
    between = ", ";
  }
  if (left < block.threads) what += text(", %u have ended", block.threads - left);
  tell("deadlock", nullptr, nullptr, what + ".");
}

void start_block(unsigned number) {
  block.number = number;
  block.index = {number % grid.size.x, number / grid.size.x % grid.size.y, number / grid.size.x / grid.size.y};
  block.threads = grid.kernel.threads;
  ++counters().blocks;
  clocks::start();
  shared_memory::start();
  collectives::start();
  arrivals::start();
  barriers::start();
  earlier_launches::start();
  async_copies::start();
  mbarriers::start();
  tensor_copies::start();
  warpgroup_products::start();
  stages::start();
  profile::start();
  fibers::prepare(block.threads, run_thread);
  threads.assign(block.threads, {Thread::ready, "", nullptr});
  ready.assign((block.threads + 63) / 64, 0);
  for (unsigned t = 0; t < block.threads; ++t) set_ready(t, true);
  left = block.threads;
}

void run_block() {
  while (left && !abandoned) {
    const int t = pick();
    if (t == kNobody) {
      if (tensor_copies::land_one()) continue;
      tell_deadlock();
      abandoned = true;
      return;
    }
    block.current = static_cast<unsigned>(t);
    ++counters().switches;
    fibers::resume(block.current);
  }
  if (abandoned) return;
  tensor_copies::finish_block();
  stages::finish_block();
  profile::finish_block();
}

const char* refusal(const Kernel& kernel, dim3 size) {
  const bool fits = size.x <= 0x7fffffffu && size.y <= 65535 && size.z <= 65535 && kernel.threads >= 1 &&
                    kernel.threads <= 1024 && kernel.shared_bytes <= 227 * 1024 && kernel.params_bytes <= 4096;
  return fits ? nullptr : "invalid configuration argument";
}

}  // namespace

void wait(const char* what, Site site) {
  const unsigned t = block.current;
  threads[t] = {Thread::waiting, what, site};
  set_ready(t, false);
  fibers::yield(t);
}

void wake(unsigned t) {
  threads[t].state = Thread::ready;
  set_ready(t, true);
}

void abandon() {
  abandoned = true;
  fibers::yield(block.current);
  __builtin_unreachable();
}

const char* run(const Kernel& kernel, dim3 size, const void* params) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  if (size.x == 0 || size.y == 0 || size.z == 0) return nullptr;
  if (const char* error = refusal(kernel, size)) return error;

  const unsigned blocks = size.x * size.y * size.z;
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  random_numbers.seed(options().seed);
  if (options().order == Order::reverse) std::reverse(order.begin(), order.end());
  if (options().order == Order::random) std::shuffle(order.begin(), order.end(), random_numbers);

  grid = {kernel, params, size, grid.launch + 1, true};
  ++counters().launches;
  arrivals::start_grid();
  abandoned = false;
  for (const unsigned number : order) {
    start_block(number);
    run_block();
    if (abandoned || enough_told()) break;
  }
  grid.running = false;
  return nullptr;
}

// ---- Clocks ----------------------------------------------------------------------------------------------------------------
namespace clocks {
namespace {
std::vector<Time> times;
unsigned entries = 0;
}  // namespace

void start() {
  entries = block.threads + kMostMbarriers + kMostWarpgroups;
  times.assign(static_cast<size_t>(block.threads) * entries, 0);
  for (unsigned t = 0; t < block.threads; ++t) of(t)[t] = 1;
}
unsigned width() { return entries; }
Time* of(unsigned thread) { return times.data() + static_cast<size_t>(thread) * entries; }
void join(Time* into, const Time* from) {
  for (unsigned i = 0; i < entries; ++i) into[i] = std::max(into[i], from[i]);
}
}  // namespace clocks

}  // namespace hifuse::emulation
