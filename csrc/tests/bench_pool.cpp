// How long should a thread of the pool spin before it sleeps? A pass as of a network: regions of tasks, and a gap after each.
//
//     bench_pool [neighbours]     for each spin: the pass's milliseconds (20, 50, 80 %) and CPU seconds a second
//
// Neighbours are threads that compute all the time.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

#include "cpu/cores.h"
#include "cpu/pool.h"

namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;
using Clock = std::chrono::steady_clock;

// As much work as takes `length` on a core of its own.
void work(nanoseconds length) {
  static const double per_ns = [] {
    const auto begin = Clock::now();
    for (int64_t i = 0; i < 20000000; ++i) __asm__ __volatile__("" ::: "memory");
    return 20000000 / std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
  }();
  const auto steps = static_cast<int64_t>(per_ns * static_cast<double>(length.count()));
  for (int64_t i = 0; i < steps; ++i) __asm__ __volatile__("" ::: "memory");
}

// The regions of HiFuse Small at one image: 100 of about a millisecond of tasks, and what is between two ops.
void pass(hifuse::Pool& pool, int64_t threads) {
  for (int region = 0; region < 100; ++region) {
    const int64_t tasks = region % 3 ? 12 : 36;
    const nanoseconds length = microseconds(region % 3 ? 170 : 60);
    pool.run(tasks, threads, const_cast<nanoseconds*>(&length),
             [](void* context, int64_t) { work(*static_cast<const nanoseconds*>(context)); });
    work(microseconds(8));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int neighbours = argc > 1 ? std::atoi(argv[1]) : 0;
  const int64_t threads = hifuse::usable_cores();
  work(microseconds(1));
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int i = 0; i < neighbours; ++i)
    others.emplace_back([&] {
      while (!stop) work(microseconds(100));
    });
  constexpr int kSpins[] = {0, 10, 30, 50, 100, 300, 1000, 10000};
  std::vector<hifuse::Pool*> pools;
  for (const int spin : kSpins) pools.push_back(&hifuse::Pool::make(microseconds(spin)));
  std::vector<std::vector<double>> seconds(pools.size());
  for (int round = 0; round < 20; ++round)
    for (size_t i = 0; i < pools.size(); ++i) {
      std::this_thread::sleep_for(microseconds(12000));
      const auto begin = Clock::now();
      pass(*pools[i], threads);
      seconds[i].push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
  std::printf("%ld threads, %d neighbours\n spin us    ms p20    p50    p80\n", static_cast<long>(threads), neighbours);
  for (size_t i = 0; i < pools.size(); ++i) {
    std::sort(seconds[i].begin(), seconds[i].end());
    std::printf("%8d   %7.1f %6.1f %6.1f\n", kSpins[i], 1e3 * seconds[i][4], 1e3 * seconds[i][10], 1e3 * seconds[i][16]);
  }
  stop = true;
  for (std::thread& other : others) other.join();
}
